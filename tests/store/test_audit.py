"""The audit trail: whoever changes something is in it, with when and what, whatever becomes of the trace."""

from __future__ import annotations

import getpass
import os
from collections.abc import Iterator
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import Any, get_args
from unittest.mock import Mock

import pytest
from in_loop import InLoop
from organization_seeds import ACME, ACMES, GLOBEX, GLOBEXES, NOBODYS, SHARED, fill, of_one
from query_seeds import DAY_NS, trace_id
from sqlalchemy import Engine, insert, select, text

from step_exporter.errors import InputError, NotFoundError
from step_exporter.models import Audit, Quarantine
from step_exporter.store.audit import Action, Caller
from step_exporter.store.codec import canonical
from step_exporter.store.engine import create_sync_engine
from step_exporter.store.filters import ACTIONS, AuditFilter, Place, encode_cursor
from step_exporter.store.ingest import Writer
from step_exporter.store.prepare import UNSTORABLE
from step_exporter.store.query import StepStore
from step_exporter.store.records import AuditRecord
from step_exporter.store.requeue import requeue
from step_exporter.store.retention import prune
from step_exporter.store.schema import ensure_schema
from step_exporter.viewer.reading import PageStore

pytestmark = pytest.mark.once


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    engine = create_sync_engine(database_url)
    ensure_schema(engine)
    fill(engine)
    yield engine
    engine.dispose()


@pytest.fixture(params=[StepStore, InLoop], ids=["sync", "async"])
def store(request: pytest.FixtureRequest, database_url: str, engine: Engine) -> Iterator[Any]:
    store = request.param(database_url, actor="ann")
    yield store
    store.close()


@pytest.fixture
def file(sqlite_url: str) -> Iterator[StepStore]:
    """A store of a SQLite file, for what does not depend on the engine."""
    engine = create_sync_engine(sqlite_url)
    ensure_schema(engine)
    fill(engine)
    engine.dispose()
    with StepStore(sqlite_url) as store:
        yield store


def told(entry: AuditRecord) -> tuple[Any, ...]:
    """What an entry says, but for its id and when."""
    return tuple(asdict(entry).values())[2:]


def step_of(store: Any, trace: str) -> str:
    return store.trace(trace).steps[0].id


def test_every_change_has_an_entry_that_says_who_when_and_what(store: Any) -> None:
    before = datetime.now(UTC)
    step, run = step_of(store, ACMES), store.trace(GLOBEXES).runs[0].id
    store.feedback(step, "positive", ["good"])
    store.feedback(step, None, by="bob")
    store.tags(step, ["b", "a"])
    store.transaction(step, "tx-1")
    store.rebuild([ACMES])
    store.rebuild()
    store.delete(run_id=run, by="bob")
    store.delete(trace_id=SHARED)
    store.delete(before=DAY_NS * 2)
    entries = list(store.audit(order="oldest"))
    assert [told(entry) for entry in entries[:-3]] == [
        (
            "ann",
            "feedback",
            ACMES,
            ACME,
            step,
            {"feedback": {"old": None, "new": "positive"}, "tags": {"old": None, "new": ["good"]}},
        ),
        ("bob", "feedback", ACMES, ACME, step, {"feedback": {"old": "positive", "new": None}}),
        ("ann", "tags", ACMES, ACME, step, {"tags": {"old": ["good"], "new": ["a", "b"]}}),
        ("ann", "transaction", ACMES, ACME, step, {"tid": {"old": None, "new": "tx-1"}}),
        ("ann", "rebuild", ACMES, None, ACMES, {"traces": 1}),
        ("ann", "rebuild", None, None, None, {"traces": 4}),
        ("bob", "delete", GLOBEXES, GLOBEX, run, {"kind": "run"}),
        ("ann", "delete", SHARED, None, SHARED, {"kind": "trace"}),
    ]
    assert sorted((entry.action, entry.trace_id, entry.organization_id) for entry in entries[-3:]) == [
        ("delete", ACMES, ACME),
        ("delete", GLOBEXES, GLOBEX),
        ("delete", NOBODYS, None),
    ]
    assert all(before <= entry.at <= datetime.now(UTC) for entry in entries)
    assert [entry.id for entry in entries] == sorted({entry.id for entry in entries})


def test_pruning_has_one_entry_however_many_transactions_it_takes(store: Any, engine: Engine) -> None:
    store.prune(older_than=datetime(2026, 1, 1, tzinfo=UTC))  # nothing is that old
    assert list(store.audit()) == []
    Writer(engine).write([span for number in range(10, 40) for span in of_one(trace_id(number), ACME)])
    assert store.prune(older_than=datetime(2027, 1, 1, tzinfo=UTC)).traces == 34
    [entry] = store.audit()
    assert told(entry) == (
        "ann",
        "prune",
        None,
        None,
        None,
        {"older_than": "2027-01-01T00:00:00+00:00", "max_bytes": None, "traces": 34},
    )


def test_a_change_that_fails_has_no_entry_and_the_other_way_round(
    store: Any, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = step_of(store, ACMES)
    for wrong in (
        lambda: store.feedback("step-none", "positive"),
        lambda: store.feedback(step, "good"),
        lambda: store.feedback(step, "positive", by="a\0b"),
        lambda: store.delete(trace_id=trace_id(9)),
        lambda: store.delete(trace_id=ACMES, by="a\0b"),
    ):
        with pytest.raises((NotFoundError, InputError)):
            wrong()
    with engine.begin() as conn:
        conn.execute(text("ALTER TABLE audit RENAME TO gone"))
    with pytest.raises(Exception, match="audit"):
        store.feedback(step, "positive")
    with pytest.raises(Exception, match="audit"):
        store.delete(trace_id=ACMES)
    with engine.begin() as conn:
        conn.execute(text("ALTER TABLE gone RENAME TO audit"))
    assert list(store.audit()) == []
    assert store.step(step).feedback is None


def test_trying_the_quarantine_again_is_told(engine: Engine) -> None:
    [span, *_] = of_one(trace_id(9), ACME)
    row = {"reason": UNSTORABLE, "body": canonical(span), "created_at": datetime.now(UTC)}
    with engine.begin() as conn:
        conn.execute(insert(Quarantine), [row, {**row, "body": b"no span"}])
    assert requeue(engine, Caller("ann")) == (1, 1)
    with engine.connect() as conn:
        [(actor, action, details)] = conn.execute(select(Audit.actor, Audit.action, Audit.details)).all()
    assert (actor, action, details) == ("ann", "requeue", {"stored": 1})


def test_entries_are_read_page_by_page_and_filtered(store: Any) -> None:
    step = step_of(store, ACMES)
    for number in range(5):
        store.tags(step, [str(number)], by="bob" if number % 2 else None)
    store.feedback(step_of(store, GLOBEXES), "negative")
    newest = store.audit(limit=4)
    rest = store.audit(limit=4, after=newest.next)
    assert rest.next is None
    assert [*newest, *rest] == list(store.audit())
    oldest = store.audit(limit=5, order="oldest")
    store.transaction(step, "late")
    following = store.audit(limit=5, order="oldest", after=oldest.next)
    assert [entry.action for entry in following] == ["feedback", "transaction"]
    for which, count in (
        (AuditFilter(actor="bob"), 2),
        (AuditFilter(action="feedback"), 1),
        (AuditFilter(trace_ids=[ACMES]), 6),
        (AuditFilter(trace_ids=[]), 0),
        (AuditFilter(organization_id=GLOBEX), 1),
        (AuditFilter(subject=step, actor="ann"), 4),
        (AuditFilter(since=datetime.now(UTC) - timedelta(hours=1)), 7),
        (AuditFilter(until=datetime.now(UTC) - timedelta(hours=1)), 0),
    ):
        assert len(store.audit(which)) == count, which


def test_every_action_can_be_asked_for() -> None:
    assert get_args(Action) == ACTIONS


def test_a_cursor_is_one_that_a_page_of_the_trail_gave(file: StepStore) -> None:
    for trace in (ACMES, GLOBEXES):
        file.tags(step_of(file, trace), [])
    of_steps, of_audit = file.steps(limit=1).next, file.audit(limit=1).next
    forged = encode_cursor("audit", "newest", Place(datetime.now(UTC), "", "1 OR 1"))
    for wrong in (of_steps, "x", forged):
        with pytest.raises(InputError, match="cursor"):
            file.audit(after=wrong)
    with pytest.raises(InputError, match="cursor"):
        file.audit(after=of_audit, order="oldest")


def test_the_actor_is_the_user_of_the_system_unless_another_is_named(
    file: StepStore, sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    file.tags(step_of(file, ACMES), [])
    with PageStore(sqlite_url) as pages:
        pages.tags(step_of(pages, ACMES), [])
    monkeypatch.setattr(getpass, "getuser", Mock(side_effect=KeyError("uid not found")))  # a container's arbitrary uid
    file.tags(step_of(file, ACMES), [])
    names = [entry.actor for entry in file.audit(order="oldest")]
    monkeypatch.undo()
    assert names == [getpass.getuser(), "viewer", f"uid {os.getuid()}"]
    with pytest.raises(InputError, match="actor"):
        StepStore(sqlite_url, actor="a\0b")


def test_who_prunes_by_itself_is_the_program(sqlite_url: str, file: StepStore) -> None:
    engine = create_sync_engine(sqlite_url)
    prune(engine, older_than=timedelta(days=-36500))
    engine.dispose()
    assert [entry.actor for entry in file.audit()] == ["step_exporter"]
