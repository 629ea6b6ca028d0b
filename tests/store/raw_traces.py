"""Spans as they arrive, made from the traces that the derivation is tested with; and versions of them that differ."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any, NamedTuple

from msgspec.structs import asdict, replace

from derive.traces import Fact, Pick
from step_exporter.facts import Annotation, Deletion, Message, RawSpan, Resource, Role, Scope, SpanFacts
from step_exporter.store.codec import Sources, encode, fact_hash
from step_exporter.store.prepare import prepare

OPERATIONS = {
    Role.WORKFLOW: "invoke_workflow",
    Role.AGENT: "invoke_agent",
    Role.STEP: "run_step",
    Role.LLM: "chat",
    Role.TOOL: "execute_tool",
}
ATTRIBUTES = {
    "step_id": "step.id",
    "run_id": "step.run_id",
    "provider_id": "step.provider_id",
    "organization_id": "step.organization_id",
    "organization_name": "step.organization_name",
    "project_id": "step.project_id",
    "tags": "step.tags",
    "feedback": "step.feedback",
    "transaction_id": "step.tid",
    "agent_name": "gen_ai.agent.name",
    "agent_id": "gen_ai.agent.id",
    "conversation_id": "gen_ai.conversation.id",
    "provider_name": "gen_ai.provider.name",
    "served_model": "gen_ai.response.model",
    "request_id": "gen_ai.response.id",
    "call_id": "gen_ai.tool.call.id",
    "tool_name": "gen_ai.tool.name",
    "error_type": "error.type",
}


def as_raw(facts: SpanFacts) -> RawSpan:
    """A span that says much of what the facts say, in GenAI's and our own attributes."""
    said = {key: value for name, key in ATTRIBUTES.items() if (value := getattr(facts, name))}
    if facts.role in OPERATIONS:
        said["gen_ai.operation.name"] = OPERATIONS[facts.role]
    if facts.stop_reason:
        said["gen_ai.response.finish_reasons"] = (facts.stop_reason,)
    if facts.usage is not None:
        counts = {"input": facts.usage.prompt, "output": facts.usage.completion, "cache_read.input": facts.usage.cached}
        said.update((f"gen_ai.usage.{side}_tokens", count) for side, count in counts.items() if count is not None)
    if facts.input_messages:
        said["gen_ai.input.messages"] = json.dumps([_message(message) for message in facts.input_messages])
    if facts.output_messages:
        said["gen_ai.output.messages"] = json.dumps([_message(message) for message in facts.output_messages])
    if facts.cancelled:
        said["error.type"] = "CancelledError"
    return RawSpan(
        trace_id=facts.trace_id,
        span_id=facts.span_id,
        parent_span_id=facts.parent_span_id,
        name=facts.name,
        kind=facts.kind,
        start_ns=facts.start_ns,
        end_ns=facts.end_ns,
        ended=facts.ended,
        status_code="error" if facts.failed or facts.cancelled else "unset",
        status_message=facts.error_message,
        attributes=said,
        resource=Resource({"service.name": facts.service_name} if facts.service_name else {}),
        scope=Scope(facts.scope_name),
        abandoned_ns=facts.abandoned_ns,
    )


def _message(message: Message) -> dict[str, Any]:
    if message.role == "tool":
        parts = [{"type": "tool_call_response", "id": message.tool_call_id, "response": message.text}]
    else:
        parts = [{"type": "text", "content": message.text}] if message.text else []
        parts += [
            {"type": "tool_call", "id": call.id, "name": call.name, "arguments": json.loads(call.arguments)}
            for call in message.tool_calls
        ]
    return {"role": message.role, "parts": parts, **({"name": message.name} if message.name else {})}


def raw_trace(facts: Iterable[Fact], trace_id: str) -> list[RawSpan]:
    """The spans among the facts, as a trace of their own."""
    spans = [fact for fact in facts if isinstance(fact, SpanFacts)]
    return [replace(as_raw(span), trace_id=trace_id) for span in spans]


class Said(NamedTuple):
    """What a person set or deleted, and the row that it is."""

    fact: Annotation | Deletion
    table: str
    row: dict[str, Any]


def said_of(facts: Iterable[Fact], trace_id: str) -> list[Said]:
    """What people said among the facts, of a trace of its own."""
    found: list[Said] = []
    for fact in facts:
        said = replace(fact, trace_id=trace_id)
        if isinstance(said, Annotation):
            micros = said.set_at_ns or 0  # as the column keeps no nanoseconds
            said = replace(said, set_at_ns=micros * 1000)
            row = asdict(said)
            del row["set_at_ns"]
            found.append(Said(said, "annotations", {**row, "set_at": datetime.fromtimestamp(micros / 1e6, UTC)}))
        elif isinstance(said, Deletion):
            row = asdict(said)
            del row["deleted_at_ns"]  # when is no matter; the column says now
            found.append(Said(said, "deletions", row))
    return found


def versions(raw: RawSpan, pick: Pick) -> list[RawSpan]:
    """The span, more than once perhaps, and perhaps others under its key: open, or ended otherwise."""
    found = [raw] * pick((1, 1, 2))
    change = pick((None, None, None, "open", "start", "end", "attributes", "parent", "resource", "many"))
    if change in ("open", "many"):
        attributes = {key: value for key, value in raw.attributes.items() if "response" not in key}
        found.append(replace(raw, end_ns=None, ended=False, status_code="unset", attributes=attributes))
    if change == "start":
        found.append(replace(raw, start_ns=(raw.start_ns or 0) + 1, ended=True))
    if change in ("end", "many"):
        found.append(replace(raw, end_ns=(raw.end_ns or 0) + pick((1, 3)), ended=True))
    if change in ("attributes", "many"):
        said = pick(({"gen_ai.usage.input_tokens": 77}, {"step.tags": ("other",)}, {"gen_ai.operation.name": "chat"}))
        found.append(replace(raw, attributes={**raw.attributes, **said}))
    if change == "parent":
        found.append(replace(raw, parent_span_id=pick((None, f"{1:016x}", f"{98:016x}"))))
    if change == "resource":
        found.append(replace(raw, resource=Resource({"service.name": "elsewhere"})))
    return found


def facts_that_hold(raws: Iterable[RawSpan]) -> dict[str, list[SpanFacts]]:
    """What is to hold of all that arrived, by trace: of the spans under a key, the winner."""
    sources = Sources()
    by_key: dict[tuple[str, str], dict[str, RawSpan]] = defaultdict(dict)
    for raw in raws:
        safe = encode(raw, sources).raw
        by_key[raw.trace_id, raw.span_id][fact_hash(safe)] = safe
    held: dict[str, list[SpanFacts]] = defaultdict(list)
    for (trace_id, _), candidates in by_key.items():
        winner = candidates[min(candidates, key=lambda hash_: (*_rank(candidates[hash_]), hash_))]
        others = sum(raw.ended for raw in candidates.values()) - 1 if winner.ended else 0
        ((prepared,), _) = prepare([replace(winner, collisions=others)], sources)
        held[trace_id].append(prepared.facts)
    return held


def _rank(raw: RawSpan) -> tuple[bool, int, int]:
    """Smaller is better: ended before open, the later end, then found gone later."""
    return not raw.ended, *(1 if moment is None else -moment for moment in (raw.end_ns, raw.abandoned_ns))
