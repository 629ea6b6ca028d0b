"""Steps and traces as files."""

from __future__ import annotations

import asyncio
import csv
import io
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from query_seeds import llm_span, put_step, put_trace, trace_id
from sqlalchemy import Engine, select

from step_exporter.demo import run_demo
from step_exporter.errors import InputError, StepExporterError
from step_exporter.facts import Event, Link, RawSpan, Resource, Scope
from step_exporter.models import Base
from step_exporter.otlp import read_file
from step_exporter.store.engine import create_sync_engine
from step_exporter.store.ingest import Writer
from step_exporter.store.query import AsyncStepStore, StepFilter, StepStore
from step_exporter.store.schema import ensure_schema


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    engine = create_sync_engine(database_url)
    ensure_schema(engine)
    yield engine
    engine.dispose()


def two_steps(engine: Engine) -> None:
    with engine.begin() as conn:
        trace = put_trace(conn, 1)
        put_step(conn, trace, "step-1", 1, agent_name="=1+1", tags=["a", "ä"], step_ns=7)
        put_step(conn, trace, "step-2", 2, agent_name="@x", model='gpt, "5"\n', prompt_tokens=3)


def exported(url: str, kind: Any, which: StepFilter | None = None) -> bytes:
    output = io.BytesIO()
    with StepStore(url) as store:
        store.export(output, kind, which)
    return output.getvalue()


def test_json_lines(database_url: str, engine: Engine) -> None:
    two_steps(engine)
    lines = [json.loads(line) for line in exported(database_url, "jsonl").splitlines()]
    with StepStore(database_url) as store:
        assert lines == [step.to_dict() for step in store.steps(order="oldest")]
    assert len(exported(database_url, "jsonl", StepFilter(agent_name="@x")).splitlines()) == 1


def test_g12_csv_with_formulas_defused(database_url: str, engine: Engine) -> None:
    two_steps(engine)
    first, second = csv.DictReader(io.StringIO(exported(database_url, "csv").decode(), newline=""))
    assert (first["id"], first["agent_name"], first["tags"], first["step_ns"]) == ("step-1", "'=1+1", '["a", "ä"]', "7")
    assert (second["agent_name"], second["model"], second["prompt_tokens"]) == ("'@x", 'gpt, "5"\n', "3")
    assert first["model"] == ""
    assert first["created_at"] == "2026-11-22T00:00:01+00:00"


def test_parquet(database_url: str, engine: Engine) -> None:
    pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    two_steps(engine)
    rows = pq.read_table(io.BytesIO(exported(database_url, "parquet"))).to_pylist()
    assert [(row["id"], row["agent_name"], row["step_ns"], row["prompt_tokens"]) for row in rows] == [
        ("step-1", "=1+1", 7, 0),
        ("step-2", "@x", None, 3),
    ]
    assert rows[0]["created_at"].isoformat() == "2026-11-22T00:00:01+00:00"


def test_a_file_appears_when_it_is_complete(sqlite_url: str, tmp_path: Path) -> None:
    engine = create_sync_engine(sqlite_url)
    ensure_schema(engine)
    two_steps(engine)
    engine.dispose()

    def fails(_: int) -> None:
        raise KeyboardInterrupt

    with StepStore(sqlite_url) as store:
        with pytest.raises(KeyboardInterrupt):
            store.export(tmp_path / "out.csv", "csv", progress=fails)
        assert sorted(path.name for path in tmp_path.glob("out*")) == []
        assert store.export(tmp_path / "out.csv", "csv") == 2
        with pytest.raises(InputError, match="jsonl, csv"):
            store.export(tmp_path / "x", "xml")  # type: ignore[arg-type]
        with pytest.raises(InputError, match="cannot write"):
            store.export(tmp_path / "no" / "x", "csv")
    assert sorted(path.name for path in tmp_path.glob("out*")) == ["out.csv"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a disk that is always full")
@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet", "otlp"])
def test_a_full_disk_is_not_a_wrong_path(database_url: str, engine: Engine, kind: Any) -> None:
    if kind == "parquet":
        pytest.importorskip("pyarrow")
    Writer(engine).write([llm_span(trace_id(1), 1, attributes={"gen_ai.operation.name": "chat"})])
    with StepStore(database_url) as store, pytest.raises(StepExporterError, match="cannot write /dev/full: ") as info:
        store.export("/dev/full", kind)
    assert "No space left on device" in str(info.value)
    assert not isinstance(info.value, InputError)


def test_a_pipe_is_written_to_and_stays_one(sqlite_url: str, tmp_path: Path) -> None:
    engine = create_sync_engine(sqlite_url)
    ensure_schema(engine)
    two_steps(engine)
    engine.dispose()
    pipe = tmp_path / "out"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    with StepStore(sqlite_url) as store, os.fdopen(reader, "rb") as read:
        assert store.export(pipe) == 2
        assert len(read.read().splitlines()) == 2
    assert pipe.is_fifo()
    assert not (tmp_path / "out.part").exists()


def test_a_link_stays_one_and_its_file_is_replaced(sqlite_url: str, tmp_path: Path) -> None:
    engine = create_sync_engine(sqlite_url)
    ensure_schema(engine)
    two_steps(engine)
    engine.dispose()
    (tmp_path / "there").mkdir()
    for name, before in (("new", None), ("old", "old")):
        link, file = tmp_path / name, tmp_path / "there" / name
        if before is not None:
            file.write_text(before)
        link.symlink_to(file)
        with StepStore(sqlite_url) as store:
            assert store.export(link) == 2
        assert link.is_symlink()
        assert len(file.read_bytes().splitlines()) == 2
    assert sorted(path.name for path in (tmp_path / "there").iterdir()) == ["new", "old"]


def test_the_async_store_exports_as_well(sqlite_url: str, tmp_path: Path) -> None:
    engine = create_sync_engine(sqlite_url)
    ensure_schema(engine)
    two_steps(engine)
    engine.dispose()

    async def export() -> int:
        async with AsyncStepStore(sqlite_url) as store:
            return await store.export(tmp_path / "out.jsonl")

    assert asyncio.run(export()) == 2
    assert (tmp_path / "out.jsonl").read_bytes() == exported(sqlite_url, "jsonl")


# OTLP


def tables(url: str) -> dict[str, list[tuple[Any, ...]]]:
    """Every row of telemetry, but for what the store knows of its own doings."""
    own = {"updated_at", "changed_at", "epoch", "revision"}
    engine = create_sync_engine(url)
    with engine.connect() as conn:
        found = {
            table.name: sorted(
                map(tuple, conn.execute(select(*(column for column in table.c if column.name not in own)))), key=repr
            )
            for table in Base.metadata.tables.values()
            if "trace_id" in table.c
        }
    engine.dispose()
    return found


def test_otlp_gives_the_same_rows_when_imported_again(database_url: str, engine: Engine, tmp_path: Path) -> None:
    writer = Writer(engine)
    prompt = json.dumps([{"role": "user", "parts": [{"type": "text", "content": "Weather? \ud83c\udf26"}]}])
    chat = {"gen_ai.operation.name": "chat", "gen_ai.request.model": "gpt-5", "gen_ai.input.messages": prompt}
    rich = RawSpan(
        trace_id(1),
        "00000000000000b1",
        "00000000000000b0",
        "chat",
        kind="client",
        start_ns=1_700_000_000_000_000_001,
        end_ns=1_700_000_001_000_000_002,
        status_code="error",
        status_message="slow",
        attributes=chat | {"n": 2**62, "f": 0.5, "b": True, "nan": float("nan"), "seq": ("a", "b"), "raw": b"\x00\xff"},
        events=(Event("gen_ai.choice", 1_700_000_000_500_000_000, {"message": prompt}, 1),),
        links=(Link(trace_id(2), "00000000000000c1", "a=b", {"k": "v"}, 0, 1),),
        resource=Resource({"service.name": "s"}, "https://schema"),
        scope=Scope("lib", "1.2", {"x": 1}, "https://other"),
        trace_flags=1,
        trace_state="a=b",
        parent_is_remote=True,
        dropped_attributes=1,
        dropped_events=2,
        dropped_links=3,
    )
    writer.write([rich, llm_span(trace_id(1), 0xB0, attributes={"gen_ai.operation.name": "invoke_agent"})])
    writer.write([llm_span(trace_id(2), 0xC1, attributes=chat, resource=Resource({"service.name": "t"}))])
    run_demo(database_url)
    file = tmp_path / "spans.jsonl"
    with StepStore(database_url) as store:
        assert store.export(file, "otlp") == 3
    again = f"sqlite:///{tmp_path / 'again.db'}"
    second = create_sync_engine(again)
    ensure_schema(second)
    Writer(second).write([span for span in read_file(file) if isinstance(span, RawSpan)])
    second.dispose()
    before, after = tables(database_url), tables(again)
    for name in before:
        assert after[name] == before[name], name


def test_otlp_of_some_steps_has_their_whole_traces(database_url: str, engine: Engine) -> None:
    chat = {"gen_ai.operation.name": "chat", "gen_ai.request.model": "gpt-5"}
    Writer(engine).write([llm_span(trace_id(1), 1, attributes=chat), llm_span(trace_id(1), 2)])
    Writer(engine).write([llm_span(trace_id(2), 3, attributes=chat | {"gen_ai.request.model": "other"})])
    [line] = exported(database_url, "otlp", StepFilter(model="gpt-5")).splitlines()
    spans = [
        span for group in json.loads(line)["resourceSpans"] for scope in group["scopeSpans"] for span in scope["spans"]
    ]
    assert [span["spanId"] for span in spans] == [f"{1:016x}", f"{2:016x}"]
