"""D: spans that nobody should send."""

from __future__ import annotations

import contextlib
import itertools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fault_apps import LLM, ended, rows
from msgspec.structs import asdict, replace
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanLimits, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import (
    Link,
    NonRecordingSpan,
    SpanContext,
    SpanKind,
    StatusCode,
    TraceFlags,
    Tracer,
    TraceState,
    set_span_in_context,
)

from recordings import all_recordings
from step_exporter.cli import main
from step_exporter.conventions.content import strip, take_apart
from step_exporter.exporter import StepSpanExporter
from step_exporter.facts import RawSpan
from step_exporter.otlp.protobuf import decode_protobuf
from step_exporter.store.engine import create_sync_engine
from step_exporter.store.ingest import Writer
from step_exporter.store.load import load_spans
from step_exporter.store.query import StepStore
from step_exporter.store.schema import ensure_schema

AGENT = {"gen_ai.operation.name": "invoke_agent", "gen_ai.agent.name": "a"}
T, S = f"{0xABC:032x}", f"{7:016x}"


def stored(db: Path, *batches: list[Any]) -> StepSpanExporter:
    exporter = StepSpanExporter(db, record="all")
    for batch in batches:
        exporter.export(batch)
    exporter.shutdown()
    return exporter


def test_d1_the_same_span_twice(db: Path, assert_invariants: Any) -> None:
    exporter = stored(db, [ended(), ended()], [ended()])
    assert exporter.stats().duplicates == 2
    assert_invariants(db, exporter.stats(), spans=1)


def test_d2_an_open_span_after_its_end_changes_nothing(db: Path, assert_invariants: Any) -> None:
    engine = create_sync_engine(db)
    ensure_schema(engine)
    done = RawSpan(T, S, None, "chat", start_ns=1, end_ns=9, attributes=LLM)
    begun = replace(done, ended=False, end_ns=None, process_id="p")
    older = replace(done, end_ns=5)
    for order in itertools.permutations([done, begun, older]):
        with engine.begin() as conn:
            for table in ("spans", "traces", "steps", "runs", "messages", "quarantine"):
                conn.exec_driver_sql(f"DELETE FROM {table}")
        writer = Writer(engine)
        for raw in order:
            writer.write([raw])
        assert rows(db, "SELECT state, end_ns, collisions FROM spans") == [("ended", 9, 1)]
        assert_invariants(db, spans=1)
    engine.dispose()


def test_d3_every_order_of_a_trace_ends_in_the_same_rows(tmp_path: Path) -> None:
    spans = [ended(1, AGENT), *(ended(n, parent=1, start_time=n * 100, end_time=n * 100 + 50) for n in range(2, 5))]
    tables = set[str]()
    for number, order in enumerate(itertools.permutations(spans)):
        db = tmp_path / f"{number}.db"
        stored(db, *([span] for span in order))
        columns = "trace_id, id, status, total_tokens, step_count, start_ns, total_duration_ns"
        found = rows(db, f"SELECT {columns} FROM runs"), rows(db, "SELECT id, run_id, status FROM steps ORDER BY id")
        tables.add(repr(found))
    assert len(tables) == 1


def test_d4_one_span_id_in_two_traces_is_two_rows(db: Path, assert_invariants: Any) -> None:
    exporter = stored(db, [ended(7, trace_id=1), ended(7, trace_id=2)])
    assert_invariants(db, exporter.stats(), spans=2)


def test_d5_and_d6_cycles_orphans_and_two_roots(db: Path, assert_invariants: Any) -> None:
    batch = [
        ended(1, parent=1, trace_id=1),
        ended(1, parent=2, trace_id=2),
        ended(2, parent=1, trace_id=2),
        *(ended(n, parent=n % 1000 + 1, trace_id=3) for n in range(1, 1001)),
        ended(1, parent=99, trace_id=4),
        ended(1, trace_id=5),
        ended(2, trace_id=5),
    ]
    exporter = stored(db, batch)
    assert_invariants(db, exporter.stats(), spans=len(batch))


def test_d7_a_deep_chain_and_a_wide_tree(db: Path, assert_invariants: Any) -> None:
    deep = [ended(n, {}, parent=n - 1 if n > 1 else None, trace_id=1) for n in range(1, 3001)]
    wide = [ended(1, AGENT, trace_id=2), *(ended(n, {}, parent=1, trace_id=2) for n in range(2, 3001))]
    exporter = stored(db, deep, wide)
    assert_invariants(db, exporter.stats(), spans=6000)


@pytest.mark.parametrize(
    "times", [(5, 3), (5, None), (0, 0), (-5, 5), (2**63, 2**64), (10**400, 1), (1.5, 2.5), (None, None)]
)
def test_d8_times_that_cannot_be(db: Path, times: tuple[Any, Any], assert_invariants: Any) -> None:
    exporter = stored(db, [ended(1, start_time=times[0], end_time=times[1])])
    assert_invariants(db, exporter.stats(), spans=1)
    assert all(value is None or value >= 0 for (value,) in rows(db, "SELECT step_ns FROM step_metrics"))


class Broken:
    def __str__(self) -> str:
        raise RuntimeError

    __repr__ = __str__


@pytest.mark.parametrize(
    "value",
    [
        "x" * 10_000_000,
        "a\0b",
        "\ud800",
        "\u202egnirts",
        2**63,
        -(2**63) - 1,
        10**400,
        float("nan"),
        float("-inf"),
        -0.0,
        b"\xff\x00",
        {"nested": ["a\0", {"b": float("inf")}]},
        Broken(),
        [None, True, Broken()],
    ],
    ids=lambda value: type(value).__name__,
)
def test_d10_to_d20_a_bad_value_costs_its_neighbours_nothing(db: Path, value: Any, assert_invariants: Any) -> None:
    bad = ended(1, {**LLM, "bad": value, "gen_ai.usage.output_tokens": value})
    exporter = stored(db, [*(ended(n) for n in range(2, 52)), bad])
    assert_invariants(db, exporter.stats(), spans=51)


def test_d10_ten_thousand_events_and_attributes(db: Path, assert_invariants: Any) -> None:
    from opentelemetry.sdk.trace import Event

    events = [Event(f"e{n}", {"n": n}, n) for n in range(10_001)]
    many = ended(1, {f"a{n}": n for n in range(10_001)}, events=events)
    exporter = stored(db, [many, ended(2)])
    assert_invariants(db, exporter.stats(), spans=2)


def test_d16_to_d18_counts_that_do_not_agree(db: Path, assert_invariants: Any) -> None:
    usage = {"gen_ai.usage.input_tokens": 5, "gen_ai.usage.output_tokens": 1, "llm.token_count.prompt": 500}
    exporter = stored(db, [ended(1, {**AGENT, **usage}), ended(2, {**LLM, **usage}, parent=1)])
    assert rows(db, "SELECT sum(prompt_tokens) FROM steps") == [(5,)]
    assert_invariants(db, exporter.stats(), spans=2)


def test_d16_counts_whose_sum_no_column_holds(db: Path, assert_invariants: Any) -> None:
    most = 2**63 - 1
    usage = {"gen_ai.usage.input_tokens": most, "gen_ai.usage.output_tokens": most}
    exporter = stored(db, [ended(1, AGENT), *(ended(n, {**LLM, **usage}, parent=1) for n in (2, 3))])
    assert rows(db, "SELECT prompt_tokens, total_tokens FROM steps") == [(most, most)] * 2
    assert rows(db, "SELECT prompt_tokens, completion_tokens, total_tokens FROM runs") == [(most, most, most)]
    assert_invariants(db, exporter.stats(), spans=3)


def test_d19_ids_that_cannot_be_go_to_the_quarantine(db: Path, assert_invariants: Any) -> None:
    engine = create_sync_engine(db)
    ensure_schema(engine)
    bad = [RawSpan("0" * 32, S, None, "a"), RawSpan("xyz", S, None, "a"), RawSpan(T, "0" * 16, None, "a")]
    result = Writer(engine).write([*bad, RawSpan(T.upper(), S, None, "chat")])
    assert (result.quarantined, result.new) == (3, 1)
    assert rows(db, "SELECT reason FROM quarantine") == [("invalid_id",)] * 3
    assert rows(db, "SELECT trace_id FROM spans") == [(T,)]
    engine.dispose()
    assert_invariants(db, spans=1)


def test_d25_a_poison_span_is_found_and_its_neighbours_are_stored(
    db: Path, assert_invariants: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    transact = Writer._transact

    def refuse(self: Writer, batch: Any) -> Any:
        if any(item.encoded.raw.name == "poison" for item in batch):
            raise ValueError("poison")
        return transact(self, batch)

    monkeypatch.setattr(Writer, "_transact", refuse)
    exporter = stored(db, [*(ended(n) for n in range(1, 512)), ended(999, name="poison")])
    assert (exporter.stats().committed, exporter.stats().quarantined) == (512, 1)
    assert_invariants(db, exporter.stats(), spans=511)
    monkeypatch.undo()
    assert main(["doctor", "--db", str(db), "--requeue", "--json"]) == 0
    assert rows(db, "SELECT count(*) FROM quarantine") == [(0,)]
    assert_invariants(db, spans=512)


def test_d9_a_child_outside_its_parent_and_a_remote_one_an_hour_off(db: Path, assert_invariants: Any) -> None:
    hour = 3_600 * 10**9
    times = {1: (2 * hour, 2 * hour + 100), 2: (2 * hour - 50, 2 * hour + 500), 3: (hour, hour + 70)}
    spans = [
        ended(span_id, AGENT if span_id == 1 else LLM, parent=None if span_id == 1 else 1, start_time=at, end_time=end)
        for span_id, (at, end) in times.items()
    ]
    exporter = stored(db, spans)
    assert rows(db, "SELECT start_ns, end_ns FROM spans ORDER BY span_id") == list(times.values())
    assert rows(db, "SELECT llm_request_ns FROM step_metrics ORDER BY 1") == [(70,), (550,)]
    assert rows(db, "SELECT start_ns, total_duration_ns FROM runs") == [(2 * hour, 100)]
    assert_invariants(db, exporter.stats(), spans=3)


def test_d21_a_traceback_of_5_mb_and_a_recursive_group(db: Path, assert_invariants: Any) -> None:
    provider = TracerProvider(shutdown_on_exit=False)
    exporter = StepSpanExporter(db)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracer = provider.get_tracer("t")
    group: BaseException = ValueError("the innermost")
    for depth in range(30):
        group = ExceptionGroup(f"group {depth}", [group, KeyError(depth)])
    group.exceptions[0].__context__ = group
    with tracer.start_as_current_span("chat", attributes=LLM) as span:
        span.record_exception(group)
        span.set_status(StatusCode.ERROR)
    with tracer.start_as_current_span("chat", attributes=LLM) as span:
        span.record_exception(ValueError("too long"), {"exception.stacktrace": "Traceback\n" + "x" * 5_000_000})
        span.set_status(StatusCode.ERROR)
    exporter.shutdown()
    found = rows(db, "SELECT error_type, error_data, flags FROM steps ORDER BY created_at")
    assert [row[0] for row in found] == ["ExceptionGroup", "ValueError"]
    assert [json.loads(row[1])["message"] for row in found] == ["group 29 (2 sub-exceptions)", "too long"]
    assert "truncated" in found[1][2]
    assert len(found[1][1]) < 2_000_000
    assert_invariants(db, exporter.stats(), spans=2)


def test_d22_all_that_the_sdk_says_of_a_span_comes_out_again(tmp_path: Path, db: Path, assert_invariants: Any) -> None:
    """As the SDK's own OTLP encoder says it."""
    exporter, memory = StepSpanExporter(db, record="all"), InMemorySpanExporter()
    provider = TracerProvider(
        resource=Resource({"service.name": "app", "list": ["a", "b"]}, schema_url="https://example.org/resource"),
        span_limits=SpanLimits(max_span_attributes=9, max_events=2, max_links=2, max_event_attributes=1),
        shutdown_on_exit=False,
    )
    for each in (exporter, memory):
        provider.add_span_processor(SimpleSpanProcessor(each))
    tracer = provider.get_tracer("lib", "1.2", "https://example.org/scope", {"scope.key": 7, "yes": True})
    state = TraceState([("vendor", "a:1"), ("other", "x")])
    remote = SpanContext(0xABC, 0xDEF, is_remote=True, trace_flags=TraceFlags(3), trace_state=state)
    links = [Link(remote, {"n": n}) for n in range(4)]
    parent = set_span_in_context(NonRecordingSpan(remote))
    span = tracer.start_span("chat", parent, SpanKind.CLIENT, {**LLM, "f": 0.1, "big": 2**62}, links)
    for number in range(12):
        span.set_attribute(f"more{number}", [number, 2])
    for number in range(5):
        span.add_event(f"event{number}", {"a": 1, "b": [1.5, 2.5]}, timestamp=number)
    span.set_status(StatusCode.ERROR, "why")
    span.end()
    exporter.shutdown()
    (told,) = decode_protobuf(encode_spans(memory.get_finished_spans()).SerializeToString())
    assert isinstance(told, RawSpan)
    assert (told.dropped_attributes, told.dropped_events, told.dropped_links) == (10, 3, 2)
    # What that encoder leaves out: the trace flags, and the links' trace states.
    links_told = tuple(replace(link, flags=link.flags | 3, trace_state=told.trace_state) for link in told.links)
    told = replace(told, trace_flags=3, links=links_told)
    assert (told.trace_state, told.events[0].dropped_attributes) == ("vendor=a:1,other=x", 1)
    copy = tmp_path / "copy.db"
    with StepStore(db) as store:
        store.export(tmp_path / "traces.jsonl", "otlp")
    assert main(["import", str(tmp_path / "traces.jsonl"), "--db", str(copy)]) == 0
    for place in (db, copy):
        engine = create_sync_engine(place, read_only=True)
        with engine.connect() as conn:
            ((_, found),) = [(row, row.raw) for row in load_spans(conn, f"{0xABC:032x}")]
        engine.dispose()
        assert asdict(found) == asdict(told)
    assert_invariants(db, exporter.stats(), spans=1)
    assert_invariants(copy)


SECRETS = ("sk-proj-hunter2hunter2hunter2", "Bearer hunter2.jwt.value", "postgresql://me:hunter2@db/app")
SAID = "the hunter2 that nobody may read"


def tell(tracer: Tracer, text: str) -> None:
    """Say it wherever instrumentations say things."""
    message = json.dumps([{"role": "user", "parts": [{"type": "text", "content": text}]}])
    contents = {
        "gen_ai.input.messages": message,
        "gen_ai.output.messages": message,
        "gen_ai.system_instructions": message,
        "gen_ai.prompt.0.content": text,
        "gen_ai.completion.0.content": text,
        "input.value": text,
        "output.value": json.dumps({"answer": text}),
        "llm.input_messages.0.message.content": text,
        "traceloop.entity.input": json.dumps({"q": [text]}),
        "ai.prompt": text,
        "ai.response.text": text,
        "logfire.json_schema": "{}",
        "all_messages_events": message,
        "tool_arguments": text,
        "mlflow.spanInputs": json.dumps(text),
    }
    with tracer.start_as_current_span("agent", attributes=AGENT):
        with tracer.start_as_current_span("chat", attributes={**LLM, **contents}) as span:
            span.add_event("gen_ai.user.message", {"content": text})
            span.add_event("gen_ai.choice", {"message": json.dumps({"content": text}), "index": 0})
            span.record_exception(ValueError(text))
            span.set_status(StatusCode.ERROR, text)
        tool = {"gen_ai.operation.name": "execute_tool", "gen_ai.tool.name": "search"}
        spoken = {"gen_ai.tool.call.arguments": json.dumps({"q": text}), "gen_ai.tool.call.result": text}
        with pytest.raises(KeyError), tracer.start_as_current_span("tool", attributes={**tool, **spoken}):
            raise KeyError(text)


@pytest.mark.parametrize("is_away", [False, True], ids=["database", "spool"])
@pytest.mark.parametrize("setting", ["redact", "content"])
def test_d23_and_d24_what_must_not_be_stored_is_nowhere(
    tmp_path: Path, setting: str, is_away: bool, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not in the database nor its write-ahead log, nor in the spool, nor in what is logged."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    caplog.set_level("DEBUG")
    db = tmp_path / ("no" if is_away else ".") / "steps.db"
    pattern = re.compile(r"sk-[\w-]+|Bearer \S+|(?<=://)\w+:\w+(?=@)")
    words = {"redact": lambda _, text: pattern.sub("[secret]", text)} if setting == "redact" else {"content": "off"}
    texts = SECRETS if setting == "redact" else (SAID,)
    # What resources and scopes say is no content; it is redacted all the same.
    around = {"process.command_line": f"app --db {SECRETS[2]}"} if setting == "redact" else {}
    exporter = StepSpanExporter(db, **words)
    provider = TracerProvider(resource=Resource(around), shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    for text in texts:
        tell(provider.get_tracer("t", attributes=around), text)
    stats = exporter.stats()
    assert (stats.spooled if is_away else stats.committed) == 3 * len(texts)
    on_disk = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert any(path.name.endswith("-wal") for path in on_disk)
    assert not [path for path in on_disk if b"hunter2" in path.read_bytes()]
    assert "hunter2" not in caplog.text
    exporter.shutdown()
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and b"hunter2" in path.read_bytes()]


def test_d24_no_recording_keeps_a_text_without_content() -> None:
    """Nothing that one attribute of a trace holds as content is left in another one."""
    kept: list[tuple[str, str]] = []
    for recording in all_recordings():
        said = set[str]()
        for raw in recording.raws():
            contents = take_apart(raw)
            said.update(text for key in contents.consumed for text in sentences(raw.attributes[key]))
        for raw in recording.raws():
            bare = strip(raw)
            left = [bare.attributes, *(event.attributes for event in bare.events)]
            body = json.dumps([bare.name, left], default=str)
            kept.extend((recording.name, text) for text in said if json.dumps(text)[1:-1] in body)
    assert kept == []


def sentences(value: Any) -> Iterator[str]:
    """The texts of a value, JSON in texts included, that are long enough to be told from names."""
    if isinstance(value, str):
        with contextlib.suppress(ValueError):
            inner = json.loads(value)
            if not isinstance(inner, str):
                yield from sentences(inner)
                return
        if len(value) >= 20 and " " in value:
            yield value
    elif isinstance(value, dict | list | tuple):
        for item in value.values() if isinstance(value, dict) else value:
            yield from sentences(item)
