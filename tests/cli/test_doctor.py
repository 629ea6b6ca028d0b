"""``step-exporter doctor``."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path

import pytest
from cli_seeds import Cli

from sdk_spans import run_program
from step_exporter.facts import RawSpan
from step_exporter.spool import Spool, spool_directory, spooled
from step_exporter.store import engine as engines
from step_exporter.store.engine import create_sync_engine
from step_exporter.store.ingest import Writer
from step_exporter.store.prepare import UNSTORABLE, reject


def test_a_sound_database(imported: Cli) -> None:
    said = imported("doctor")
    assert said.code == 0, said
    for word in ("schema", "integrity", "stored", "open", "quarantine", "spools"):
        assert word in said.out
    found = json.loads(imported("doctor", "--json").out)
    assert found["integrity"] == "ok"
    assert found["quarantine"] == {}
    assert found["stored"]["traces"] == 2


def test_without_a_report_of_a_writer_it_does_not_say_that_all_is_well(imported: Cli) -> None:
    [line] = [line for line in imported("doctor").out.splitlines() if "seen" in line]
    assert " ".join(line.split()) == "– seen no writer has reported what became of its spans"
    assert json.loads(imported("doctor", "--json").out)["seen"] is None


def test_a_writer_that_was_killed_is_one_without_a_last_report(cli: Cli, tmp_path: Path) -> None:
    app = """
    import os, step_exporter
    from opentelemetry.sdk.trace import TracerProvider
    handle = step_exporter.configure("steps.db", provider=TracerProvider())
    handle.provider.get_tracer("app").start_span("chat", attributes={"gen_ai.operation.name": "chat"}).end()
    assert handle.flush().committed == 1
    os._exit(0)
    """
    assert run_program(app, tmp_path).returncode == 0
    [line] = [line for line in cli("doctor").out.splitlines() if "seen" in line]
    assert line.startswith("– ")
    assert line.endswith("1 spans, 1 committed, 0 spooled, 0 dropped; 1 writer ended without a last report")
    assert json.loads(cli("doctor", "--json").out)["seen"]["unknown"] == 1


def test_where_there_is_nothing_it_makes_nothing(cli: Cli, tmp_path: Path) -> None:
    said = cli("doctor")
    assert said.code == 1
    assert "no database" in said.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("mode", ["WAL", "DELETE"])
def test_a_locked_database_is_one_line(
    imported: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    monkeypatch.setattr(engines, "BUSY_TIMEOUT_S", 0.1)
    connection = sqlite3.connect(tmp_path / "steps.db", isolation_level=None)
    connection.execute(f"PRAGMA journal_mode = {mode}")
    connection.execute("BEGIN EXCLUSIVE")
    said = imported("doctor")
    connection.close()
    assert said.code == 1
    [line] = said.err.splitlines()
    assert line.startswith("error: ")
    assert "locked" in line


def test_what_waits_for_a_database_that_is_away_is_said(cli: Cli, tmp_path: Path) -> None:
    url, home = "postgresql://u:hunter2@127.0.0.1:1/away", tmp_path / "spools"
    directory = spool_directory(url, home)
    assert directory is not None
    spool = Spool(directory)
    spool.put([spooled(RawSpan("a" * 32, "b" * 16, None, "late"))])
    spool.close()
    said = cli("doctor", "--db", url, "--spool", str(home))
    assert (said.code, said.err[:7], "hunter2" in said.err) == (1, "error: ", False)
    assert "1 fact in " in said.out
    assert cli("doctor", "--db", url, "--spool", str(home), "--json").json["spools"][0]["facts"] == 1


def test_a_directory_of_spools_that_is_not_there_is_named(imported: Cli) -> None:
    assert "there is no directory nowhere" in imported("doctor", "--spool", "nowhere").out
    assert "no directory" not in imported("doctor", "--spool", "off").out


def test_what_is_in_the_quarantine_is_tried_again(imported: Cli, tmp_path: Path) -> None:
    engine = create_sync_engine(tmp_path / "steps.db")
    raw = RawSpan("a" * 32, "b" * 16, None, "late", attributes={"gen_ai.operation.name": "chat"})
    Writer(engine).commit([], [reject(raw, UNSTORABLE, "an older version could not")])
    engine.dispose()
    assert json.loads(imported("doctor", "--json").out)["quarantine"] == {"unstorable": 1}
    found = json.loads(imported("doctor", "--requeue", "--json").out)
    assert (found["requeue"], found["quarantine"]) == ({"stored": 1, "refused": 0}, {})
    connection = sqlite3.connect(tmp_path / "steps.db")
    assert connection.execute("SELECT count(*) FROM spans WHERE name = 'late'").fetchall() == [(1,)]
    connection.close()
