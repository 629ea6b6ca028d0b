"""Compares a database's rows with what a recording's server and tools saw themselves.

Only facts that a recording lets one know are asked for: a token count that no span carries, or a tool call that no
span covers, asks for nothing.
"""

from __future__ import annotations

import json
import re
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from typing import Any, NamedTuple

from recordings import Recording

Row = dict[str, Any]
Interval = tuple[int, int]
"""Start and end, ns."""

MS = 1_000_000
NARROWER_NS = 2 * MS  # clocks of two processes
WIDER_NS = 250 * MS  # the client's spans are wider than what the server saw
FIRST_WIDER_NS = 6_000 * MS  # the first call of a process also imports modules
STREAM_EARLY_NS = 120 * MS  # some instrumentations end a streaming span when the stream opens

CONTENT = re.compile(
    r"(input|output)\.value|entity\.(input|output)|span(Inputs|Outputs)|gen_ai\.(prompt|completion)$"
    r"|(request|response)_data|messages|raw"
)
"""What a message or a whole request says of usage is no report of it."""
SAYS_WHAT_IT_IS = re.compile(r"operation\.name$|span\.kind$|spanType$|operationId$")
AGENTS = {"invoke_agent", "AGENT", "agent"}
AROUND_LLM = AGENTS | {"invoke_workflow", "workflow", "CHAIN"}
SAME_REASON = (
    {"stop", "end_turn", "completed"},
    {"tool_calls", "tool_call", "tool_use", "tool-calls", "function_call", "stop", "completed"},
    {"length", "max_tokens"},
)


class Fact(NamedTuple):
    """One thing that a recording lets one know, and what the database says of it."""

    kind: str
    wanted: Any
    found: Any
    right: bool


class Leaf(NamedTuple):
    path: str
    value: Any


class Evidence:
    """What the spans of a recording say, wherever they say it."""

    def __init__(self, recording: Recording) -> None:
        self.spans: list[Row] = [
            span
            for resource in recording.spans["resourceSpans"]
            for scope in resource["scopeSpans"]
            for span in scope["spans"]
        ]
        self.trace_ids = sorted({span["traceId"] for span in self.spans})
        self.text = json.dumps(recording.spans).lower()

    @cached_property
    def leaves(self) -> list[Leaf]:
        """Every value in an attribute of a span or an event, those in JSON texts too."""
        holders = [holder for span in self.spans for holder in (span, *span.get("events", ()))]
        return [leaf for holder in holders for leaf in _leaves_of(holder)]

    @cached_property
    def spans_with_reason(self) -> int:
        """How many spans say why the model stopped."""
        return sum(
            any(re.search("finish_?reason|stop_reason", item["key"], re.I) for item in span.get("attributes", ()))
            for span in self.spans
        )

    def carries_count(self, number: int) -> bool:
        """Whether a token count is reported."""
        return any(
            str(leaf.value) == str(number)
            and re.search("token|usage", leaf.path, re.I)
            and not CONTENT.search(leaf.path)
            for leaf in self.leaves
        )

    def carries_text(self, text: str) -> bool:
        """Whether this text is a value, or the name of a span."""
        return any(leaf.value == text for leaf in self.leaves) or any(span["name"] == text for span in self.spans)

    def mentions(self, text: str) -> bool:
        """Whether the text is anywhere, in any case."""
        return text.lower() in self.text

    def names_provider(self, provider: str) -> bool:
        """Whether a span says whose model it is."""
        return any(
            provider in str(leaf.value).lower() for leaf in self.leaves if re.search(r"provider|system$", leaf.path)
        )

    def carries_prompts(self) -> bool:
        """Whether prompts are recorded."""
        prompts = re.compile(r"gen_ai\.input\.messages|llm\.input_messages|ai\.prompt")
        return any(prompts.match(leaf.path) for leaf in self.leaves)

    def covering(
        self, times: Interval, others: Iterable[Interval], *, naming: str | None = None, early_ns: int = NARROWER_NS
    ) -> Row | None:
        """A span that covers a time closely and none of the others."""
        start, end = times
        for span in self.spans:
            begin, finish = int(span["startTimeUnixNano"]), int(span["endTimeUnixNano"])
            covers = begin <= start + NARROWER_NS and finish >= end - early_ns and finish > begin
            too_wide = finish - begin > end - start + WIDER_NS and begin < start - WIDER_NS
            if not covers or too_wide or any(begin <= other and finish >= last for other, last in others):
                continue
            if naming is None or naming in json.dumps(span):
                return span
        return None

    def prompts_of(self, call: Row) -> set[int]:
        """The prompt counts that may stand for a call. Anthropic's own leaves cached tokens out, most
        instrumentations put them in; a row may follow either, as its span does."""
        counts = {call["prompt_tokens"]}
        if call.get("prompt_includes_cached") is False:
            cached = (call["cached_tokens"] or 0) + (call["cache_write_tokens"] or 0)
            counts.add(call["prompt_tokens"] + cached)
        return {count for count in counts if self.carries_count(count)}

    def completions_of(self, call: Row) -> set[int]:
        """The same for completions: some of Gemini's include reasoning."""
        count = call["completion_tokens"]
        return {count for count in (count, count + (call["reasoning_tokens"] or 0)) if self.carries_count(count)}


class Rows(NamedTuple):
    """What the database has of a recording."""

    steps: list[Row]
    """With their metrics, in the order of their requests."""
    runs: list[Row]
    message_roles: set[str]


def read_rows(db: sqlite3.Connection, trace_ids: Sequence[str]) -> Rows:
    """The rows of some traces."""
    chosen = f"trace_id IN ({','.join('?' * len(trace_ids))})"

    def rows(sql: str) -> list[Row]:
        cursor = db.execute(sql, trace_ids)
        names = [column[0] for column in cursor.description]
        return [dict(zip(names, row, strict=True)) for row in cursor]

    return Rows(
        rows(
            "SELECT * FROM steps LEFT JOIN step_metrics USING (trace_id, id)"
            f" WHERE {chosen} ORDER BY coalesce(llm_request_start_ns, step_start_ns), id"
        ),
        rows(f"SELECT * FROM runs WHERE {chosen}"),
        {row["role"] for row in rows(f"SELECT DISTINCT role FROM messages WHERE {chosen}")},
    )


def score(recording: Recording, db: sqlite3.Connection) -> Iterator[Fact]:
    """Everything that the recording lets one know of its rows."""
    evidence = Evidence(recording)
    rows = read_rows(db, evidence.trace_ids)
    truth = recording.truth
    calls = sorted(truth["llm_calls"], key=lambda call: call["start_ns"])
    for call in calls:
        call.setdefault("end_ns", truth["client_end_ns"])  # the server never finished it
    yield from _score_runs(evidence, rows, truth)
    yield from _score_hulls(rows.steps)
    seen = [_span_of(evidence, call, calls) for call in calls]
    if not all(seen):  # the instrumentation hid a call: of the steps only a floor can be asked for
        yield Fact("steps.floor", ">=1", len(rows.steps), bool(rows.steps))
        return
    yield Fact("steps.count", len(calls), len(rows.steps), len(rows.steps) == len(calls))
    yield from _score_total(evidence, rows.steps, calls)
    free = list(rows.steps)
    agents = truth.get("llm_call_agents") or [truth.get("agent_name")] * len(calls)
    for number, (call, span, agent) in enumerate(zip(calls, seen, agents, strict=True)):
        row = max(free, key=lambda row: _overlap(row, call), default=None)
        if row is None or _overlap(row, call) <= 0:
            yield Fact("step.matched", call["model_served"], None, False)
            continue
        free.remove(row)
        yield Fact("step.matched", True, True, True)
        hidden = bool(_roles(span or {}) & AROUND_LLM)  # the agent's span: there is none for the request
        yield from _score_model(evidence, row, call, hidden)
        yield from _score_tokens(evidence, row, call)
        yield from _score_outcome(evidence, row, call, truth)
        if not hidden and not _is_cancelled(call):
            yield _score_request_time(row, call, first=number == 0)
        yield from _score_tools(evidence, row, number, truth, calls)
        if agent and evidence.carries_text(agent):
            yield Fact("agent_name", agent, row["agent_name"], row["agent_name"] == agent)
    yield Fact("steps.unmatched", 0, len(free), not free)


# Steps


def _score_hulls(steps: Iterable[Row]) -> Iterator[Fact]:
    for row in steps:
        if row["llm_request_ns"] is not None:
            begins = row["step_start_ns"] <= row["llm_request_start_ns"]
            ends = row["step_start_ns"] + row["step_ns"] >= row["llm_request_start_ns"] + row["llm_request_ns"]
            yield Fact("step_ns.holds_llm", True, (row["step_start_ns"], row["step_ns"]), begins and ends)


def _score_total(evidence: Evidence, steps: Iterable[Row], calls: Iterable[Row]) -> Iterator[Fact]:
    counts = [(evidence.prompts_of(call), evidence.completions_of(call)) for call in calls if call["prompt_tokens"]]
    if counts and all(prompts and completions for prompts, completions in counts):
        found = sum(row["prompt_tokens"] + row["completion_tokens"] for row in steps)
        least = sum(min(prompts) + min(completions) for prompts, completions in counts)
        most = sum(max(prompts) + max(completions) for prompts, completions in counts)
        yield Fact("tokens.total", (least, most), found, least <= found <= most)


def _score_model(evidence: Evidence, row: Row, call: Row, hidden: bool) -> Iterator[Fact]:
    models = sorted({call["model_served"], call["model_requested"]} - {None, ""})
    if not hidden and any(evidence.mentions(model) for model in models):
        yield Fact("model", models, row["model"], any(str(row["model"]).endswith(model) for model in models))
    if not hidden and evidence.names_provider(call["provider"]):
        found = str(row["provider_name"]).lower()
        yield Fact("provider_name", call["provider"], row["provider_name"], call["provider"] in found)


def _score_tokens(evidence: Evidence, row: Row, call: Row) -> Iterator[Fact]:
    if call["prompt_tokens"]:
        sides = {"prompt_tokens": evidence.prompts_of(call), "completion_tokens": evidence.completions_of(call)}
        for column, counts in sides.items():
            if counts:
                yield Fact(column, sorted(counts), row[column], row[column] in counts)
        if all(sides.values()):
            total = row["prompt_tokens"] + row["completion_tokens"]
            yield Fact("total_tokens", total, row["total_tokens"], row["total_tokens"] == total)
    for column, key in (
        ("cached_input_tokens", "cached_tokens"),
        ("cache_write_tokens", "cache_write_tokens"),
        ("reasoning_tokens", "reasoning_tokens"),
    ):
        count = call.get(key)
        if count and evidence.carries_count(count):
            yield Fact(column, count, row[column], row[column] == count)


def _score_outcome(evidence: Evidence, row: Row, call: Row, truth: Row) -> Iterator[Fact]:
    answered = sum(bool(other["prompt_tokens"]) for other in truth["llm_calls"])
    if call["finish_reason"] and evidence.spans_with_reason >= answered:
        reason = call["finish_reason"].lower()
        same = {reason}.union(*(reasons for reasons in SAME_REASON if reason in reasons))
        found = str(row["stop_reason"]).lower().removeprefix("finishreason.")
        yield Fact("stop_reason", call["finish_reason"], row["stop_reason"], found in same)
    status = row["status"]
    if _is_cancelled(call):
        if evidence.mentions("cancel"):
            yield Fact("status.cancelled", "cancelled", status, status == "cancelled")
    elif call["error"]:
        yield Fact("status.failed", "failed", status, status == "failed")
        yield Fact("error_type", "not null", row["error_type"], bool(row["error_type"]))
    elif not truth["exception_seen_by_caller"]:  # also where a failed tool's error went back to the model
        yield Fact("status.success", "success", status, status == "success")


def _score_request_time(row: Row, call: Row, *, first: bool) -> Fact:
    took, found = call["end_ns"] - call["start_ns"], row["llm_request_ns"] or 0
    least = took - (STREAM_EARLY_NS if call["streamed"] else NARROWER_NS)
    most = took + (FIRST_WIDER_NS if first else WIDER_NS)
    return Fact("llm_request_ns", took, found, least <= found <= most)


def _score_tools(evidence: Evidence, row: Row, number: int, truth: Row, calls: Iterable[Row]) -> Iterator[Fact]:
    tools = [tool for tool in truth["tool_calls"] if tool["asked_by_llm_call"] == number]
    requests = [_times(call) for call in calls]
    if tools and all(evidence.covering(_times(tool), requests, naming=tool["name"]) for tool in tools):
        took, found = _union_ns(map(_times, tools)), row["tool_execution_ns"] or 0
        yield Fact("tool_execution_ns", took, found, took - NARROWER_NS <= found <= took + WIDER_NS)
        yield Fact("tool_call_count", len(tools), row["tool_call_count"], row["tool_call_count"] == len(tools))
    elif not truth["tool_calls"]:
        yield Fact("tool_execution_ns.none", "none", row["tool_execution_ns"], not row["tool_execution_ns"])


# Runs, conversations and messages


def _score_runs(evidence: Evidence, rows: Rows, truth: Row) -> Iterator[Fact]:
    runs = {(run["trace_id"], run["id"]): run for run in rows.runs}
    keys = [(step["trace_id"], step["run_id"]) for step in rows.steps]
    missing = sum(key not in runs for key in keys)
    yield Fact("runs.every_step_has_one", 0, missing, not missing)
    tops = {_top(key, runs) for key in keys}
    if truth.get("top_level_runs") and keys:
        wanted = truth["top_level_runs"]
        yield Fact("runs.top_level", wanted, len(tops), len(tops) == wanted and not missing)
    inner = (truth.get("agent_names") or [""])[-1]
    if truth["scenario"] == "nested_agent" and any(
        _roles(span) & AGENTS and inner in json.dumps(span) for span in evidence.spans
    ):
        parents = [run["parent_run_id"] for key, run in runs.items() if key in keys]
        yield Fact("runs.nested_has_parent", True, parents, any(parents))
    for key, run in runs.items():
        totals = [step["total_tokens"] for step in rows.steps if (step["trace_id"], step["run_id"]) == key]
        if totals:
            wanted, found = (len(totals), sum(totals)), (run["step_count"], run["total_tokens"])
            yield Fact("runs.sums", wanted, found, wanted == found)
    session = truth["session_id"]
    if session and evidence.carries_text(session):
        found = {run["conversation_id"] for run in rows.runs}
        yield Fact("conversation_id", session, found, session in found)
    if evidence.carries_prompts():
        yield Fact("messages.user", "user", rows.message_roles, "user" in rows.message_roles)


def _top(key: tuple[str, str | None], runs: Mapping[tuple[str, str], Row]) -> tuple[str, str | None]:
    trace_id, run_id = key
    for _ in range(50):  # a circle of parents ends here
        parent = runs.get((trace_id, run_id or ""), {}).get("parent_run_id")
        if not parent:
            break
        run_id = parent
    return trace_id, run_id


# Spans and times


def _span_of(evidence: Evidence, call: Row, calls: Iterable[Row]) -> Row | None:
    """The span that shows a call, if any does."""
    others = [times for times in map(_times, calls) if times != _times(call)]
    early = STREAM_EARLY_NS if call["streamed"] or call["error"] else NARROWER_NS
    return evidence.covering(_times(call), others, early_ns=early)


def _times(call: Row) -> Interval:
    return call["start_ns"], call["end_ns"]


def _is_cancelled(call: Row) -> bool:
    return bool(call["error"] and call["error"].get("cancelled_by_client"))


def _overlap(row: Row, call: Row) -> int:
    """The nanoseconds that a call shares with a row's request, or with its step where no request was seen."""
    start, took = row["llm_request_start_ns"], row["llm_request_ns"]
    if start is None or took is None:
        start, took = row["step_start_ns"], row["step_ns"]
    if start is None or took is None:
        return 0
    early = STREAM_EARLY_NS if call["streamed"] else 0
    return min(start + took + early, call["end_ns"]) - max(start, call["start_ns"])


def _union_ns(intervals: Iterable[Interval]) -> int:
    total, reach = 0, 0
    for start, end in sorted(intervals):
        total += max(0, end - max(start, reach))
        reach = max(reach, end)
    return total


def _roles(span: Row) -> set[str]:
    """What a span says it is, in whichever vocabulary."""
    said = [item for item in span.get("attributes", ()) if SAYS_WHAT_IT_IS.search(item["key"])]
    return {str(leaf.value).strip('"') for item in said for leaf in _leaves(item["value"], item["key"])}


# OTLP values


def _leaves_of(holder: Row) -> Iterator[Leaf]:
    for item in holder.get("attributes", ()):
        yield from _leaves(item["value"], item["key"])


def _leaves(value: Row, path: str) -> Iterator[Leaf]:
    """The plain values in an OTLP value."""
    if "stringValue" in value:
        text = value["stringValue"]
        yield Leaf(path, text)
        if text[:1] in ("[", "{"):
            with suppress(ValueError):
                yield from _json_leaves(json.loads(text), path)
    elif "intValue" in value:
        yield Leaf(path, int(value["intValue"]))
    elif "doubleValue" in value:
        yield Leaf(path, value["doubleValue"])
    elif "boolValue" in value:
        yield Leaf(path, value["boolValue"])
    elif "arrayValue" in value:
        for item in value["arrayValue"].get("values", ()):
            yield from _leaves(item, path)
    elif "kvlistValue" in value:
        for item in value["kvlistValue"].get("values", ()):
            yield from _leaves(item["value"], f"{path}.{item['key']}")


def _json_leaves(value: Any, path: str) -> Iterator[Leaf]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _json_leaves(item, f"{path}.{key}")
    elif isinstance(value, list):
        for item in value:
            yield from _json_leaves(item, path)
    else:
        yield Leaf(path, value)
