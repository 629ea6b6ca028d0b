"""What people set and deleted goes with the traces to another database, and means there what it meant."""

from __future__ import annotations

import base64
import io
import json
import random
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import json_format
from opentelemetry.proto.trace.v1.trace_pb2 import TracesData
from organization_seeds import ACME, ACMES, GLOBEXES, NOBODY, NOBODYS, SHARED, agent, chat, fill, of_one
from query_seeds import DAY_NS, trace_id
from rich.console import Console
from sqlalchemy import Connection, Engine

from dumps import DERIVED, FACTS, Dump, clear, dump, opened
from recordings import sample
from step_exporter.cli.imports import Summary, import_files
from step_exporter.derive import Derivation
from step_exporter.environment import OTEL_EXPORTER_STEPS_ENCRYPTION_KEY
from step_exporter.errors import NotFoundError
from step_exporter.otlp import decode_json, encode_json
from step_exporter.store import people
from step_exporter.store.ingest import Writer
from step_exporter.store.query import RunFilter, StepFilter, StepStore
from step_exporter.store.rebuild import rebuild, verify
from step_exporter.store.trace_spans import derivation_of

pytestmark = pytest.mark.once

PEOPLE = ("annotations", "deletions")
SPAN = f"{3:016x}"
"""The LLM request of a seeded trace."""


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    with opened(database_url) as engine:
        yield engine


@pytest.fixture
def store(database_url: str, engine: Engine) -> Iterator[StepStore]:
    with StepStore(database_url) as store:
        yield store


def all_of(engine: Engine) -> Dump:
    """Every row that depends on no clock and no order."""
    found = dump(engine, *DERIVED, *FACTS, *PEOPLE)
    return found | {"traces": [row[:1] for row in dump(engine, "traces")["traces"]]}


def exported(store: StepStore, which: StepFilter | None = None) -> list[str]:
    out = io.BytesIO()
    store.export(out, "otlp", which)
    return out.getvalue().decode().splitlines()


def imported(lines: Sequence[str], url: str, directory: Path) -> Summary:
    file = directory / "lines.jsonl"
    file.write_text("\n".join(lines))
    return import_files([file], url, Console(file=io.StringIO()))


def people_of(lines: Sequence[str]) -> list[dict[str, Any]]:
    return [document["stepExporter"] for line in lines if "stepExporter" in (document := json.loads(line))]


def set_at(second: int) -> str:
    return str(DAY_NS + second * 10**9)


def annotation(key: str, value: Any, second: int = 1, trace: str = ACMES, **more: Any) -> dict[str, Any]:
    said = {"traceId": trace, "spanId": SPAN, "key": key, "value": value, "setBy": "ann"}
    return said | {"setAtUnixNano": set_at(second)} | more


def deletion(kind: str, id_: Any, second: int = 1, trace: str = ACMES, **more: Any) -> dict[str, Any]:
    said = {"traceId": trace, "kind": kind, "id": id_, "deletedBy": "bob", "deletedAtUnixNano": set_at(second)}
    return said | more


def line(*said: dict[str, Any]) -> str:
    annotations, deletions = [each for each in said if "key" in each], [each for each in said if "kind" in each]
    fields = {"annotations": annotations, "deletions": deletions}
    return json.dumps({"resourceSpans": [], "stepExporter": fields})


def seeded(store: StepStore, engine: Engine) -> None:
    """Recordings, of which people said something here and there."""
    Writer(engine).write(sample(60))
    Writer(engine).write(of_one(ACMES, ACME))
    Writer(engine).write(of_one(GLOBEXES, NOBODY))
    steps = store.steps(order="oldest", limit=1000).items
    for number, step in enumerate(steps[::3]):
        store.feedback(step.id, "positive" if number % 2 else "negative", ["b", "ä"], trace_id=step.trace_id, by="ann")
    store.feedback(steps[0].id, None, trace_id=steps[0].trace_id)
    store.transaction(steps[1].id, "t-1", trace_id=steps[1].trace_id)
    store.tags(steps[2].id, [], trace_id=steps[2].trace_id, by="bob")
    store.delete(step_id=steps[3].id, trace_id=steps[3].trace_id, by="bob")
    run = store.runs(limit=1).items[0]
    store.delete(run_id=run.id, trace_id=run.trace_id)
    store.delete(trace_id=ACMES, by="bob")


def test_a_database_moved_by_file_is_the_same(store: StepStore, engine: Engine, tmp_path: Path) -> None:
    seeded(store, engine)
    lines = exported(store)
    url = f"sqlite:///{tmp_path / 'again.db'}"
    summaries = [imported(lines, url, tmp_path) for _ in range(2)]
    with opened(url) as again:
        assert list(verify(again)) == []
        if engine.dialect.name == "sqlite":  # the other writes times in other words
            assert all_of(again) == all_of(engine)
    said = dump(engine, *PEOPLE)
    for summary in summaries:
        assert (summary.annotations, summary.deletions) == (len(said["annotations"]), 3)
        assert summary.problems == []
    assert f" spans, {len(said['annotations'])} annotations and 3 deletions of " in str(summaries[0])
    with StepStore(url) as moved:
        assert plain(moved) == plain(store)
        with pytest.raises(NotFoundError):
            moved.trace(ACMES)
        entries = moved.audit(limit=1000)
        assert {entry.action for entry in entries} == {"import"}
        assert len(entries) == len(
            {each["traceId"] for of in people_of(lines) for part in of.values() for each in part}
        )
        assert exported(moved) == lines


def plain(store: StepStore) -> list[dict[str, Any]]:
    return [step.to_dict() | {"updated_at": None} for step in store.steps(limit=1000)]


def test_any_order_and_duplicates_leave_the_same_rows(store: StepStore, engine: Engine, tmp_path: Path) -> None:
    seeded(store, engine)
    lines = exported(store)
    expected = all_of(engine)
    for seed in range(3):
        clear(engine)
        chance = random.Random(seed)
        mixed = [*lines, *chance.sample(lines, 5)]
        chance.shuffle(mixed)
        for at in range(0, len(mixed), 7):
            assert imported(mixed[at : at + 7], store_url(store), tmp_path).problems == []
        assert all_of(engine) == expected
        assert list(verify(engine)) == []
    rebuild(engine)
    assert all_of(engine) == expected


def store_url(store: StepStore) -> str:
    return store._writing.url.render_as_string(hide_password=False)


def test_of_two_that_were_set_the_later_one_stays(store: StepStore, engine: Engine, tmp_path: Path) -> None:
    lines = [
        line(annotation("feedback", "negative", 2), annotation("tags", ["b", "a"], 1)),
        line(annotation("feedback", "positive", 1), annotation("tags", ["c"], 2), annotation("tid", None, 3)),
        line(annotation("tid", "t", 2), annotation("feedback", "positive", 2, setBy=None)),
        encode_json(of_one(ACMES, ACME)).decode(),
    ]
    for at in range(4):
        clear(engine)
        for each in [*lines[at:], *lines[:at]]:
            imported([each], store_url(store), tmp_path)
        [step] = store.trace(ACMES).steps
        assert (step.feedback, step.tags, step.tid) == ("negative", ["c"], None)
    store.feedback(step.id, "positive", by="cem")  # now is later than what the file says
    imported(lines, store_url(store), tmp_path)
    assert store.step(step.id, ACMES).feedback == "positive"
    assert list(verify(engine)) == []


def test_what_was_set_and_deleted_keeps_its_author_and_time(store: StepStore, engine: Engine, tmp_path: Path) -> None:
    twice = [
        deletion("step", "step-x", 5),
        deletion("step", "step-x", 3, deletedBy=None),
        deletion("step", "step-x", 4),
    ]
    imported([line(annotation("tid", "t", 7), *twice)], store_url(store), tmp_path)
    [set_], [deleted] = dump(engine, *PEOPLE).values()
    assert set_[4] == "ann"
    assert deleted[3] is None
    for at, second in ((set_[5], 7), (deleted[4], 3)):
        assert at is not None
        assert datetime.fromisoformat(at[:19]).replace(tzinfo=UTC).timestamp() * 10**9 == DAY_NS + second * 10**9
    assert store.audit().items[0].details == {"annotations": 1, "deletions": 1}


def test_deleting_by_a_file_deletes_what_is_there(store: StepStore, engine: Engine, tmp_path: Path) -> None:
    for trace, owner in ((ACMES, ACME), (GLOBEXES, "globex")):
        Writer(engine).write(of_one(trace, owner))
    [step] = store.trace(GLOBEXES).steps
    [run] = store.runs(RunFilter(trace_ids=[GLOBEXES])).items
    store.feedback(f"{3:016x}", "positive", trace_id=ACMES)
    url = store_url(store)
    said = [
        deletion("trace", ACMES),
        deletion("step", step.id, trace=GLOBEXES),
        deletion("run", run.id, trace=GLOBEXES),
    ]
    assert str(imported([line(*said)], url, tmp_path)) == "imported 0 spans and 3 deletions of 2 traces from 1 file"
    with pytest.raises(NotFoundError):
        store.trace(ACMES)
    left = store.trace(GLOBEXES)
    assert (left.steps, left.runs, len(left.spans)) == ((), (), 4)
    assert list(verify(engine)) == []
    [entry] = [entry for entry in store.audit() if entry.trace_id == ACMES and entry.action == "import"]
    assert (entry.organization_id, entry.details) == (ACME, {"annotations": 0, "deletions": 1})
    # Neither late spans nor what was set before bring it back.
    Writer(engine).write(of_one(ACMES, ACME))
    imported([line(annotation("feedback", "negative", 9))], url, tmp_path)
    assert store.trace(ACMES).steps == ()
    found = dump(engine, "annotations", "steps")
    assert found == {"annotations": [], "steps": []}
    # The late spans are left behind by an export, and deleted with the trace by who takes it.
    assert [json.loads(each)["resourceSpans"] for each in exported(store) if ACMES in each] == [[]]
    imported([line(deletion("trace", ACMES))], url, tmp_path)
    assert [row for row in dump(engine, "spans")["spans"] if row[0] == ACMES] == []


def test_a_writer_that_remembers_the_trace_learns_of_it(store: StepStore, engine: Engine, tmp_path: Path) -> None:
    writer = Writer(engine)
    writer.write([chat(ACMES, 3, 2, ACME)])
    imported([line(annotation("feedback", "negative"))], store_url(store), tmp_path)
    writer.write([agent(ACMES, 2, 0, ACME), chat(ACMES, 5, 2, ACME)])
    first, second = store.steps(order="oldest").items
    assert (first.feedback, second.feedback) == ("negative", None)
    assert list(verify(engine)) == []


def test_a_trace_that_cannot_be_derived_is_named_and_the_others_are_taken(
    store: StepStore, engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Writer(engine).write([*of_one(ACMES, ACME), *of_one(GLOBEXES, "globex")])

    def fails(conn: Connection, trace: str) -> Derivation:
        if trace == ACMES:
            raise ValueError("not today")
        return derivation_of(conn, trace)

    monkeypatch.setattr(people, "derivation_of", fails)
    both = [annotation("tid", "t", trace=trace) for trace in (ACMES, GLOBEXES)]
    [problem] = imported([line(*both)], store_url(store), tmp_path).problems
    assert problem.endswith(f"lines.jsonl: what people said of trace {ACMES} cannot be stored: not today")
    assert {step.trace_id: step.tid for step in store.steps()} == {ACMES: None, GLOBEXES: "t"}


def test_others_that_read_otlp_pass_over_it(store: StepStore, engine: Engine) -> None:
    Writer(engine).write([*of_one(ACMES, ACME), *of_one(GLOBEXES, "globex")])
    store.tags(SPAN, ["a"], trace_id=ACMES)
    lines = exported(store)
    assert ["stepExporter" in each for each in lines] == [False, True, False]  # only where there is anything to tell
    for each in lines:
        read = json_format.Parse(each, TracesData(), ignore_unknown_fields=True)
        assert len(read.resource_spans) == len(json.loads(each)["resourceSpans"])
    assert list(decode_json(lines[1])) == []  # as the receiver reads: nobody tells it who they are


def test_a_filter_chooses_the_traces(store: StepStore, engine: Engine) -> None:
    Writer(engine).write([*of_one(ACMES, ACME), *of_one(GLOBEXES, "globex"), *of_one(NOBODYS, NOBODY)])
    for trace in (ACMES, GLOBEXES):
        store.tags(SPAN, ["a"], trace_id=trace)
    store.delete(trace_id=NOBODYS)
    [said] = people_of(exported(store, StepFilter(trace_ids=[ACMES])))
    assert {each["traceId"] for part in said.values() for each in part} == {ACMES}
    assert len(people_of(exported(store))) == 3


BROKEN: list[Any] = [
    7,
    annotation("feedback", "so-so"),
    annotation("mood", "good"),
    annotation("tags", "a"),
    annotation("tags", [""]),
    annotation("tags", None),
    annotation("tid", 7),
    annotation("tid", "a\0b"),
    annotation("tid", "t", traceId="xyz"),
    annotation("tid", "t", spanId=None),
    annotation("tid", "t", setAtUnixNano="soon"),
    annotation("tid", "t", setAtUnixNano=str(2**70)),
    annotation("tid", "t", setBy=7),
]
BROKEN_DELETIONS: list[Any] = [
    [],
    deletion("database", "x"),
    deletion("step", 7),
    deletion("trace", GLOBEXES),
    deletion("step", "x", deletedAtUnixNano=None),
]


def test_what_is_damaged_is_named_by_its_line_and_its_neighbours_are_taken(
    store: StepStore, engine: Engine, tmp_path: Path
) -> None:
    said = {
        "annotations": [*BROKEN, annotation("tid", "t")],
        "deletions": [*BROKEN_DELETIONS, deletion("step", "step-x")],
    }
    documents = [
        {"stepExporter": value, "resourceSpans": []} for value in (said, 7, {"annotations": 7, "deletions": {}})
    ]
    lines = [json.dumps(document) for document in documents]
    summary = imported([*lines, lines[0][:-5]], store_url(store), tmp_path)
    assert (summary.annotations, summary.deletions) == (1, 1)
    places = [int(problem.split(":")[1]) for problem in summary.problems]
    assert places == [1] * (len(BROKEN) + len(BROKEN_DELETIONS)) + [2, 3, 4]
    assert "lines.jsonl:1: one of the annotations: feedback is 'positive', 'negative' or None" in summary.problems[1]
    assert {table: len(rows) for table, rows in dump(engine, *PEOPLE).items()} == {"annotations": 1, "deletions": 1}


def test_an_organization_exports_what_was_said_of_its_own(
    database_url: str, store: StepStore, engine: Engine, tmp_path: Path
) -> None:
    fill(engine)
    own, others = trace_id(5), trace_id(6)
    for trace, owner in ((own, ACME), (others, "globex")):
        Writer(engine).write(of_one(trace, owner))
    for step in store.steps():
        store.tags(step.id, [f"of {step.organization_id}"], trace_id=step.trace_id)
    for trace in (own, others):
        store.delete(trace_id=trace)
    with StepStore(database_url, organization_id=ACME) as acme:
        lines = exported(acme)
        assert "globex" not in "".join(lines)
        said = [each for of in people_of(lines) for part in of.values() for each in part]
        assert [(each["traceId"], each.get("key")) for each in said] == [(ACMES, "tags"), (own, None)]
        assert len(exported(acme, StepFilter(trace_ids=[ACMES, GLOBEXES]))) == 2
    assert SHARED in "".join(exported(store))


def test_what_people_said_goes_from_one_encrypted_database_to_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("cryptography")
    lines: list[list[str]] = []
    for number in (1, 2):
        monkeypatch.setenv(OTEL_EXPORTER_STEPS_ENCRYPTION_KEY, base64.b64encode(bytes([number]) * 64).decode())
        url = f"sqlite:///{tmp_path / f'{number}.db'}"
        with opened(url) as engine, StepStore(url) as store:
            if number == 1:
                seeded(store, engine)
            else:
                assert imported(lines[0], url, tmp_path).problems == []
                assert list(verify(engine)) == []
            lines.append(exported(store))
    assert lines[0] == lines[1]
