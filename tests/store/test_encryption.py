"""With a key nothing that was said or went wrong is readable on disk, and everything reads as without one."""

from __future__ import annotations

import asyncio
import base64
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
from msgspec.structs import replace
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.trace import Link, SpanContext, TraceFlags
from rich.console import Console
from sqlalchemy import Engine, delete, select, text, update

from dumps import DERIVED, TABLES, Dump, clear, dump
from recordings import sample
from step_exporter.cli import main
from step_exporter.cli.imports import import_files
from step_exporter.conventions.content import take_apart
from step_exporter.environment import OTEL_EXPORTER_STEPS_ENCRYPTION_KEY as VARIABLE
from step_exporter.errors import ConfigurationError, EncryptionError
from step_exporter.exporter import StepSpanExporter
from step_exporter.facts import Event, RawSpan
from step_exporter.spool import Spool, adopt, spool_directory, spooled
from step_exporter.store import outline
from step_exporter.store.encryption import HIDDEN, SEALED, cipher_of, make_cipher
from step_exporter.store.engine import create_sync_engine, sqlite_path
from step_exporter.store.ingest import Writer
from step_exporter.store.query import AsyncStepStore, StepStore
from step_exporter.store.rebuild import rebuild, verify
from step_exporter.store.requeue import requeue
from step_exporter.store.rotation import rotate_key
from step_exporter.store.schema import ensure_schema

pytestmark = pytest.mark.once

KEY, OLD = (base64.b64encode(bytes([n]) * 64).decode() for n in (1, 2))
SECRET = "Rosebud"
HASHED = ("id", "parent_id", "content_hash")
"""Columns of messages that differ between databases with a key: each has its own key of hashes."""


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    """A database that is encrypted."""
    with opened(database_url) as engine:
        yield engine


@contextmanager
def opened(url: str, key: str = KEY) -> Iterator[Engine]:
    engine = create_sync_engine(url, encryption_key=key)
    ensure_schema(engine)
    yield engine
    engine.dispose()


def raw(span_id: int = 1, prompt: str = SECRET, **fields: Any) -> RawSpan:
    return replace(
        RawSpan(
            trace_id=f"{0xABC:032x}",
            span_id=f"{span_id:016x}",
            parent_span_id=None,
            name="chat",
            start_ns=1_000,
            end_ns=2_000,
            status_code="error",
            status_message=f"no {SECRET}",
            attributes={
                "gen_ai.operation.name": "chat",
                "gen_ai.request.model": "gpt-4o",
                "gen_ai.input.messages": f'[{{"role":"user","parts":[{{"type":"text","content":"{prompt}"}}]}}]',
                "my.note": SECRET,
            },
            events=(Event("exception", 1_500, {"exception.type": "Oops", "exception.message": SECRET}),),
        ),
        **fields,
    )


def on_disk(url: str) -> bytes:
    """Every byte of a SQLite file and its log, or every row of a PostgreSQL database."""
    path = sqlite_path(url)
    if path is not None:
        return b"".join(file.read_bytes() for file in path.parent.glob(path.name + "*"))
    with psycopg.connect(url) as conn:
        rows = [conn.execute(f'SELECT t::text FROM "{table}" t').fetchall() for table in TABLES]  # type: ignore[call-overload]
    return str(rows).encode()


def without_hashes(found: Dump) -> Dump:
    """The derived rows, but for the ids that tell what was said."""
    names = [column.name for column in TABLES["messages"].c]
    kept = [at for at, name in enumerate(names) if name not in HASHED]
    messages = sorted((tuple(row[at] for at in kept) for row in found["messages"]), key=repr)
    return {**found, "messages": messages}


# --- on disk


def test_nothing_that_was_said_or_went_wrong_is_readable_on_disk(database_url: str) -> None:
    exporter = StepSpanExporter(database_url, encryption_key=KEY)
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracer = provider.get_tracer("tests")
    calls = (
        '[{"role":"assistant","parts":[{"type":"tool_call","id":"1","name":"find","arguments":{"what":"Rosebud"}}]}]'
    )
    llm = {
        "gen_ai.operation.name": "chat",
        "gen_ai.request.model": "gpt-4o",
        "gen_ai.input.messages": f'[{{"role":"user","parts":[{{"type":"text","content":"{SECRET}"}}]}}]',
        "gen_ai.output.messages": calls,
        "my.own": SECRET,
    }
    tool = {"gen_ai.operation.name": "execute_tool", "gen_ai.tool.name": "find", "gen_ai.tool.call.result": SECRET}
    other = Link(SpanContext(1, 2, is_remote=False, trace_flags=TraceFlags(1)), {"why": SECRET})
    with tracer.start_as_current_span("invoke_agent", attributes={"gen_ai.operation.name": "invoke_agent"}) as top:
        with tracer.start_as_current_span("chat", attributes=llm, links=[other]):
            pass
        with pytest.raises(ValueError, match=SECRET), tracer.start_as_current_span("execute_tool", attributes=tool):
            raise ValueError(SECRET)
        with pytest.raises(ValueError, match=SECRET), tracer.start_as_current_span("chat", attributes=llm):
            raise ValueError(SECRET)
    trace_id = trace.format_trace_id(top.get_span_context().trace_id)
    assert exporter.stats().committed == 4
    assert SECRET.encode() not in on_disk(database_url)
    provider.shutdown()
    assert SECRET.encode() not in on_disk(database_url)
    with StepStore(database_url, encryption_key=KEY) as store:
        found = store.trace(trace_id)
    assert (found.steps[-1].error_data or {})["message"] == f"ValueError: {SECRET}"
    assert (found.messages[1].tool_calls or [])[0]["arguments"] == '{"what":"Rosebud"}'
    (span,) = (span for span in found.spans if span.links)
    assert (span.attributes["my.own"], span.links[0].attributes) == (SECRET, {"why": SECRET})


def test_short_texts_cannot_be_guessed_from_their_hashes(engine: Engine, database_url: str) -> None:
    Writer(engine).write([raw()])
    hashes = [element.hash for value in take_apart(raw()).attributes.values() for element in value.elements]
    assert hashes
    stored = on_disk(database_url)
    assert not any(hash_.encode() in stored for hash_ in hashes)
    with engine.connect() as conn:
        joined = text("SELECT count(*) FROM messages m JOIN contents c ON c.hash = m.content_hash")
        assert conn.scalar(joined) == 1


def test_what_cannot_be_stored_or_lost_a_collision_is_encrypted_too(engine: Engine, database_url: str) -> None:
    lost, kept = raw(end_ns=3_000), raw(end_ns=4_000)
    writer = Writer(engine)
    writer.write([lost])
    assert writer.write([kept, lost, replace(lost, trace_id="bad")]).collisions == 1
    assert writer.write([lost]).collisions == 1  # known, though its hash is encrypted
    with engine.connect() as conn:
        assert sorted(conn.scalars(select(TABLES["quarantine"].c.reason))) == ["id_collision", "invalid_id"]
        assert conn.scalar(select(TABLES["spans"].c.collisions)) == 1
    assert SECRET.encode() not in on_disk(database_url)
    with engine.begin() as conn:  # as if an older version could not
        conn.execute(update(TABLES["quarantine"]).values(reason="unstorable"))
        conn.execute(delete(TABLES["spans"]))
    assert requeue(engine) == (1, 1)
    with StepStore(database_url, encryption_key=KEY) as store:
        assert store.trace(raw().trace_id).spans[0].end_ns == 3_000


def test_the_spool_is_encrypted(tmp_path: Path) -> None:
    db = tmp_path / "later" / "steps.db"
    exporter = StepSpanExporter(db, encryption_key=KEY)
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    with provider.get_tracer("tests").start_as_current_span("chat", attributes=dict(raw().attributes)):
        pass
    directory = spool_directory(db)
    assert directory is not None
    files = list(directory.glob("*.db*"))
    assert files
    assert SECRET.encode() not in b"".join(file.read_bytes() for file in files)
    provider.shutdown()
    db.parent.mkdir()
    other = StepSpanExporter(db, encryption_key=KEY)  # the next process
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(other))
    with provider.get_tracer("tests").start_as_current_span("chat", attributes=dict(raw().attributes)):
        pass
    provider.shutdown()
    assert other.stats().adopted == 1
    assert list(directory.glob("*.db*")) == []
    assert SECRET.encode() not in db.read_bytes()


def test_a_spool_that_there_is_no_key_for_is_left(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    spool = Spool(tmp_path, cipher=make_cipher(KEY))
    spool.put([spooled(raw())])
    spool.close()
    with caplog.at_level(logging.WARNING):
        for cipher in (None, make_cipher(OLD)):
            assert adopt(tmp_path, lambda raws, rejected: pytest.fail("written"), 10, cipher) == 0
    assert "encrypted" in caplog.text
    found: list[RawSpan] = []
    assert adopt(tmp_path, lambda raws, rejected: found.extend(raws), 10, make_cipher(f"{OLD},{KEY}")) == 1
    assert found == [raw()]


# --- everything else is as without


def test_rows_do_not_depend_on_the_order_of_arrival(engine: Engine) -> None:
    raws = sample(120)
    Writer(engine).write(raws)
    expected = dump(engine)
    clear(engine)
    writers = [Writer(engine), Writer(engine)]
    for number, at in enumerate(range(0, len(raws), 7)):
        writers[number % 2].write(raws[::-1][at : at + 7])
    assert dump(engine) == expected
    assert list(verify(engine)) == []


def test_what_is_read_and_derived_is_what_it_is_without_a_key(
    engine: Engine, database_url: str, tmp_path: Path
) -> None:
    raws = sample(120)
    Writer(engine).write(raws)
    with opened(str(tmp_path / "plain.db"), "") as plain:
        Writer(plain).write(raws)
        expected = dump(plain)
    with (
        StepStore(database_url, encryption_key=KEY) as mine,
        StepStore(tmp_path / "plain.db", encryption_key="") as other,
    ):
        for trace_id in {raw.trace_id for raw in raws}:
            assert comparable(mine.trace(trace_id)) == comparable(other.trace(trace_id))
        assert mine.stats(["model"]) == other.stats(["model"])
        mine.export(tmp_path / "mine.jsonl", "otlp")
        assert import_files([tmp_path / "mine.jsonl"], str(tmp_path / "again.db"), Console()).problems == []
        step = mine.steps(limit=1).items[0]
        mine.feedback(step.id, "positive", trace_id=step.trace_id)
    with opened(str(tmp_path / "again.db"), "") as again:
        assert dump(again) == expected
    assert rebuild(engine) == len({raw.trace_id for raw in raws})
    assert list(verify(engine)) == []
    with engine.begin() as conn:
        damaged = conn.execute(update(TABLES["messages"]).values(tool_calls="[]", role="nobody")).rowcount
    assert len(list(verify(engine))) == damaged

    async def read() -> Any:
        async with AsyncStepStore(database_url, encryption_key=KEY) as store:
            return await store.trace(raws[0].trace_id)

    assert asyncio.run(read()).spans


def comparable(record: Any) -> dict[str, Any]:
    plain: dict[str, Any] = record.to_dict()
    for row in (*plain["steps"], *plain["runs"]):
        row.pop("updated_at", None)
    messages = ({k: v for k, v in row.items() if k not in HASHED} for row in plain["messages"])
    plain["messages"] = sorted(messages, key=repr)  # alternatives of one place are in the order of their ids
    return plain


# --- without the key, or with another


def test_without_the_key_everything_but_texts_can_be_read(engine: Engine, database_url: str) -> None:
    Writer(engine).write([raw()])
    with StepStore(database_url, encryption_key="") as store:
        (step,) = store.steps()
        assert (step.model, step.error_type, step.error_data) == ("gpt-4o", "Oops", {"message": HIDDEN})
        assert store.step(step.id).metrics == step.metrics
        assert [message.body for message in store.messages(trace_id=step.trace_id)] == [HIDDEN]
        assert store.stats()[0].count == 1
        for refused in (
            lambda: store.trace(step.trace_id),
            lambda: store.verify(),
            lambda: store.rebuild(),
            lambda: store.feedback(step.id, "positive"),
        ):
            with pytest.raises(EncryptionError, match=VARIABLE):
                refused()
        assert store.delete(trace_id=step.trace_id) == 1


def test_a_wrong_key_is_said_by_its_id(engine: Engine, database_url: str) -> None:
    Writer(engine).write([raw()])
    mine, other = (cipher.key_ids[0] for cipher in map(make_cipher, (KEY, OLD)) if cipher)
    wrong = create_sync_engine(database_url, encryption_key=OLD)
    with pytest.raises(EncryptionError, match=f"by key {mine}; given: {other}"):
        ensure_schema(wrong)
    wrong.dispose()
    with StepStore(database_url, encryption_key=OLD) as store:
        for read in (store.steps, lambda: store.messages(trace_id=raw().trace_id), lambda: store.trace(raw().trace_id)):
            with pytest.raises(EncryptionError, match=mine):
                read()


def test_a_writer_without_the_key_writes_nothing_anywhere(
    engine: Engine, database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    engine.dispose()
    exporter = StepSpanExporter(database_url, encryption_key="")
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    for _ in range(2):  # the second finds the database left alone for a moment
        with provider.get_tracer("tests").start_as_current_span("chat", attributes=dict(raw().attributes)):
            pass
    assert exporter.stats().dropped == {"configuration": 2}
    assert VARIABLE in caplog.text
    directory = spool_directory(database_url)
    assert directory is not None
    assert not directory.exists()
    provider.shutdown()


def test_a_writer_with_a_wrong_key_spools_encrypted(engine: Engine, database_url: str) -> None:
    exporter = StepSpanExporter(database_url, encryption_key=OLD)
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    with provider.get_tracer("tests").start_as_current_span("chat", attributes=dict(raw().attributes)):
        pass
    assert (exporter.stats().spooled, exporter.stats().dropped) == (1, {})
    directory = spool_directory(database_url)
    assert directory is not None
    assert SECRET.encode() not in b"".join(file.read_bytes() for file in directory.iterdir())
    provider.shutdown()


def test_a_value_that_was_moved_or_changed_does_not_open(engine: Engine) -> None:
    Writer(engine).write([raw(1), raw(2)])
    with engine.begin() as conn:
        first = conn.scalar(text("SELECT attributes FROM spans WHERE span_id = '0000000000000001'"))
        conn.execute(text("UPDATE spans SET attributes = :first"), {"first": first})
    with pytest.raises(EncryptionError, match=r"spans\.attributes .* was changed or moved"):
        list(verify(engine))


def test_a_key_does_not_keep_from_reading_what_is_plain(database_url: str) -> None:
    with opened(database_url, "") as engine:
        Writer(engine).write([raw()])
    with StepStore(database_url, encryption_key=KEY) as store:
        (step,) = store.trace(raw().trace_id).steps
        assert store.verify() == []
        with pytest.raises(EncryptionError, match="rotate-key"):
            store.feedback(step.id, "positive")
        assert store.steps().items[0].feedback is None
    reader = create_sync_engine(database_url, read_only=True, encryption_key=KEY)
    with reader.connect() as conn:
        assert outline.span(conn, raw().trace_id, raw().span_id).raw == raw()
    reader.dispose()


@pytest.mark.parametrize("key", ["short", base64.b64encode(b"x" * 32).decode(), f"{KEY},", "ünicode"])
def test_a_key_that_is_none_is_said_without_showing_it(key: str) -> None:
    with pytest.raises(ConfigurationError, match="generate-key") as caught:
        create_sync_engine("sqlite://", encryption_key=key)
    assert key.rstrip(",") not in str(caught.value)


def test_the_package_that_is_needed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cryptography.hazmat.primitives.ciphers.aead", None)
    with pytest.raises(ConfigurationError, match=r"step_exporter\[encryption\]"):
        make_cipher(KEY)


def test_two_exporters_of_a_process_have_one_key(sqlite_url: str, caplog: pytest.LogCaptureFixture) -> None:
    exporters = [StepSpanExporter(sqlite_url, encryption_key=key) for key in (KEY, OLD)]
    for exporter in exporters:
        provider = TracerProvider(shutdown_on_exit=False)
        provider.add_span_processor(SimpleSpanProcessor(exporter))
        with provider.get_tracer("tests").start_as_current_span("chat", attributes=dict(raw().attributes)):
            pass
    assert exporters[1].stats().dropped == {"configuration": 1}
    assert "another encryption key" in caplog.text
    for exporter in exporters:
        exporter.shutdown()


# --- rotation


def test_a_rotation_leaves_nothing_under_the_old_key(database_url: str) -> None:
    raws = sample(120)
    traces = len({raw.trace_id for raw in raws})
    with opened(database_url, OLD) as engine:
        Writer(engine).write([*raws, replace(raws[0], trace_id="bad"), raw(), raw(end_ns=9_000)])
        with engine.connect() as conn:
            ids = conn.scalars(select(TABLES["messages"].c.id)).all()
    with opened(database_url, f"{KEY},{OLD}") as both:
        Writer(both).write([raw(2)])  # the new key writes, the old one reads

        def stop(done: int, total: int) -> None:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            rotate_key(both, stop)
        assert rotate_key(both) == traces + 1 - 1  # it goes on where it was broken off
        assert rotate_key(both) == 0
        old = cipher_of(both).key_ids[1]  # type: ignore[union-attr]
        assert f"{old}:" not in str(dump(both, *SEALED))
    with opened(database_url) as engine:  # the new key alone
        assert list(verify(engine)) == []
        with engine.connect() as conn:
            assert conn.scalars(select(TABLES["encryption_keys"].c.id)).all() == list(cipher_of(engine).key_ids)  # type: ignore[union-attr]
            assert set(ids) <= set(conn.scalars(select(TABLES["messages"].c.id)))
    old_engine = create_sync_engine(database_url, encryption_key=OLD)
    with pytest.raises(EncryptionError):
        ensure_schema(old_engine)
    old_engine.dispose()


def test_a_database_that_was_written_without_a_key_can_be_encrypted(database_url: str) -> None:
    raws = [
        *sample(120),
        raw(),
        raw(end_ns=9_000),
        raw(prompt=SECRET * 5_000, span_id=5),
        replace(raw(), trace_id="bad"),
    ]
    with opened(database_url, "") as plain:
        Writer(plain).write([replace(raw(prompt=SECRET * 5_000), trace_id=f"{7:032x}"), *raws])
        with StepStore(database_url, encryption_key="") as store:
            store.delete(trace_id=f"{7:032x}")  # its pages are still there
        before = dump(plain, *DERIVED)
    assert SECRET.encode() in on_disk(database_url)
    engine = create_sync_engine(database_url, encryption_key=KEY)
    with pytest.raises(EncryptionError, match="rotate-key"):
        ensure_schema(engine)

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        rotate_key(engine, stop)
    with pytest.raises(EncryptionError, match="to its end"):
        ensure_schema(engine)
    assert rotate_key(engine) == len({raw.trace_id for raw in raws}) - 2  # one is no trace, one is done
    ensure_schema(engine)
    assert list(verify(engine)) == []
    assert SECRET.encode() not in on_disk(database_url)
    keyless = create_sync_engine(database_url, encryption_key="")
    with pytest.raises(EncryptionError, match=VARIABLE):
        ensure_schema(keyless)
    keyless.dispose()
    with StepStore(database_url, encryption_key=KEY) as store:
        assert store.trace(raw().trace_id).spans[0].attributes["my.note"] == SECRET
    with engine.connect() as conn:
        assert outline.span(conn, raw().trace_id, f"{5:016x}").raw == raw(prompt=SECRET * 5_000, span_id=5)
    after = without_hashes(dump(engine, *DERIVED))
    for table in ("steps", "step_metrics", "runs"):
        names = [column.name for column in TABLES[table].c if column.name not in ("updated_at", "revision")]
        kept = [at for at, name in enumerate(names) if name != "error_data"]
        assert [[row[at] for at in kept] for row in after[table]] == [[row[at] for at in kept] for row in before[table]]
    engine.dispose()


def test_writers_of_a_new_database_agree_on_its_keys(postgres_url: str) -> None:
    first, second = (create_sync_engine(postgres_url, encryption_key=key) for key in (KEY, f"{OLD},{KEY}"))
    ensure_schema(first)
    ensure_schema(second)  # names the new key as well: it writes from now on
    with pytest.raises(EncryptionError, match="given"):
        ensure_schema(first)
    for engine in (first, second):
        engine.dispose()


# --- the command line


def test_the_commands(sqlite_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate-key"]) == 0
    key = capsys.readouterr().out.strip()
    assert len(base64.b64decode(key)) == 64
    with opened(sqlite_url, "") as plain:
        Writer(plain).write([raw()])
    assert main(["rotate-key", "--db", sqlite_url]) == 2
    assert "generate-key" in capsys.readouterr().err
    monkeypatch.setenv(VARIABLE, key)
    assert main(["rotate-key", "--db", sqlite_url]) == 0
    assert "1 trace encrypted" in capsys.readouterr().out
    assert main(["trace", raw().trace_id, "--db", sqlite_url]) == 0
    assert SECRET in capsys.readouterr().out
    assert main(["audit", "--db", sqlite_url]) == 0
    assert "rotate_key" in capsys.readouterr().out
    monkeypatch.delenv(VARIABLE)
    assert main(["trace", raw().trace_id, "--db", sqlite_url]) == 2
    assert VARIABLE in capsys.readouterr().err
