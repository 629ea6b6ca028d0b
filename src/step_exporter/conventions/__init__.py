"""From a span as it arrived to what it means: ``read(raw) -> SpanFacts``.

One module per vocabulary, each with ``MARKERS`` (attributes that tell it is spoken), ``role(raw)`` and
``fill(raw, draft)``. A span may speak several. They are asked in the order of ``_present``: the first
that knows the span's role decides it, and each fills only what those before it left unknown. So every
field has one value, by that priority; nothing is summed. What people set with the package's own attributes
(``native``) beats every vocabulary, except that it decides a role only where none does.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from types import ModuleType

from msgspec.structs import replace

from step_exporter.conventions import (
    agent_framework,
    agentops,
    braintrust,
    claude_code,
    content,
    failures,
    frameworks,
    from_content,
    genai,
    genai_plain,
    genkit,
    laminar,
    langfuse,
    langsmith,
    langwatch,
    letta,
    litellm,
    llama_index,
    logfire,
    logs,
    mastra,
    messages,
    mlflow,
    native,
    openinference,
    openllmetry,
    spring_ai,
    vercel,
)
from step_exporter.conventions._draft import Draft, freeze, plain
from step_exporter.conventions.content import Contents
from step_exporter.facts import RawSpan, Role, SpanFacts

__all__ = ["all_without_content", "plain", "read", "without_content"]

_BESIDES_GENAI = frozenset[str]().union(
    native.MARKERS,
    langfuse.MARKERS,
    langsmith.MARKERS,
    vercel.MARKERS,
    litellm.MARKERS,
    mlflow.MARKERS,
    openinference.MARKERS,
    openllmetry.MARKERS,
    logfire.MARKERS,
    letta.MARKERS,
    logs.MARKERS,
    agent_framework.MARKERS,
    agentops.MARKERS,
    braintrust.MARKERS,
    genkit.MARKERS,
    laminar.MARKERS,
    langwatch.MARKERS,
    mastra.MARKERS,
    spring_ai.MARKERS,
)
_GENAI_ONLY = (genai,)
_NAMES = {
    vocabulary: vocabulary.__name__.rpartition(".")[2]
    for vocabulary in (
        agent_framework,
        agentops,
        braintrust,
        claude_code,
        frameworks,
        genai,
        genkit,
        laminar,
        langfuse,
        langsmith,
        langwatch,
        letta,
        litellm,
        llama_index,
        logfire,
        logs,
        mlflow,
        openinference,
        openllmetry,
        spring_ai,
        vercel,
    )
}
"""What ``convention`` says of a span whose role one of them decides."""
_SCOPES = frozenset({claude_code.SCOPE, litellm.SCOPE, llama_index.SCOPE, logfire.SCOPE, frameworks.ADK})
_OF_EMITTERS = (agentops, braintrust, genkit, laminar, langwatch, mastra, spring_ai)
"""Vocabularies that no two emitters speak: the one that is there knows better than GenAI what its spans are."""


def read(raw: RawSpan, contents: Contents | None = None) -> SpanFacts:
    """What a span means. Pure, total (never raises, whatever the attributes hold), one span at a time.

    Args:
        raw: The span as it arrived.
        contents: Its content values taken apart, where that was done already; messages are read from them.
    """
    facts = _read(raw, contents)
    if from_content.ATTRIBUTE in raw.attributes:
        return from_content.restored(facts, raw.attributes[from_content.ATTRIBUTE])
    return facts


def without_content(raw: RawSpan) -> RawSpan:
    """The span without any content, as ``content.strip`` has it. What only its content told of names, ids and counts is
    kept in an attribute of ours."""
    bare = content.strip(raw)
    try:
        told = from_content.kept(_read(raw, None), _read(bare, None))
    except Exception:  # a bug in a reader, which is said when it reads what is left
        return bare
    return bare if told is None else replace(bare, attributes={**bare.attributes, from_content.ATTRIBUTE: told})


def all_without_content(raws: Iterable[RawSpan]) -> Iterator[RawSpan]:
    """The spans without any content. Log records, which are nothing but content, are left out."""
    return (without_content(raw) for raw in raws if logs.MARKER not in raw.attributes)


def _read(raw: RawSpan, contents: Contents | None) -> SpanFacts:
    attributes = raw.attributes
    found: Sequence[ModuleType] = ()
    native_too = False
    if raw.scope.name in _SCOPES or _named(raw.name) or not _BESIDES_GENAI.isdisjoint(attributes):
        found = _present(raw)
        native_too = not native.MARKERS.isdisjoint(attributes)
    elif not genai.MARKERS.isdisjoint(attributes):
        plain_facts = genai_plain.read(raw, contents)  # most spans
        if plain_facts is not None:
            return plain_facts
        found = _GENAI_ONLY
    elif raw.status_code != "error":
        return plain(raw)
    draft = Draft()
    for vocabulary in found:
        role: Role | None = vocabulary.role(raw)
        if role is not None:
            draft.role = role
            draft.convention = _NAMES[vocabulary]
            break
    else:
        if native_too and "step.id" in attributes:
            # nothing else, so the step itself: baggage copies the id onto the spans below, LLM spans too
            draft.role, draft.convention = Role.STEP, "native"
    if native_too:
        native.fill(raw, draft)
    for vocabulary in found:
        vocabulary.fill(raw, draft)
    if found or draft.role:
        native.fill_from_resource(raw, draft)
        if draft.role is Role.LLM or draft.role is Role.AGENT or (draft.role is Role.STEP and mastra in found):
            _fill_messages(raw, contents, draft)
        elif draft.convention == logs.CONVENTION:
            taken = content.take_apart(raw) if contents is None else contents
            draft.input_messages, draft.output_messages = logs.read_messages(raw, taken)
    failures.fill(raw, draft)
    return freeze(raw, draft)


def _named(name: str) -> bool:
    return name == letta.NAME or name == frameworks.PIPECAT_TURN or name.startswith("haystack.")


def _present(raw: RawSpan) -> list[ModuleType]:
    """The vocabularies that a span speaks, by priority."""
    attributes = raw.attributes
    if logs.MARKER in attributes:
        return [logs]
    if "logfire.span_type" in attributes and logfire.is_pending(raw):
        return [logfire]  # a marker carries the attributes of the span that has begun, and is not that span
    found: list[ModuleType] = []
    add = found.append
    if "langsmith.span.kind" in attributes:
        add(langsmith)
    if "ai.operationId" in attributes:
        add(vercel)
    if raw.scope.name == claude_code.SCOPE:
        add(claude_code)
    if raw.scope.name == llama_index.SCOPE:
        add(llama_index)
    found += [vocabulary for vocabulary in _OF_EMITTERS if not vocabulary.MARKERS.isdisjoint(attributes)]
    if "litellm.call_id" in attributes or raw.scope.name == litellm.SCOPE:
        add(litellm)
        if litellm.role(raw) is None:  # the caller's span: what it says of itself beats what litellm wrote onto it
            if "openinference.span.kind" in attributes:
                add(openinference)
            if "traceloop.span.kind" in attributes:
                add(openllmetry)
    if not genai.MARKERS.isdisjoint(attributes):
        add(genai)
    if "langfuse.observation.type" in attributes:
        add(langfuse)
    if "mlflow.spanType" in attributes:
        add(mlflow)
    if not any(v is openinference for v in found) and not openinference.MARKERS.isdisjoint(attributes):
        add(openinference)
    if not any(v is openllmetry for v in found) and not openllmetry.MARKERS.isdisjoint(attributes):
        add(openllmetry)
    if "logfire.msg_template" in attributes or "logfire.span_type" in attributes or raw.scope.name == logfire.SCOPE:
        add(logfire)
    if frameworks.known(raw):
        add(frameworks)
    if raw.scope.name == agent_framework.SCOPE and "workflow.id" in attributes:
        add(agent_framework)
    if raw.name == letta.NAME or "llm_config.model" in attributes:
        add(letta)
    return found


def _fill_messages(raw: RawSpan, contents: Contents | None, draft: Draft) -> None:
    if contents is None:
        contents = content.take_apart(raw)
    draft.input_messages, draft.output_messages = messages.read_messages(raw, contents)
    if draft.role is Role.LLM and not draft.asked_call_ids:
        draft.asked_call_ids = messages.asked_call_ids(draft.output_messages)
