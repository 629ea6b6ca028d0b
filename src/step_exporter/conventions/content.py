"""Content values: the prompts, replies, tool arguments and tool results that a span carries.

``take_apart`` turns each content value of a span into elements that are stored once per trace;
``put_together`` gives back the very attributes. Elements are chained by hash, so that a prompt which
repeats the conversation so far repeats its hashes: twenty calls of one loop store each message once.

How elements make up a value is its ``form``:

================================  =====================================================================
``("text",)``                     the text is the one element
``("json", open, sep, close)``    JSON text with an array of messages in it, an element per item: *open*,
                                  the items joined by *sep*, *close*. *open* and *close* are ``=text``, or
                                  ``#hash`` of an element of its own where they are long (a list of tools
                                  that every call repeats)
``("list",)``                     a sequence, an element per item, each as JSON
``("value",)``                    any other value as JSON
``("indexed", indices)``          flattened attributes such as ``llm.input_messages.0.message.role``: an
                                  element per index, a JSON object of the rest of each key
================================  =====================================================================

The elements of a value are its chain, each the parent of the next, then those that the form names by
hash, which have no parent (``side_hashes``).
"""

from __future__ import annotations

import json
import math
import re
from base64 import b64decode, b64encode
from collections.abc import Iterable, Mapping
from functools import lru_cache
from hashlib import sha256
from typing import Any, cast

from msgspec.structs import replace

from step_exporter.conventions import genai_message
from step_exporter.conventions.genai_message import GenAIMessage
from step_exporter.facts import AttributeValue, Content, ContentValue, Event, RawSpan, Value

MESSAGE_KEYS = frozenset(
    {
        # OpenTelemetry GenAI; gen_ai.prompt and gen_ai.completion are also LangSmith's, openlit's, Spring AI's
        "gen_ai.input.messages",
        "gen_ai.output.messages",
        "gen_ai.system_instructions",
        "gen_ai.prompt",
        "gen_ai.completion",
        "gen_ai.event.content",
        "gen_ai.agent.invocation_input",
        "gen_ai.agent.invocation_output",
        # OpenInference
        "input.value",
        "output.value",
        # OpenLLMetry
        "traceloop.entity.input",
        "traceloop.entity.output",
        "gen_ai.task.input",
        "gen_ai.task.output",
        # Vercel AI SDK
        "ai.prompt",
        "ai.prompt.messages",
        # MLflow
        "mlflow.spanInputs",
        "mlflow.spanOutputs",
        "mlflow.chat.messages",
        # pydantic-ai and Logfire
        "all_messages_events",
        "pydantic_ai.all_messages",
        "events",
        "request_data",
        "response_data",
        # Google ADK
        "gcp.vertex.agent.llm_request",
        "gcp.vertex.agent.llm_response",
        "gcp.vertex.agent.data",
        # Langfuse, LangWatch, AgentOps, Braintrust
        "langfuse.observation.input",
        "langfuse.observation.output",
        "langfuse.trace.input",
        "langfuse.trace.output",
        "langwatch.input",
        "langwatch.output",
        "agentops.entity.input",
        "agentops.entity.output",
        "braintrust.input",
        "braintrust.input_json",
        "braintrust.output",
        "braintrust.output_json",
        # Haystack, Laminar, Genkit, Mastra, openlit
        "haystack.agent.step.llm.input",
        "haystack.agent.step.llm.output",
        "haystack.component.input",
        "haystack.component.output",
        "lmnr.span.input",
        "lmnr.span.output",
        "genkit:input",
        "genkit:output",
        "mastra.agent_run.input",
        "mastra.model_generation.input",
        "mastra.model_step.input",
        "gen_ai.output",
        "gen_ai.workflow.input",
        "gen_ai.workflow.output",
        # Quarkus
        "gen_ai.content.prompt",
        "gen_ai.content.completion",
        # Pipecat, and Logfire on the OpenAI Agents SDK
        "input",
        "output",
    }
)
"""Attributes whose value may hold many messages: taken apart into one element per message."""

VALUE_KEYS = frozenset(
    {
        # OpenTelemetry GenAI
        "gen_ai.tool.call.arguments",
        "gen_ai.tool.call.result",
        "gen_ai.tool.arguments",
        "gen_ai.tool.definitions",
        "gen_ai.retrieval.query.text",
        "gen_ai.retrieval.documents",
        "gen_ai.evaluation.explanation",
        # OpenInference
        "llm.invocation_parameters",
        "llm.function_call",
        "llm.prompt_template.template",
        "llm.prompt_template.variables",
        "tool.parameters",
        "tool.json_schema",
        "reranker.query",
        # OpenLLMetry
        "traceloop.prompt.template",
        "traceloop.prompt.template_variables",
        "mcp.request.argument",
        "mcp.response.value",
        # Vercel AI SDK; ai.result.* until version 4
        "ai.prompt.tools",
        "ai.response.text",
        "ai.response.object",
        "ai.response.toolCalls",
        "ai.response.reasoning",
        "ai.response.files",
        "ai.result.text",
        "ai.result.object",
        "ai.result.toolCalls",
        "ai.toolCall.args",
        "ai.toolCall.result",
        "ai.schema",
        "ai.value",
        "ai.values",
        "ai.embedding",
        "ai.embeddings",
        # MLflow
        "mlflow.chat.tools",
        "mlflow.chunk.value",
        "tools",
        # pydantic-ai and Logfire
        "tool_arguments",
        "tool_response",
        "final_result",
        "model_request_parameters",
        # Google ADK
        "gcp.vertex.agent.tool_call_args",
        "gcp.vertex.agent.tool_response",
        # CrewAI, smolagents, Strands
        "crew_inputs",
        "crew_tasks",
        "crew_agents",
        "crewai.agent.goal",
        "crewai.agent.backstory",
        "crewai.task.description",
        "crewai.task.expected_output",
        "crewai.crew.result",
        "crewai.crew.tasks_output",
        "smolagents.task",
        "gen_ai.tool.json_schema",
        "system_prompt",
        # Haystack, Spring AI
        "haystack.pipeline.input_data",
        "haystack.pipeline.output_data",
        "haystack.agent.input",
        "haystack.agent.output",
        "haystack.agent.tools",
        "haystack.agent.step.tool.input",
        "haystack.agent.step.tool.output",
        "spring.ai.tool.call.arguments",
        "spring.ai.tool.call.result",
        "spring.ai.tool.definition.schema",
        "spring.ai.tool.definition.description",
        "db.vector.query.content",
        "db.vector.query.response.documents",
        # openlit, LangWatch, Mastra, Claude Code
        "gen_ai.tool.args",
        "gen_ai.agent.goal",
        "gen_ai.agent.context",
        "gen_ai.agent.instructions",
        "gen_ai.agent.task",
        "gen_ai.agent.expected_output",
        "gen_ai.agent.actual_output",
        "gen_ai.agent.human_input",
        "gen_ai.agent.tool_results",
        "gen_ai.agent.action.tool_input",
        "gen_ai.agent.action.log",
        "gen_ai.agent.finish.output",
        "gen_ai.agent.finish.log",
        "gen_ai.agent.thinking",
        "gen_ai.agent.memory",
        "gen_ai.agent.next_goal",
        "gen_ai.agent.evaluation",
        "gen_ai.agent.actions",
        "gen_ai.agent.final_result",
        "gen_ai.agent.step_messages",
        "gen_ai.content.reasoning",
        "gen_ai.content.revised_prompt",
        "gen_ai.extraction.instruction",
        "gen_ai.framework.pipeline.input_data",
        "gen_ai.framework.pipeline.output_data",
        "gen_ai.memory.search.query",
        "gen_ai.request.speech.prompt",
        "gen_ai.response.image",
        "gen_ai.response.tool_calls",
        "gen_ai.vectordb.search.query",
        "mcp.params",
        "mcp.result",
        "mcp.tool.arguments",
        "mcp.tool.result",
        "mcp.request.payload",
        "mcp.response.payload",
        "mcp.sampling.messages",
        "langwatch.params",
        "langwatch.contexts",
        "langwatch.rag_contexts",
        "langwatch.rag.contexts",
        "langwatch.instructions",
        "langwatch.prompt.variables",
        "mastra.metadata.body",
        "user_prompt",
        "new_context",
        "system_prompt_preview",
        "tool_input",
        "response.model_output",
        # OpenLLMetry on LlamaIndex, OpenInference on AG2
        "tool.arguments",
        "tool_call.function.arguments",
        "instructions",  # MLflow on OpenAI's Responses API
        # Braintrust
        "braintrust.expected",
        "tool.input",
        # Logfire on the OpenAI Agents SDK
        "raw_input",
        "response",
        # OpenInference before it numbered them, Langtrace, openlit
        "llm.prompts",
        "embedding.text",
        "gen_ai.request.tools",
        "gen_ai.request.tool_results",
        "gen_ai.request.embedding_inputs",
        # LiveKit; since version 1.5 with "pii" in the name
        "lk.chat_ctx",
        "lk.instructions",
        "lk.user_input",
        "lk.user_transcript",
        "lk.input_text",
        "lk.response.text",
        "lk.response.function_calls",
        "lk.function_tool.arguments",
        "lk.function_tool.output",
        "lk.pii.chat_ctx",
        "lk.pii.instructions",
        "lk.pii.user_input",
        "lk.pii.user_transcript",
        "lk.pii.input_text",
        "lk.pii.response.text",
        "lk.pii.response.function_calls",
        "lk.pii.function_tool.arguments",
        "lk.pii.function_tool.output",
        # Pipecat
        "transcript",
        "text_output",
        # LlamaIndex's own
        "llamaindex.step.input_summary",
    }
)
"""Attributes whose value is one thing: an argument, a result, a definition."""

FAMILIES = (
    "llm.input_messages.",
    "llm.output_messages.",
    "llm.prompts.",
    "llm.completions.",
    "llm.choices.",
    "llm.tools.",
    "llm.request.functions.",
    "gen_ai.prompt.",
    "gen_ai.completion.",
    "retrieval.documents.",
    "reranker.input_documents.",
    "reranker.output_documents.",
    "input.documents.",
    "output.documents.",
    "input.images.",
    "output.images.",
    "embedding.embeddings.",
    "message.tool_calls.",  # OpenInference on Google's SDK, where it calls the tools itself
    "metadata.steps.",  # OpenInference on BeeAI, here and below
    "metadata.result.",
)
"""Prefixes of flattened attributes (OpenInference, OpenLLMetry): an index and perhaps a rest follow."""

EVENT_KEYS = frozenset({"content", "message", "tool_calls", "tool.result"})
"""Attributes that are content on ``gen_ai.*`` events (GenAI before 1.37, Strands); elsewhere they are words."""

SENSITIVE_KEYS = frozenset(
    {
        "exception.message",
        "exception.stacktrace",
        "error.message",
        "error.stack_trace",
        "logfire.msg",
        "langfuse.observation.status_message",
        "message",  # AutoGen's own spans, of what agents send each other
        "text",  # Pipecat's, of what is spoken
        "error",  # Logfire's on the OpenAI Agents SDK, Claude Code's
        "gen_ai.agent.description",
        "gen_ai.agent.action_errors",
        "gen_ai.action.error",
        "gen_ai.framework.error.message",
        "mcp.error.message",
        "gen_ai.tool.description",
        "tool.description",
    }
)
"""No content, but text that may quote it: ``strip`` removes it too. A boolean quotes nothing, as ``error: true``."""

_TOLD_BY_EVENTS = {
    "llamaindex.opentelemetry.tracer": re.compile(
        r"class_name|id_|span_id|timestamp|model_dict\.(?:class_name|model|model_name)|response\.raw\.(?:id|model|usage\..+)"
    )
}
"""Scopes whose events hold whole objects, flattened, with the fields that quote nobody."""

CONTENT_KEYS = MESSAGE_KEYS | VALUE_KEYS

_INLINE_KEYS = VALUE_KEYS - {
    # read as messages, which name the element that they are from
    "ai.response.text",
    "ai.response.object",
    "ai.response.toolCalls",
    "ai.result.text",
    "ai.result.object",
    "ai.result.toolCalls",
    "final_result",
    "llm.invocation_parameters",
    "smolagents.task",
}
_INLINE = 64
"""The longest text of these that stays a plain attribute: what would stand in its place is as long, and a row of its
own costs 6 µs and 150 bytes."""

_RAW_FIELDS = (
    "messages|message|choices|choice|tools|functions|input|output|prompt|system|instructions|contents|content|candidates"
    "|extra_body|text|response"
)
_RAW_REQUEST = re.compile(
    rf"llm\.(?!token_count|cost|usage|request|response)[^.]+\.(?:{_RAW_FIELDS})|(?:agentops|mastra)\.[^.]+\.(?:input|output)"
)
"""litellm writes every field of the provider's request and response as ``llm.<provider>.<field>``, AgentOps and Mastra
what a span was given and gave as ``<emitter>.<kind of span>.input`` and ``.output``."""

_RAW_ENDS = tuple(_RAW_FIELDS.split("|"))
_FLATTENED = (
    "llm.",
    "gen_ai.prompt.",
    "gen_ai.completion.",
    "retrieval.",
    "reranker.",
    "embedding.",
    "input.",
    "output.",
    "agentops.",
    "mastra.",
    "message.tool_calls.",
    "metadata.steps.",
    "metadata.result.",
)

_EDGE = 64
"""The longest text around an array of messages that stays in the form; a hash has 32 characters."""
_MAX_ITEMS = 10_000
"""An array longer than this is data rather than a conversation, and stays one element."""
_MAX_DEPTH = 100
"""A value nested more deeply stays a plain attribute. Far from the recursion limit, so the caller's depth does not
matter."""
_MEMO_MIN = 1024
"""Shorter texts are parsed faster than they are looked up."""
_MESSAGE_ARRAY = re.compile(
    r'"(?:messages|input|inputs|contents|history|chat_messages"\s*,\s*"value)"\s*:\s*(\[\s*\[?)\s*'
)
"""A key outside of any string: inside one, the closing quote would have a backslash before it."""
_ARRAY = re.compile(r"\s*\[\s*\[?\s*")
_SEPARATOR = re.compile(r"[ \t\r\n]*,[ \t\r\n]*")
_CLOSED = re.compile(r"[ \t\r\n]*\]")
_NEXT_ITEM = (',{"role"', ', {"role"')
_MAX_BRACES = 32
"""Braces in an item that are looked at, to guess where it ends; then the rest is taken for it."""
_INDEX = re.compile(r"0|[1-9][0-9]{0,8}")
ONE_ITEM = ("json", "=[", "", "=]")
"""The form of a JSON array of one item."""


def _number(digits: str) -> float | int:
    """1.0 as 1: JavaScript knows no difference, and writes the echo of a reply so."""
    number = float(digits)
    return int(number) if number.is_integer() and abs(number) < 2**53 else number


decoder = json.JSONDecoder(parse_float=_number, strict=False)
"""Made once: ``json.loads`` with options makes a decoder for each call, which costs 2 µs."""

_ESCAPED = "\ue0ff"
"""Begins a body that is escaped: a private-use character, which text hardly ever begins with."""
_UNSAFE = re.compile("[\\\\\0\ud800-\udfff]")
"""What is escaped in it: NUL and lone surrogates, which databases refuse, and the backslash."""
_ESCAPE = re.compile(r"\\([0-9a-f]{4})")


class Contents(Value, frozen=True, eq=False):
    """The content values of one span; equal where these are."""

    attributes: Mapping[str, ContentValue] = {}
    """By attribute key, or by the prefix of a family of flattened ones (with its dot)."""
    consumed: frozenset[str] = frozenset()
    """The attributes that ``attributes`` stands for."""
    events: tuple[Mapping[str, ContentValue], ...] = ()
    """For each event its content values by attribute key; empty if no event has any."""
    parsed: dict[str, Any] = {}  # noqa: RUF012  msgspec makes a new one each time
    """What elements say, by their hash, where they were parsed to be taken apart: whoever reads one takes it away."""
    longest: int = 0
    """Characters of the longest element, if ``take_apart`` made this."""
    has_escapes: bool = False
    """Whether any element has a backslash, if ``take_apart`` made this: JSON's escape, or Python's, as some attributes
    hold a repr."""

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Contents)
            and self.attributes == other.attributes
            and self.consumed == other.consumed
            and self.events == other.events
        )


_NONE = Contents()


class ContentMemo:
    """Remembers the last long conversations of a trace, so that a prompt which repeats and continues one is
    read from where it goes on. It changes no result. Not thread-safe; bounded in texts and characters."""

    def __init__(self, max_texts: int = 8, max_chars: int = 4_000_000) -> None:
        self._max_texts = max_texts
        self._max_chars = max_chars
        self._heads: list[_Head] = []
        self._chars = 0

    def find(self, text: str) -> _Head | None:
        """The longest remembered head that the text begins with."""
        found: _Head | None = None
        for head in self._heads:
            if text.startswith(head.text) and (found is None or len(head.text) > len(found.text)):
                found = head
        return found

    def add(self, head: _Head, continues: _Head | None) -> None:
        """Remember a head in place of the one that it continues."""
        heads = self._heads
        if continues is not None:
            heads.remove(continues)
            self._chars -= len(continues.text)
        heads.append(head)
        self._chars += len(head.text)
        while len(heads) > self._max_texts or self._chars > self._max_chars:
            self._chars -= len(heads.pop(0).text)


class _Head(Value, frozen=True):
    """A JSON array of messages up to its last item."""

    text: str
    start: int
    """Where the first item begins."""
    separator: str | None
    elements: tuple[Content, ...]
    longest: int
    has_escapes: bool
    """As of ``Contents``."""


class _Taking:
    """What is found while the values of a span are taken apart."""

    __slots__ = ("has_escapes", "longest", "memo", "parsed")

    def __init__(self, memo: ContentMemo | None) -> None:
        self.memo = memo
        self.parsed: dict[str, Any] = {}
        self.longest = 0
        self.has_escapes = False

    def chained(self, texts: Iterable[str]) -> tuple[Content, ...]:
        """The elements of a value, each the parent of the next."""
        elements: list[Content] = []
        parent = None
        for text in texts:
            element = self.element(text, parent)
            elements.append(element)
            parent = element.hash
        return tuple(elements)

    def element(self, text: str, parent: str | None) -> Content:
        """One element, noted."""
        digest, body = _hashed(text, parent)
        self.note(len(body), "\\" in body)
        return Content(digest, parent, body)

    def note(self, longest: int, has_escapes: bool) -> None:
        """Note the longest of some elements, and whether any has a backslash."""
        if longest > self.longest:
            self.longest = longest
        self.has_escapes = self.has_escapes or has_escapes


def is_content(key: str) -> bool:
    """Whether the attribute holds content."""
    return key in CONTENT_KEYS or key.startswith(FAMILIES) or _RAW_REQUEST.fullmatch(key) is not None


def strip(raw: RawSpan) -> RawSpan:
    """The span without any content: names, ids, counts and error types stay, prompts, replies, tool arguments,
    results, error messages and tracebacks go."""
    told = _TOLD_BY_EVENTS.get(raw.scope.name)
    return replace(
        raw,
        attributes=_stripped(raw.attributes),
        events=tuple(replace(event, attributes=_stripped_event(event, told)) for event in raw.events),
        links=tuple(replace(link, attributes=_stripped(link.attributes)) for link in raw.links),
        status_message=None,
    )


def take_apart(raw: RawSpan, memo: ContentMemo | None = None) -> Contents:
    """The content values of a span, taken apart into elements. A value that cannot be written (a type that no
    attribute has, nesting beyond 100 levels) is left where it is."""
    attributes = raw.attributes
    values: dict[str, ContentValue] = {}
    taking = _Taking(memo)
    whole, flattened = _content_keys(tuple(attributes))
    for key in whole:
        value = attributes[key]
        if key in _INLINE_KEYS and isinstance(value, str) and len(value) <= _INLINE:
            continue
        _take(values, key, value, taking)
    consumed = values.keys()
    if flattened:
        for key in flattened:
            if key.endswith(_RAW_ENDS) and _RAW_REQUEST.fullmatch(key):
                _take(values, key, attributes[key], taking)
        consumed = set(values)
        _take_families(attributes, flattened, values, consumed, taking)
    events: tuple[Mapping[str, ContentValue], ...] = ()
    if raw.events:
        events = tuple(_take_event(event, taking) for event in raw.events)
        if not any(events):
            events = ()
    if not values and not events:
        return _NONE
    return Contents(values, frozenset(consumed), events, taking.parsed, taking.longest, taking.has_escapes)


@lru_cache(maxsize=1024)  # the spans of an app have few sets of names
def _content_keys(names: tuple[str, ...]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Of the names of attributes those that are content, sorted (the same in every process), and those that may be
    flattened content."""
    return tuple(sorted(CONTENT_KEYS.intersection(names))), tuple(
        key for key in names if key.startswith(_FLATTENED) and key not in CONTENT_KEYS
    )


def values_of(contents: Contents) -> Iterable[ContentValue]:
    """All values, of the span and of its events."""
    if not contents.events:
        return contents.attributes.values()
    return [value for values in (contents.attributes, *contents.events) for value in values.values()]


def put_together(key: str, value: ContentValue) -> dict[str, AttributeValue]:
    """The attributes that a content value was taken from; more than one for a family of flattened ones."""
    form, elements = value.form, value.elements
    kind = form[0]
    if kind == "text":
        return {key: element_text(elements[0])}
    if kind == "json":
        opening, closing = edges(value)
        return {key: opening + form[2].join(element_text(item) for item in chain(value)) + closing}
    if kind == "list":
        return {key: tuple(element_value(item) for item in elements)}
    if kind == "indexed":
        return {
            f"{key}{index}.{rest}" if rest else f"{key}{index}": item
            for index, element in zip(_indices(form[1]), elements, strict=True)
            for rest, item in element_value(element).items()
        }
    return {key: element_value(elements[0])}


def side_hashes(form: tuple[str, ...]) -> tuple[str, ...]:
    """The hashes that a form names: of the elements which come after the chain, in this order."""
    if form[0] != "json" or (form[1][0] == "=" and form[3][0] == "="):
        return ()
    return tuple(dict.fromkeys(edge[1:] for edge in (form[1], form[3]) if edge[0] == "#"))


def chain(value: ContentValue) -> tuple[Content, ...]:
    """The elements of a value in order, without those that the form names by hash. The last one's hash and the
    form are all that a span has to keep."""
    sides = len(side_hashes(value.form))
    return value.elements[:-sides] if sides else value.elements


def edges(value: ContentValue) -> tuple[str, str]:
    """What stands before and after the array of messages in JSON text; empty for other forms."""
    if value.form[0] != "json":
        return "", ""
    sides = {side.hash: side for side in value.elements[-2:]}
    opening, closing = (
        element_text(sides[edge[1:]]) if edge.startswith("#") else edge[1:] for edge in (value.form[1], value.form[3])
    )
    return opening, closing


def element_text(element: Content) -> str:
    """The text of an element as it was emitted: a body has NUL and lone surrogates escaped."""
    body = element.body
    return _ESCAPE.sub(lambda m: chr(int(m[1], 16)), body[1:]) if body.startswith(_ESCAPED) else body


def element_value(element: Content) -> AttributeValue:
    """The value of an element of the forms ``list``, ``value`` and ``indexed``."""
    return _from_json(json.loads(element_text(element)))


def _stripped(
    attributes: Mapping[str, AttributeValue], also: frozenset[str] = frozenset()
) -> dict[str, AttributeValue]:
    return {
        key: value
        for key, value in attributes.items()
        if not is_content(key) and key not in also and (not _may_quote(key) or isinstance(value, bool))
    }


def _may_quote(key: str) -> bool:
    return key in SENSITIVE_KEYS or ".pii." in key  # so LiveKit calls what may tell of people


def _stripped_event(event: Event, told: re.Pattern[str] | None) -> dict[str, AttributeValue]:
    if told is None or event.name == "exception":
        return _stripped(event.attributes, _event_keys(event))
    return {key: value for key, value in event.attributes.items() if told.fullmatch(key)}


def _event_keys(event: Event) -> frozenset[str]:
    return EVENT_KEYS if event.name.startswith("gen_ai.") else frozenset()


def _take_event(event: Event, taking: _Taking) -> dict[str, ContentValue]:
    values: dict[str, ContentValue] = {}
    attributes = event.attributes
    keys = CONTENT_KEYS.intersection(attributes) | _event_keys(event).intersection(attributes)
    for key in sorted(keys):
        _take(values, key, attributes[key], taking)
    return values


def _take(values: dict[str, ContentValue], key: str, value: AttributeValue, taking: _Taking) -> None:
    split = key in MESSAGE_KEYS or key in EVENT_KEYS
    if isinstance(value, str):
        found = _split_text(value, taking) if split else None
        values[key] = found or ContentValue(("text",), (taking.element(value, None),))
        return
    try:
        if split and value and _is_sequence(value) and all(isinstance(item, (str, Mapping)) for item in value):
            values[key] = ContentValue(("list",), taking.chained(_json(item) for item in value))
        else:
            values[key] = ContentValue(("value",), (taking.element(_json(value), None),))
    except (TypeError, ValueError):
        return


def _take_families(
    attributes: Mapping[str, AttributeValue],
    candidates: Iterable[str],
    values: dict[str, ContentValue],
    consumed: set[str],
    taking: _Taking,
) -> None:
    families: dict[str, dict[int, dict[str, AttributeValue]]] = {}
    keys: dict[str, list[str]] = {}
    for key in candidates:
        if not key.startswith(FAMILIES):
            continue
        prefix = next(prefix for prefix in FAMILIES if key.startswith(prefix))
        digits, dot, rest = key[len(prefix) :].partition(".")
        # a dot without a rest would not come back
        if _INDEX.fullmatch(digits) and bool(dot) == bool(rest) and prefix not in attributes:
            families.setdefault(prefix, {}).setdefault(int(digits), {})[rest] = attributes[key]
            keys.setdefault(prefix, []).append(key)
    for prefix, items in families.items():
        indices = sorted(items)
        try:
            elements = taking.chained(_json(items[index]) for index in indices)
        except (TypeError, ValueError):
            continue
        values[prefix] = ContentValue(("indexed", _ranges(indices)), elements)
        consumed.update(keys[prefix])


def _split_text(text: str, taking: _Taking) -> ContentValue | None:
    """JSON text with an array of messages in it; None if there is none."""
    memo = taking.memo if len(text) >= _MEMO_MIN else None
    known = memo.find(text) if memo is not None else None
    if known is not None:
        start, separator, elements, end = known.start, known.separator, list(known.elements), len(known.text)
        parent, longest, has_escapes = elements[-1].hash, known.longest, known.has_escapes
    else:
        if text.startswith("[{") and text.endswith("}]") and (only := _one_item(text[1:-1], taking)) is not None:
            return only
        start = end = 1 if text.startswith("[{") else _array_start(text)
        separator, elements, parent, longest, has_escapes = None, list[Content](), None, 0, False
        if not start:
            return None
    cut = False
    is_array = text.endswith("}]")
    while len(elements) <= _MAX_ITEMS:
        begin = end
        if elements:
            if separator is None:
                found = _SEPARATOR.match(text, end)
                separator = found[0] if found else None
            if separator is None or not text.startswith(separator, end):
                break
            begin += len(separator)
        if not text.startswith(("{", '"'), begin):
            break
        try:
            value, item = _item(text, begin, is_array)
        except (ValueError, RecursionError):
            cut = True  # cut off by a length limit, or no JSON: what was read stands, the rest closes
            break
        is_array = isinstance(value, GenAIMessage)  # items are mostly of one kind
        end = begin + len(item)
        digest, body = _hashed(item, parent)
        elements.append(Content(digest, parent, body))
        longest = max(longest, len(body))
        has_escapes = has_escapes or "\\" in body
        taking.parsed[digest] = value
        parent = digest
    if not elements or not (cut or text.startswith("]", end) or _CLOSED.match(text, end)):
        return None
    taking.note(longest, has_escapes)
    if len(elements) == 1:
        separator = None  # what follows the one item may be cut off, and is no part of the head
    elif memo is not None:  # one item is parsed again as soon as it is looked up
        memo.add(_Head(text[:end], start, separator, tuple(elements), longest, has_escapes), known)
    before, after = text[:start], text[end:]
    if before == "[" and after == "]":
        return ContentValue(("json", "=[", separator or "", "=]"), tuple(elements))
    opening, closing = _edge(before, taking), _edge(after, taking)
    sides = {edge.hash: edge for edge in (opening, closing) if isinstance(edge, Content)}
    form = ("json", _edge_name(opening), separator or "", _edge_name(closing))
    return ContentValue(form, (*elements, *sides.values()))


def _one_item(item: str, taking: _Taking) -> ContentValue | None:
    """What ``_split_text`` gives for an array of one GenAI message, as nearly all answers are; None for another."""
    message = genai_message.parse(item)
    if message is None:
        return None
    element = taking.element(item, None)
    taking.parsed[element.hash] = message
    return ContentValue(ONE_ITEM, (element,))


def _item(text: str, begin: int, is_array: bool) -> tuple[Any, str]:
    """What the item that begins there says, and its text. Raises ``ValueError`` or ``RecursionError`` if it is none."""
    if is_array:
        item = text[begin : _item_end(text, begin)]
        if (message := genai_message.parse(item)) is not None:
            return message, item
    value, end = decoder.raw_decode(text, begin)
    return value, text[begin:end]


def _item_end(text: str, begin: int) -> int:
    """Where an item of an array of messages probably ends: before the next one, or the array's end. An object that
    parses from its begin to there whole ends there indeed."""
    last = len(text) - 2
    at = text.find("}", begin)
    for _ in range(_MAX_BRACES):  # a single character is looked for 30 times as fast as three
        if at == last or text.startswith(_NEXT_ITEM, at + 1):
            return at + 1
        at = text.find("}", at + 1)
    return last + 1


def _array_start(text: str) -> int:
    """Where the first item of the array of messages begins, 0 if there is none: the text is the array, or an
    object with it at most three objects deep."""
    if found := _ARRAY.match(text):
        return found.end()
    if not text.lstrip(" \t\r\n").startswith("{"):
        return 0
    for tries, found in enumerate(_MESSAGE_ARRAY.finditer(text)):
        for depth in (1, 2, 3):
            try:
                json.loads(text[: found.end()] + "]" * found[1].count("[") + "}" * depth, strict=False)
            except (ValueError, RecursionError):
                continue
            return found.end()
        if tries == 4:  # keys of the same name deep in the definitions of tools
            break
    return 0


def _edge(text: str, taking: _Taking) -> str | Content:
    if len(text) <= _EDGE and _hashed(text, None)[1] == text:
        return text
    return taking.element(text, None)


def _edge_name(edge: str | Content) -> str:
    return "#" + edge.hash if isinstance(edge, Content) else "=" + edge


def _hashed(text: str, parent: str | None) -> tuple[str, str]:
    """The hash of an element, and its body: the text, escaped if a database would refuse it."""
    body = text
    if "\0" in text or text.startswith(_ESCAPED):
        body = _escaped(text)
    try:
        data = body.encode()
    except UnicodeEncodeError:
        body = _escaped(text)
        data = body.encode()
    digest = sha256(f"{parent or ''}\n".encode())
    digest.update(data)  # joined before, 20 KiB are copied once more
    return digest.hexdigest()[:32], body


def _escaped(text: str) -> str:
    return _ESCAPED + _UNSAFE.sub(lambda m: f"\\{ord(m[0]):04x}", text)


def _is_sequence(value: AttributeValue) -> bool:
    return isinstance(value, (tuple, list))


def _json(value: AttributeValue) -> str:
    plain = _to_json(value, _MAX_DEPTH)
    return json.dumps(plain, ensure_ascii=False, allow_nan=False, sort_keys=True, separators=(",", ":"))


def _to_json(value: AttributeValue, depth: int) -> Any:
    """What JSON lacks is an object with one key that begins with a dollar."""
    if not depth:
        raise ValueError("nested too deeply")
    if value is None or isinstance(value, (str, bool)):
        return value
    if isinstance(value, int):
        return value if value.bit_length() <= 10_000 else {"$int": hex(value)}  # Python parses 4,300 digits at most
    if isinstance(value, float):
        return value if math.isfinite(value) else {"$float": repr(value)}
    if isinstance(value, bytes):
        return {"$bytes": b64encode(value).decode()}
    if _is_sequence(value):
        return [_to_json(item, depth - 1) for item in value]
    if isinstance(value, Mapping):
        mapping = cast("Mapping[Any, Any]", value)
        plain = all(isinstance(key, str) for key in mapping)
        if plain and not (len(mapping) == 1 and next(iter(mapping)).startswith("$")):
            return {key: _to_json(item, depth - 1) for key, item in mapping.items()}
        return {"$map": [[_to_json(key, depth - 1), _to_json(item, depth - 1)] for key, item in mapping.items()]}
    raise TypeError(type(value).__name__)


def _from_json(value: Any) -> AttributeValue:
    if isinstance(value, list):
        return tuple(_from_json(item) for item in cast("list[Any]", value))
    if not isinstance(value, dict):
        return value
    mapping = cast("dict[str, Any]", value)
    if len(mapping) == 1:
        ((key, item),) = mapping.items()
        if key == "$int":
            return int(item, 16)
        if key == "$float":
            return float(item)
        if key == "$bytes":
            return b64decode(item)
        if key == "$map":
            return {_from_json(k): _from_json(v) for k, v in item}
    return {key: _from_json(item) for key, item in mapping.items()}


def _ranges(indices: list[int]) -> str:
    """``0-3,5`` for 0, 1, 2, 3 and 5."""
    runs: list[list[int]] = []
    for index in indices:
        if runs and runs[-1][1] == index - 1:
            runs[-1][1] = index
        else:
            runs.append([index, index])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)


def _indices(ranges: str) -> list[int]:
    bounds = [run.partition("-") for run in ranges.split(",")]
    return [index for first, _, last in bounds for index in range(int(first), int(last or first) + 1)]
