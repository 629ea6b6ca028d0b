"""``step-exporter doctor``."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path

from cli_seeds import Cli

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


def test_where_there_is_nothing_it_makes_nothing(cli: Cli, tmp_path: Path) -> None:
    said = cli("doctor")
    assert said.code == 1
    assert "no database" in said.err
    assert list(tmp_path.iterdir()) == []


def test_what_is_in_the_quarantine_is_tried_again(imported: Cli, tmp_path: Path) -> None:
    engine = create_sync_engine(tmp_path / "steps.db")
    from step_exporter.facts import RawSpan

    raw = RawSpan("a" * 32, "b" * 16, None, "late", attributes={"gen_ai.operation.name": "chat"})
    Writer(engine).commit([], [reject(raw, UNSTORABLE, "an older version could not")])
    engine.dispose()
    assert json.loads(imported("doctor", "--json").out)["quarantine"] == {"unstorable": 1}
    found = json.loads(imported("doctor", "--requeue", "--json").out)
    assert (found["requeue"], found["quarantine"]) == ({"stored": 1, "refused": 0}, {})
    connection = sqlite3.connect(tmp_path / "steps.db")
    assert connection.execute("SELECT count(*) FROM spans WHERE name = 'late'").fetchall() == [(1,)]
    connection.close()
