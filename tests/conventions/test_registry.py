"""Every attribute that the conventions define is read, is content, or is left out for a reason."""

import openinference.semconv.trace as openinference
import pytest
from msgspec.structs import replace
from opentelemetry.semconv._incubating.attributes import gen_ai_attributes, mcp_attributes, openai_attributes

from step_exporter import attributes as native
from step_exporter.conventions import read
from step_exporter.conventions.content import is_content
from step_exporter.facts import RawSpan

SETTING = "a setting of the request; the step tells what came of it"
MEASURED = "a metric's dimension, on no span"
PARENT = "only the names below it are set on spans"
DECISION = "OpenInference's decision spans ask a model for a score, they are no step of a loop"
SPAN_LESS = "annotations and evaluations are set on traces and sessions, later"

LEFT_OUT = {
    # OpenTelemetry
    "gen_ai.agent.description": "a text for the model, the same on every call",
    "gen_ai.agent.version": "no column for it; the attribute stays on the span",
    "gen_ai.data_source.id": "what a retrieval asked; retrievals are no steps",
    "gen_ai.embeddings.dimension.count": "embeddings are no steps",
    "gen_ai.evaluation.name": "an evaluation of an answer is an event of its own",
    "gen_ai.evaluation.score.label": "an evaluation of an answer is an event of its own",
    "gen_ai.evaluation.score.value": "an evaluation of an answer is an event of its own",
    "gen_ai.openai.request.response_format": SETTING,
    "gen_ai.openai.request.seed": SETTING,
    "gen_ai.openai.request.service_tier": SETTING,
    "gen_ai.openai.response.service_tier": "no column for it; the attribute stays on the span",
    "gen_ai.openai.response.system_fingerprint": "no column for it; the attribute stays on the span",
    "gen_ai.output.type": SETTING,
    "gen_ai.request.choice.count": SETTING,
    "gen_ai.request.encoding_formats": SETTING,
    "gen_ai.request.frequency_penalty": SETTING,
    "gen_ai.request.max_tokens": SETTING,
    "gen_ai.request.presence_penalty": SETTING,
    "gen_ai.request.seed": SETTING,
    "gen_ai.request.stop_sequences": SETTING,
    "gen_ai.request.stream": SETTING,
    "gen_ai.request.temperature": SETTING,
    "gen_ai.request.top_k": SETTING,
    "gen_ai.request.top_p": SETTING,
    "gen_ai.token.type": MEASURED,
    "gen_ai.tool.description": "a text for the model, the same on every call",
    "gen_ai.tool.type": "no column for it; the attribute stays on the span",
    "gen_ai.workflow.name": "a run is named by its agent; the span's name has the workflow's",
    "mcp.method.name": "the tool call's own span says execute_tool",
    "mcp.protocol.version": "no column for it; the attribute stays on the span",
    "mcp.resource.uri": "reading a resource is no tool call",
    "mcp.session.id": "a session with a server of tools, no conversation",
    "openai.api.type": "no column for it; the attribute stays on the span",
    "openai.request.service_tier": SETTING,
    "openai.response.service_tier": "no column for it; the attribute stays on the span",
    "openai.response.system_fingerprint": "no column for it; the attribute stays on the span",
    # OpenInference
    "annotations": SPAN_LESS,
    "decision.model_name": DECISION,
    "decision.provider": DECISION,
    "decision.request.model_name": DECISION,
    "decision.response.model_name": DECISION,
    "decision.system": DECISION,
    "decision.token_count.input": DECISION,
    "decision.token_count.output": DECISION,
    "embedding.invocation_parameters": "embeddings are no steps",
    "embedding.model_name": "embeddings are no steps",
    "evaluations": SPAN_LESS,
    "graph.node.parent_id": "the spans' own tree is the tree",
    "input.mime_type": "told by the value itself",
    "output.mime_type": "told by the value itself",
    "llm.cost.completion": "prices change; costs are made from tokens",
    "llm.cost.completion_details": PARENT,
    "llm.cost.completion_details.audio": "prices change; costs are made from tokens",
    "llm.cost.completion_details.output": "prices change; costs are made from tokens",
    "llm.cost.completion_details.reasoning": "prices change; costs are made from tokens",
    "llm.cost.prompt": "prices change; costs are made from tokens",
    "llm.cost.prompt_details": PARENT,
    "llm.cost.prompt_details.audio": "prices change; costs are made from tokens",
    "llm.cost.prompt_details.cache_input": "prices change; costs are made from tokens",
    "llm.cost.prompt_details.cache_read": "prices change; costs are made from tokens",
    "llm.cost.prompt_details.cache_write": "prices change; costs are made from tokens",
    "llm.cost.prompt_details.input": "prices change; costs are made from tokens",
    "llm.cost.total": "prices change; costs are made from tokens",
    "llm.prompt_template.version": "no column for it; the attribute stays on the span",
    "llm.token_count.prompt_details": PARENT,
    "prompt.id": "no column for it; the attribute stays on the span",
    "prompt.url": "no column for it; the attribute stays on the span",
    "prompt.vendor": "no column for it; the attribute stays on the span",
    "session.annotations": SPAN_LESS,
    "session.evaluations": SPAN_LESS,
    "tool.description": "a text for the model, the same on every call",
    "trace.annotations": SPAN_LESS,
    "trace.evaluations": SPAN_LESS,
    "user.id": "no column for it; the attribute stays on the span",
}

ROLES = [
    {"gen_ai.operation.name": "chat"},
    {"gen_ai.operation.name": "execute_tool"},
    {"gen_ai.operation.name": "invoke_agent"},
    {"openinference.span.kind": "LLM", "llm.token_count.prompt": 9, "llm.token_count.completion": 9},
    {"openinference.span.kind": "TOOL"},
    {"openinference.span.kind": "AGENT"},
    {"server.address": "localhost", "gen_ai.operation.name": "chat"},
    {},
]
VALUES = ["7", 7, 0.5, ("7",), "LLM", "chat", '{"lc_agent_name": "a"}', "positive"]


def names(module_or_class):
    return sorted({v for k, v in vars(module_or_class).items() if not k.startswith("_") and isinstance(v, str)} - {""})


def constants(module):
    return sorted({v for k, v in vars(module).items() if k.isupper() and isinstance(v, str)})


def changes_the_facts(name):
    for role in ROLES:
        bare = RawSpan("a" * 32, "b" * 16, None, "x", start_ns=1, attributes=role)
        facts = read(bare)
        for value in VALUES:
            if read(replace(bare, attributes={**role, name: value})) != facts:
                return True
    return False


def read_or_content(name):
    # a family such as llm.input_messages stands for its members
    return is_content(name) or is_content(f"{name}.0.x") or changes_the_facts(name)


OPENTELEMETRY = constants(gen_ai_attributes) + constants(mcp_attributes) + constants(openai_attributes)
SPAN = names(openinference.SpanAttributes)


@pytest.mark.parametrize("name", OPENTELEMETRY + SPAN)
def test_an_attribute_is_read_or_left_out_for_a_reason(name):
    if name in LEFT_OUT:
        assert not read_or_content(name), "it is read: take it off the list"
    else:
        assert read_or_content(name), "read it, or say in LEFT_OUT why not"


MESSAGE = ["message." + name.removeprefix("message.") for name in names(openinference.MessageAttributes)]
PARTS = names(openinference.MessageContentAttributes)
CALLS = names(openinference.ToolCallAttributes)


@pytest.mark.parametrize(
    "name",
    [
        *(f"llm.input_messages.0.{name}" for name in MESSAGE),
        *(f"llm.output_messages.1.{name}" for name in MESSAGE),
        *(f"llm.input_messages.0.message.contents.0.{name}" for name in PARTS),
        *(f"llm.output_messages.0.message.tool_calls.0.{name}" for name in CALLS),
        *(f"retrieval.documents.0.{name}" for name in names(openinference.DocumentAttributes)),
        *(f"llm.tools.0.{name}" for name in names(openinference.ToolAttributes)),
        *(f"llm.prompts.0.{name}" for name in names(openinference.PromptAttributes)),
        *(f"llm.choices.0.{name}" for name in names(openinference.ChoiceAttributes)),
        *(n + ".0.document.content" if n.endswith("documents") else n for n in names(openinference.RerankerAttributes)),
        *(f"embedding.embeddings.0.{name}" for name in names(openinference.EmbeddingAttributes)),
    ],
)
def test_nested_attributes_of_openinference_are_content(name):
    if name in NESTED_LEFT_OUT:
        assert not is_content(name)
    else:
        assert is_content(name)


NESTED_LEFT_OUT = {
    "reranker.model_name": "rerankers are no steps",
    "reranker.top_k": SETTING,
}


@pytest.mark.parametrize("name", constants(native))
def test_native_attributes_are_read(name):
    assert changes_the_facts(name)


def test_the_list_names_only_what_the_registries_define():
    assert set(LEFT_OUT) <= set(OPENTELEMETRY) | set(SPAN)
