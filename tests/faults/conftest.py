"""What every case of the fault suite asserts."""

from __future__ import annotations

from pathlib import Path

import pytest

import step_exporter.exporter as exporter_module
from step_exporter.exporter import ExporterStats
from step_exporter.processor import FlushReport
from step_exporter.spool import spool_directory, spool_files
from step_exporter.store.engine import create_sync_engine
from step_exporter.store.query import StepStore
from step_exporter.store.rebuild import verify


@pytest.fixture
def db(tmp_path: Path) -> Path:
    return tmp_path / "steps.db"


@pytest.fixture
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    """Try the database again at once after a failure."""
    monkeypatch.setattr(exporter_module, "_PAUSE_S", 0.0)


class Invariants:
    """I1 to I5, but for I3, which is that the test got here at all, in time."""

    def __init__(self, caplog: pytest.LogCaptureFixture) -> None:
        self._caplog = caplog

    def __call__(
        self,
        url: str | Path,
        stats: ExporterStats | FlushReport | None = None,
        *,
        spans: int | None = None,
        faults: int | None = None,
    ) -> None:
        """
        Args:
            url: The database, or the path of a SQLite file.
            stats: What the exporter or processor says of itself.
            spans: How many ended spans are in the database and in spools together.
            faults: How many lines were logged as errors.
        """
        if isinstance(stats, ExporterStats):  # I1: seen = committed + spooled + let go + waiting + dropped
            kept = stats.committed + stats.spooled + stats.let_go + stats.waiting
            assert stats.seen == kept + sum(stats.dropped.values())
        elif stats is not None:
            assert stats.pending == 0
        engine = create_sync_engine(url)
        try:
            with engine.begin() as conn:
                if engine.dialect.name == "sqlite":  # I5: readable always
                    assert conn.exec_driver_sql("PRAGMA integrity_check").fetchall() == [("ok",)]
                    assert conn.exec_driver_sql("PRAGMA foreign_key_check").fetchall() == []
                stored = conn.exec_driver_sql("SELECT count(*) FROM spans WHERE state = 'ended'").scalar_one()
                twice = "SELECT trace_id, span_id FROM spans GROUP BY 1, 2 HAVING count(*) > 1"
                assert conn.exec_driver_sql(twice).fetchall() == []  # I2: nothing twice
            assert list(verify(engine)) == []  # I2: rows equal what their facts give
        finally:
            engine.dispose()
        if spans is not None:
            directory = spool_directory(url)
            waiting = sum(file.facts or 0 for file in spool_files(directory)) if directory is not None else 0
            assert stored + waiting == spans
        with StepStore(url) as store:
            store.runs(limit=5)
        if faults is not None:  # I4: one clear line, no secrets
            lines = [record.getMessage() for record in self._caplog.records if record.levelname == "ERROR"]
            assert len(lines) == faults, lines
            assert all("hunter2" not in line for line in lines)


@pytest.fixture
def assert_invariants(caplog: pytest.LogCaptureFixture) -> Invariants:
    return Invariants(caplog)
