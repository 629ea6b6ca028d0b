"""A store of one organization: nothing of another one, and nothing of nobody's, can be read or changed by it."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from in_loop import InLoop
from organization_seeds import ACME, ACMES, ACMES_SHARE, GLOBEX, GLOBEXES, NOBODY, NOBODYS, SHARED, fill
from query_seeds import DAY_NS, TABLES
from sqlalchemy import Engine, select

from dumps import DERIVED, FACTS, dump
from step_exporter.errors import InputError, NotFoundError
from step_exporter.store.engine import create_sync_engine
from step_exporter.store.filters import AuditFilter
from step_exporter.store.organizations import has_part_of, is_whole
from step_exporter.store.query import AsyncStepStore, RunFilter, StepFilter, StepStore
from step_exporter.store.schema import ensure_schema
from step_exporter.viewer.reading import PageStore

pytestmark = pytest.mark.once

FOREIGN_SPAN = f"{7:016x}"
"""Globex's LLM request in the shared trace; in the others there is no such span."""


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    engine = create_sync_engine(database_url)
    ensure_schema(engine)
    fill(engine)
    yield engine
    engine.dispose()


@pytest.fixture
def everything(database_url: str, engine: Engine) -> Iterator[StepStore]:
    with StepStore(database_url) as store:
        yield store


@pytest.fixture(params=[StepStore, InLoop], ids=["sync", "async"])
def store(request: pytest.FixtureRequest, database_url: str, engine: Engine) -> Iterator[Any]:
    store = request.param(database_url, organization_id=ACME)
    yield store
    store.close()


def refused(kind: type[Exception], call: Callable[[], Any]) -> None:
    with pytest.raises(kind) as info:
        call()
    assert_acmes(str(info.value).replace(f"'{ACME}'", ""))


def assert_acmes(found: Any) -> None:
    """Everything in it is acme's."""
    assert GLOBEX not in repr(found)
    assert f"of {NOBODY}" not in repr(found)


# What is read, method by method


def reads_find_trace(store: Any, everything: StepStore) -> None:
    assert (store.find_trace(ACMES[:8]), store.find_trace(SHARED)) == (ACMES, SHARED)
    for trace in (GLOBEXES, NOBODYS, GLOBEXES[:8]):
        refused(NotFoundError, lambda trace=trace: store.find_trace(trace))


def reads_trace(store: Any, everything: StepStore) -> None:
    assert store.trace(ACMES) == everything.trace(ACMES)
    found = store.trace(SHARED)
    assert_acmes(found)
    assert {span.span_id for span in found.spans} == ACMES_SHARE
    assert [run.organization_id for run in found.runs] == [ACME]
    assert [step.organization_id for step in found.steps] == [ACME]
    assert [message.content["parts"][0]["content"] for message in found.messages] == [
        "question of acme",
        "answer of acme",
    ]
    assert found.first_ns == min(span.start_ns for span in found.spans)
    assert len(found.tree) == len(found.runs) + len(found.steps) + len(found.spans)
    for trace in (GLOBEXES, NOBODYS):
        refused(NotFoundError, lambda trace=trace: store.trace(trace))


def reads_step(store: Any, everything: StepStore) -> None:
    [own] = store.trace(SHARED).steps
    assert store.step(own.id) == own
    [foreign] = everything.trace(GLOBEXES).steps
    for step_id, trace in ((foreign.id, None), (foreign.id, GLOBEXES), (FOREIGN_SPAN, None), (FOREIGN_SPAN, SHARED)):
        refused(NotFoundError, lambda step_id=step_id, trace=trace: store.step(step_id, trace))


def reads_steps(store: Any, everything: StepStore) -> None:
    assert {step.trace_id for step in store.steps()} == {ACMES, SHARED}
    page = store.steps(limit=1)
    [later] = store.steps(limit=1, after=page.next)
    assert_acmes([*page, later])
    assert list(store.steps(StepFilter(organization_id=ACME))) == list(store.steps())
    for which in (
        StepFilter(organization_id=GLOBEX),
        StepFilter(trace_ids=[GLOBEXES, NOBODYS]),
        StepFilter(conversation_id=f"conversation of {GLOBEX}"),
        StepFilter(model=f"model of {GLOBEX}"),
    ):
        assert list(store.steps(which)) == []


def reads_runs(store: Any, everything: StepStore) -> None:
    assert {(run.trace_id, run.organization_id) for run in store.runs()} == {(ACMES, ACME), (SHARED, ACME)}
    for which in (RunFilter(organization_id=GLOBEX), RunFilter(trace_ids=[GLOBEXES, NOBODYS])):
        assert list(store.runs(which)) == []


def reads_messages(store: Any, everything: StepStore) -> None:
    assert store.messages(ACMES) == everything.messages(ACMES) != ()
    assert_acmes(store.messages(SHARED))
    for run in everything.runs():
        found = store.messages(run_id=run.id)
        assert_acmes(found)
        assert bool(found) == (run.organization_id == ACME)
    [foreign] = everything.trace(GLOBEXES).steps
    refused(NotFoundError, lambda: store.messages(GLOBEXES))
    refused(NotFoundError, lambda: store.messages(step_id=foreign.id))


def reads_stats(store: Any, everything: StepStore) -> None:
    [found] = store.stats(["agent", "model"])
    assert (found.count, found.total_tokens) == (2, 200)
    assert_acmes(found)
    assert store.stats(which=StepFilter(organization_id=GLOBEX)) == ()


def reads_audit(store: Any, everything: StepStore) -> None:
    for step in everything.steps():
        everything.tags(step.id, [f"tag of {step.organization_id or NOBODY}"])
    everything.rebuild([GLOBEXES])
    assert {entry.trace_id for entry in store.audit()} == {ACMES, SHARED}
    assert_acmes(store.audit())
    assert list(store.audit(AuditFilter(organization_id=GLOBEX))) == []
    assert list(store.audit(AuditFilter(trace_ids=[GLOBEXES]))) == []


def reads_verify(store: Any, everything: StepStore) -> None:
    with everything._writing.begin() as conn:
        conn.exec_driver_sql("UPDATE steps SET model = 'x'")
    assert {(row.trace_id, row.table) for row in store.verify()} == {(ACMES, "steps")}
    refused(NotFoundError, lambda: store.verify([GLOBEXES]))
    refused(InputError, lambda: store.verify([SHARED]))


def reads_export(store: Any, everything: StepStore) -> None:
    counts = {}
    for form in ("jsonl", "csv", "otlp"):
        out = io.BytesIO()
        counts[form] = store.export(out, form)
        assert ACME.encode() in out.getvalue()
        assert_acmes(out.getvalue())
        assert store.export(io.BytesIO(), form, StepFilter(organization_id=GLOBEX)) == 0
        assert store.export(io.BytesIO(), form, StepFilter(trace_ids=[GLOBEXES, NOBODYS])) == 0
    assert counts == {"jsonl": 2, "csv": 2, "otlp": 1}  # the shared trace is no whole one
    for named in ([SHARED], [ACMES, SHARED.upper()]):
        refused(InputError, lambda named=named: store.export(io.BytesIO(), "otlp", StepFilter(trace_ids=named)))
    assert store.export(io.BytesIO(), "otlp", StepFilter(trace_ids=[ACMES])) == 1
    assert store.export(io.BytesIO(), "jsonl", StepFilter(trace_ids=[SHARED])) == 1  # acme's own step


READS: Mapping[str, Callable[[Any, StepStore], None]] = {
    "find_trace": reads_find_trace,
    "trace": reads_trace,
    "step": reads_step,
    "steps": reads_steps,
    "runs": reads_runs,
    "messages": reads_messages,
    "stats": reads_stats,
    "export": reads_export,
    "audit": reads_audit,
    "verify": reads_verify,
}


def test_nothing_of_others_can_be_read(store: Any, everything: StepStore) -> None:
    for check in READS.values():
        check(store, everything)


# What is changed, method by method


def changes_feedback(store: Any, foreign: list[str]) -> None:
    [own] = store.trace(SHARED).steps
    store.feedback(own.id, "positive")
    assert store.step(own.id).feedback == "positive"
    for step_id in foreign:
        refused(NotFoundError, lambda step_id=step_id: store.feedback(step_id, "negative"))


def changes_tags(store: Any, foreign: list[str]) -> None:
    for step_id in foreign:
        refused(NotFoundError, lambda step_id=step_id: store.tags(step_id, ["mine"]))


def changes_transaction(store: Any, foreign: list[str]) -> None:
    for step_id in foreign:
        refused(NotFoundError, lambda step_id=step_id: store.transaction(step_id, "mine"))


def changes_rebuild(store: Any, foreign: list[str]) -> None:
    assert store.rebuild() == 1
    assert store.rebuild([ACMES]) == 1
    refused(NotFoundError, lambda: store.rebuild([GLOBEXES]))
    refused(InputError, lambda: store.rebuild([SHARED]))


def changes_prune(store: Any, foreign: list[str]) -> None:
    assert store.prune(without_steps=True).traces == 0
    assert store.prune(older_than=timedelta(days=-36500)).traces == 1
    refused(InputError, lambda: store.prune(max_bytes=0))


def changes_delete(store: Any, foreign: list[str]) -> None:
    refused(NotFoundError, lambda: store.delete(trace_id=GLOBEXES))
    refused(InputError, lambda: store.delete(trace_id=SHARED))
    [run] = store.runs(RunFilter(trace_ids=[SHARED]))
    refused(InputError, lambda: store.delete(run_id=run.id))
    for run_id in foreign:
        refused(NotFoundError, lambda run_id=run_id: store.delete(run_id=run_id))
        refused(NotFoundError, lambda run_id=run_id: store.delete(run_id=run_id, trace_id=SHARED))
        refused(NotFoundError, lambda step_id=run_id: store.delete(step_id=step_id))
    [own] = store.trace(SHARED).steps
    refused(InputError, lambda: store.delete(step_id=own.id))
    assert store.delete(before=DAY_NS * 2) == 0  # pruned


CHANGES: Mapping[str, Callable[[Any, list[str]], None]] = {
    "feedback": changes_feedback,
    "tags": changes_tags,
    "transaction": changes_transaction,
    "rebuild": changes_rebuild,
    "prune": changes_prune,
    "delete": changes_delete,
}


def test_nothing_of_others_can_be_changed(store: Any, everything: StepStore, engine: Engine) -> None:
    foreign = [row.id for row in (*everything.steps(), *everything.runs()) if row.organization_id != ACME]
    assert len(foreign) == 6
    before = others(engine)
    for name, check in CHANGES.items():
        check(store, [*foreign, FOREIGN_SPAN])
        assert others(engine) == before, name
    with pytest.raises(NotFoundError):
        everything.trace(ACMES)
    assert {entry.organization_id for entry in everything.audit()} == {ACME}


def test_a_store_deletes_its_own_traces_and_runs(store: Any, everything: StepStore, engine: Engine) -> None:
    before = others(engine)
    [run] = store.runs(RunFilter(trace_ids=[ACMES]))
    assert store.delete(run_id=run.id) == 1
    assert store.verify() == []
    assert store.delete(before=DAY_NS * 2) == 1
    assert others(engine) == before
    refused(NotFoundError, lambda: store.trace(ACMES))


def others(engine: Engine) -> dict[str, list[tuple[str | None, ...]]]:
    """The rows of the traces that are not acme's, but for acme's step in the shared one."""
    tables = (*DERIVED, *FACTS, "traces", "annotations", "deletions")
    found = dump(engine, *tables)
    kept = (GLOBEXES, NOBODYS, SHARED)
    rows = {table: [row for row in rows if row[0] in kept] for table, rows in found.items()}
    rows["steps"] = [row for row in rows["steps"] if ACME not in row]
    rows["annotations"] = [row for row in rows["annotations"] if row[0] != SHARED]
    rows["traces"] = [tuple(row[:2]) for row in rows["traces"]]  # trace id and epoch; feedback moves the rest
    return rows


def test_every_method_is_tested() -> None:
    for kind in (StepStore, AsyncStepStore):
        public = {name for name in vars(kind) if not name.startswith("_")}
        assert public - {"close"} == READS.keys() | CHANGES.keys()
    assert {name for name in vars(PageStore) if not name.startswith("_")} == PAGES.keys()


# What the pages read


def pages_version(store: PageStore, everything: PageStore) -> None:
    assert store.version(ACMES) == everything.version(ACMES) is not None
    assert store.version(GLOBEXES) is None


def pages_traces_named(store: PageStore, everything: PageStore) -> None:
    for trace_id in (ACMES, SHARED):
        assert list(store.traces_named(trace_id)) == [trace_id]
    for trace_id in (GLOBEXES, NOBODYS):
        assert list(everything.traces_named(trace_id)) == [trace_id]
        assert list(store.traces_named(trace_id)) == []


def pages_outline(store: PageStore, everything: PageStore) -> None:
    assert store.outline(ACMES) == everything.outline(ACMES)
    found = store.outline(SHARED)
    assert_acmes(found)
    assert {row.span.span_id for row in found.rows} == ACMES_SHARE
    assert found.span_count == len(ACMES_SHARE)
    refused(NotFoundError, lambda: store.outline(GLOBEXES))


def pages_span(store: PageStore, everything: PageStore) -> None:
    for span_id in ACMES_SHARE:
        assert_acmes(store.span(SHARED, span_id))
    for trace, span_id in ((SHARED, FOREIGN_SPAN), (SHARED, f"{1:016x}"), (GLOBEXES, f"{3:016x}")):
        refused(NotFoundError, lambda trace=trace, span_id=span_id: store.span(trace, span_id))


def pages_run_page(store: PageStore, everything: PageStore) -> None:
    found = store.run_page(RunFilter(), None, 10)
    assert {run.trace_id for run in found.page} == {ACMES, SHARED}
    assert_acmes(found)
    assert len(store.run_page(RunFilter(organization_id=GLOBEX), None, 10).page) == 0


def pages_samples(store: PageStore, everything: PageStore) -> None:
    steps, tools = store.samples(None)
    assert (len(steps), [tool.tool for tool in tools]) == (2, ["of acme"])
    assert_acmes((steps, tools))


def pages_tool_stats(store: PageStore, everything: PageStore) -> None:
    assert_acmes(store.tool_stats(None, None, None))


def pages_cost(store: PageStore, everything: PageStore) -> None:
    """Nothing is read: the steps are given."""


def pages_find_abandoned(store: PageStore, everything: PageStore) -> None:
    """That a process is gone is a fact, and nobody's change: it is recorded for all."""


PAGES: Mapping[str, Callable[[PageStore, PageStore], None]] = {
    "version": pages_version,
    "traces_named": pages_traces_named,
    "outline": pages_outline,
    "span": pages_span,
    "run_page": pages_run_page,
    "samples": pages_samples,
    "tool_stats": pages_tool_stats,
    "cost": pages_cost,
    "trace_cost": pages_cost,
    "find_abandoned": pages_find_abandoned,
}


def test_pages_show_nothing_of_others(database_url: str, engine: Engine) -> None:
    with PageStore(database_url, organization_id=ACME) as store, PageStore(database_url) as everything:
        for check in PAGES.values():
            check(store, everything)


# The organization itself


def test_the_name_of_an_organization_is_a_text(tmp_path: Path) -> None:
    for wrong in ("a\0b", 1, b"acme"):
        with pytest.raises(InputError, match="organization_id"):
            StepStore(tmp_path / "steps.db", organization_id=wrong)  # pyright: ignore[reportArgumentType]


def test_stores_of_several_organizations_stand_side_by_side(database_url: str, engine: Engine) -> None:
    for name, own in ((ACME, ACMES), (GLOBEX, GLOBEXES), (ACME, ACMES)):
        with StepStore(database_url, organization_id=name) as store:
            for found in (store.steps(), store.runs()):
                assert {row.trace_id for row in found} == {own, SHARED}
                assert {row.organization_id for row in found} == {name}
            assert {message.content["parts"][0]["content"] for message in store.messages(SHARED)} == {
                f"question of {name}",
                f"answer of {name}",
            }


def test_whose_a_trace_is_is_looked_up_by_the_trace(sqlite_url: str) -> None:
    engine = create_sync_engine(sqlite_url)
    ensure_schema(engine)
    id_ = TABLES["traces"].c.trace_id
    with engine.connect() as conn:
        for condition in (has_part_of(id_, ACME), is_whole(id_, ACME)):
            query: Any = select(id_).where(condition).compile(conn)
            values = tuple(query.params[name] for name in query.positiontup)
            plan = repr(conn.exec_driver_sql(f"EXPLAIN QUERY PLAN {query}", values).all())
            assert "SEARCH own_steps USING" in plan
            assert "ix_steps_organization_id" not in plan
    engine.dispose()


def test_an_unknown_organization_has_nothing(database_url: str, engine: Engine) -> None:
    with StepStore(database_url, organization_id="none") as store:
        assert (list(store.steps()), list(store.runs()), store.stats(), store.verify(), store.rebuild()) == (
            [],
            [],
            (),
            [],
            0,
        )
