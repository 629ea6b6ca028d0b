"""OpenTelemetry's GenAI conventions, old and new names (never told apart by ``schema_url``: emitters mix them).

Emitted by OpenTelemetry's own instrumentations, the Anthropic SDK, Google ADK, Strands, pydantic-ai,
Semantic Kernel, Microsoft Agent Framework, Spring AI, LoongSuite, openlit and as a part by most others.
"""

from __future__ import annotations

from step_exporter.conventions import agent_framework
from step_exporter.conventions._draft import Draft
from step_exporter.conventions._values import SAYS_MORE, first_text, items, mapping, parsed, text
from step_exporter.conventions.providers import provider
from step_exporter.facts import RawSpan, Role

MARKERS = frozenset(
    {
        "gen_ai.agent.id",
        "gen_ai.agent.name",
        "gen_ai.conversation.id",
        "gen_ai.operation.name",
        "gen_ai.provider.name",
        "gen_ai.request.model",
        "gen_ai.response.id",
        "gen_ai.response.model",
        "gen_ai.span.kind",
        "gen_ai.step.name",
        "gen_ai.system",
        "gen_ai.tool.call.id",
        "gen_ai.tool.name",
        "gen_ai.usage.input_tokens",
        "gen_ai.usage.prompt_tokens",
        "gen_ai.workflow.name",
    }
)

OPERATIONS = {
    "call_llm": Role.LLM,  # any-agent
    "chat": Role.LLM,
    "chat_streaming": Role.LLM,  # Rig
    "completion": Role.LLM,
    "generate_content": Role.LLM,
    "text_completion": Role.LLM,
    "chat.completions": Role.LLM,  # Semantic Kernel, here and below
    "chat.streaming_completions": Role.LLM,
    "text.completions": Role.LLM,
    "text.streaming_completions": Role.LLM,
    "text_completions": Role.LLM,
    "execute_tool": Role.TOOL,
    "invoke_agent": Role.AGENT,
    "process_thread_run": Role.AGENT,  # Azure AI Agents: the service runs the loop
    "invoke_workflow": Role.WORKFLOW,
    "conversation": Role.WORKFLOW,  # AG2
    "invoke_swarm": Role.WORKFLOW,  # Strands' multi-agent orchestrators
    "invoke_graph": Role.WORKFLOW,
    "agent_step": Role.STEP,
    "execute_event_loop_cycle": Role.STEP,  # Strands
    "react": Role.STEP,  # LoongSuite
    "run_step": Role.STEP,  # semantic-conventions-genai #188
    "create_agent": Role.OTHER,
    "embeddings": Role.OTHER,
    "execute_task": Role.OTHER,
    "framework": Role.OTHER,  # openlit, Spring AI: something in between
    "handoff": Role.OTHER,
    "rerank": Role.OTHER,
    "retrieval": Role.OTHER,
}

_LLM, _TOOL, _AGENT = Role.LLM, Role.TOOL, Role.AGENT
_NAMES = ("gen_ai.request.model", "gen_ai.tool.name", "gen_ai.agent.name", "gen_ai.workflow.name")

_ANSWERED = frozenset({"gen_ai.request.model", "gen_ai.response.finish_reasons"})
"""Only an answer of a language model has a reason why it ended."""

# LoongSuite
_KINDS = {
    "AGENT": Role.AGENT,
    "EMBEDDING": Role.OTHER,
    "LLM": Role.LLM,
    "STEP": Role.STEP,
    "TOOL": Role.TOOL,
    "WORKFLOW": Role.WORKFLOW,
}


def role(raw: RawSpan) -> Role | None:
    """By the operation; LoongSuite by its span kind; where the operation's attribute was lost, by the span's name.

    The SDK evicts the oldest attribute beyond 128, and that is ``gen_ai.operation.name``. A span's name is
    "{operation} {model, tool or agent}"; both halves must fit.
    """
    attributes = raw.attributes
    get = attributes.get
    operation = get("gen_ai.operation.name")
    if operation is not None:
        found = OPERATIONS.get(operation) if type(operation) is str else OPERATIONS.get(text(operation) or "")
        if found is Role.TOOL and raw.name == "execute_tool (merged)":
            return Role.OTHER  # Google ADK's summary of parallel calls, each of which has its own span
        if found is _LLM and raw.name.startswith("invoke_agent ") and raw.name[13:] == text(get("gen_ai.agent.name")):
            return _AGENT  # Google ADK's, onto which OpenInference has written a request's attributes
        if found is not None:
            return found
    kind = attributes.get("gen_ai.span.kind")
    if kind is not None and (found := _KINDS.get((text(kind) or "").upper())):
        return found
    if "gen_ai.step.name" in attributes:
        return Role.STEP
    if operation is None:
        word, _, rest = raw.name.partition(" ")
        found = OPERATIONS.get(word)
        if found is not None and rest and any(rest == text(attributes.get(key)) for key in _NAMES):
            return found
        if raw.kind == "client" and _ANSWERED.issubset(attributes) and SAYS_MORE.isdisjoint(attributes):
            return _LLM  # AWS's SDK for JavaScript
    return None


def fill(raw: RawSpan, draft: Draft) -> None:
    """Fill in what the GenAI attributes say."""
    attributes = raw.attributes
    get = attributes.get
    role = draft.role
    draft.conversation_id = draft.conversation_id or text(get("gen_ai.conversation.id"))
    draft.agent_name = draft.agent_name or text(get("gen_ai.agent.name"))
    draft.agent_id = draft.agent_id or text(get("gen_ai.agent.id"))
    if role is _TOOL:
        draft.tool_name = draft.tool_name or text(get("gen_ai.tool.name"))
        draft.call_id = draft.call_id or text(get("gen_ai.tool.call.id"))
        if draft.tool_name is None and raw.name.startswith("execute_tool "):
            draft.tool_name = raw.name[13:] or None
        return
    if role is _AGENT and draft.agent_name is None and raw.name.startswith("invoke_agent "):
        draft.agent_name = raw.name[13:] or None
    _fill_request(raw, draft)
    if role is _LLM or role is _AGENT:
        _fill_usage(raw, draft)
        _fill_end(raw, draft)
    elif role is Role.STEP:
        _fill_usage(raw, draft)
    cancelled = get("strands.cancellation.type")
    if cancelled is not None:  # Strands leaves the status of a cancelled agent unset
        draft.failed = draft.cancelled = True
        draft.error_type = text(cancelled)


def _fill_request(raw: RawSpan, draft: Draft) -> None:
    get = raw.attributes.get
    asked = text(get("gen_ai.request.model"))
    served = text(get("gen_ai.response.model"))
    if served and served != asked:
        # one that equals the request says nothing: OpenLLMetry, litellm and Logfire repeat the request
        # where they have not seen the response
        draft.served_model = draft.served_model or served
    draft.model = draft.model or served or asked
    if draft.provider_name is None and raw.scope.name == BEDROCK:
        draft.provider_name = "aws.bedrock"  # it named the maker of the model, before version 0.45
    draft.provider_name = draft.provider_name or provider(get("gen_ai.provider.name")) or provider(get("gen_ai.system"))
    if draft.request_id is None:
        identity = text(get("gen_ai.response.id"))
        if identity and identity != text(get("litellm.call_id")):  # litellm's own, where it saw no response
            draft.request_id = identity
    address = get("server.address")
    if address is not None and draft.model_endpoint is None:
        host, port = text(address), text(get("server.port"))
        draft.model_endpoint = f"{host}:{port}" if host and port else host
    draft.model_endpoint = draft.model_endpoint or text(get("gen_ai.openai.api_base"))


def _fill_usage(raw: RawSpan, draft: Draft) -> None:
    attributes = raw.attributes
    get = attributes.get
    tokens = draft.tokens
    count = tokens.count
    for key, part in USAGE.items():
        value = get(key)
        if value is not None and getattr(tokens, part) is None:
            setattr(tokens, part, count(value))
    if not _MORE_USAGE.isdisjoint(attributes):
        for part, keys in _OTHER_USAGE.items():
            if getattr(tokens, part) is None:
                setattr(tokens, part, tokens.first(*(get(key) for key in keys)))
        for side, name in _DETAILS:
            tokens.detail(side, name, get("gen_ai.usage.details." + name))
    scope = raw.scope.name
    if scope in CACHE_APART or (scope == agent_framework.SCOPE and draft.provider_name == "anthropic"):
        tokens.cache_apart = True  # Microsoft's client for Anthropic hands on what the API counts, as no other of its
    if draft.role is Role.AGENT and tokens.prompt is None and tokens.completion is None:
        for part, key in _AGGREGATED.items():
            setattr(tokens, part, count(get("gen_ai.aggregated_usage." + key)))


USAGE = {
    "gen_ai.usage.input_tokens": "prompt",
    "gen_ai.usage.output_tokens": "completion",
    "gen_ai.usage.cache_read.input_tokens": "cached",
    "gen_ai.usage.cache_write.input_tokens": "cache_write",
    "gen_ai.usage.reasoning.output_tokens": "reasoning",
}
"""The newest names, in the order of ``TokenUsage``."""
_OTHER_USAGE = {
    "prompt": ("gen_ai.usage.prompt_tokens", "llm.usage.prompt_tokens"),
    "completion": ("gen_ai.usage.completion_tokens", "llm.usage.completion_tokens"),
    "cached": (
        "gen_ai.usage.cache_read_input_tokens",
        "gen_ai.usage.details.cache_read_tokens",  # pydantic-ai
        "gen_ai.usage.cached_tokens",
        "gen_ai.usage.prompt_tokens_details.cached_tokens",  # openlit, here and below
        "gen_ai.usage.input_tokens.cached",  # OpenRouter, here and below
    ),
    "cache_write": (
        "gen_ai.usage.cache_creation.input_tokens",  # the registry's name before cache_write.input_tokens
        "gen_ai.usage.cache_creation_input_tokens",
        "gen_ai.usage.cache_write_input_tokens",  # Strands
        "gen_ai.usage.details.cache_write_tokens",
        "gen_ai.usage.prompt_tokens_details.cache_creation_tokens",
        "gen_ai.usage.input_tokens.cache_write",
    ),
    "reasoning": (
        "gen_ai.usage.reasoning_tokens",  # OpenLLMetry
        "gen_ai.usage.details.reasoning_tokens",
        "gen_ai.usage.experimental.reasoning_tokens",  # Google ADK 1
        "gen_ai.usage.completion_tokens_details.reasoning_tokens",
        "gen_ai.usage.output_tokens.reasoning",
        "ai.usage.outputTokenDetails.reasoningTokens",  # Vercel AI SDK 7
    ),
    "total": ("gen_ai.usage.total_tokens", "llm.usage.total_tokens"),
}
"""Older and emitters' own names, best first."""

BEDROCK = "opentelemetry.instrumentation.bedrock"
"""OpenLLMetry's."""
CACHE_APART = frozenset(
    {
        "openlit.instrumentation.anthropic",
        BEDROCK,
        "opentelemetry.instrumentation.genai.bedrock",
    }
)
"""Scopes of emitters that hand on what the providers' APIs count: Claude's and Bedrock's input tokens are those that
were neither read from the cache nor written to it."""

_DETAILS = (
    ("prompt", "input_audio_tokens"),
    ("completion", "output_audio_tokens"),
    ("completion", "accepted_prediction_tokens"),
    ("completion", "rejected_prediction_tokens"),
)
"""pydantic-ai's further parts."""

_MORE_USAGE = frozenset(key for keys in _OTHER_USAGE.values() for key in keys) | {
    "gen_ai.usage.details." + name for _, name in _DETAILS
}

_AGGREGATED = {
    "prompt": "input_tokens",
    "completion": "output_tokens",
    "cached": "cache_read.input_tokens",
    "cache_write": "cache_creation.input_tokens",
    "reasoning": "details.reasoning_tokens",
}
"""pydantic-ai: the sum over an agent's requests, under names of its own since version 2."""

_FIRST_TOKEN = {
    "gen_ai.response.time_to_first_chunk": 1e9,
    "gen_ai.client.operation.time_to_first_chunk": 1e9,  # the metric's name, on pydantic-ai's spans
    "metrics.ttfb": 1e9,  # Pipecat
    "gen_ai.server.time_to_first_token": 1e9,  # a metric's name too, on openlit's spans and, in milliseconds, Strands'
}

CHUNKS = frozenset({"gen_ai.content.completion.chunk", "llm.content.completion.chunk"})
"""Events that parts of a streamed answer are."""


LESS_USUAL = frozenset(
    {
        *_MORE_USAGE,
        *("gen_ai.aggregated_usage." + key for key in _AGGREGATED.values()),
        *_FIRST_TOKEN,
        "gen_ai.openai.api_base",
        "gen_ai.response.finish_reason",
        "anthropic.message.stop_reason",
    }
)
"""What ``genai_plain`` does not look at."""


def _fill_end(raw: RawSpan, draft: Draft) -> None:
    attributes = raw.attributes
    get = attributes.get
    if draft.stop_reason is None:
        reason = get("gen_ai.response.finish_reasons")
        if reason is None:
            reason = get("gen_ai.response.finish_reason")
            if type(reason) is str and reason.startswith("FinishReason."):  # Semantic Kernel: the enum's member
                reason = reason[13:].lower()
        draft.stop_reason = first_text(reason) or text(get("anthropic.message.stop_reason"))
    if not _FIRST_TOKEN.keys().isdisjoint(attributes):
        for key, unit in _FIRST_TOKEN.items():
            if key in attributes:
                if key.startswith("gen_ai.server.") and raw.scope.name.startswith("strands."):
                    unit = 1e6
                draft.first_token_after(raw, get(key), unit)
    if draft.first_token_ns is None and raw.events and raw.start_ns is not None:
        for event in raw.events:  # OpenLLMetry
            if event.name in CHUNKS:
                if type(event.time_ns) is int:
                    draft.after_start(raw, event.time_ns - raw.start_ns)
                break
    if draft.stop_reason is None and raw.events:
        for event in raw.events:
            if event.name == "gen_ai.choice":
                draft.stop_reason = text(event.attributes.get("finish_reason"))
                break
            said = event.attributes.get("gen_ai.output.messages")
            if type(said) is str and '"finish_reason"' in said:  # Strands since 1.62
                for message in items(parsed(said)):
                    draft.stop_reason = draft.stop_reason or text(mapping(message).get("finish_reason"))
