"""B3: files and directories that may only be read, for a user who has to obey.

As root, the program gives its rights up once all is imported: root may write everywhere.
"""

from __future__ import annotations

import tempfile
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fault_apps import run

AS_NOBODY = """
import logging, step_exporter.exporter
from pathlib import Path
from step_exporter.exporter import StepSpanExporter
logging.basicConfig(format="%(levelname)s %(message)s")
step_exporter.exporter._PAUSE_S = 0.0
db = Path(os.environ["DB"])
provider = trace.get_tracer_provider()
def begin(path=db):
    global handle
    handle = step_exporter.configure(path, provider=provider)
end(1)
handle.shutdown()  # imports what is imported late, and makes the file
if os.geteuid() == 0:
    for place in (db.parent, db, db.parent.parent / "state", *(db.parent.parent / "state").rglob("*")):
        if place.exists():
            os.chown(place, 65534, 65534)
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
"""


@pytest.fixture
def db() -> Iterator[Path]:
    """In a directory that another user can get to, unlike pytest's own."""
    with tempfile.TemporaryDirectory() as directory:
        Path(directory).chmod(0o755)
        for name in ("data", "state"):
            (Path(directory) / name).mkdir()
        yield Path(directory) / "data" / "steps.db"


def run_as_nobody(db: Path, code: str, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Run it with its spool elsewhere; what it logged as errors."""
    state = db.parent.parent / "state"
    monkeypatch.setenv("XDG_STATE_HOME", str(state))
    status, out, err = run(AS_NOBODY + textwrap.dedent(code), db)
    assert (status, out) == (0, "done\n"), err
    return [line for line in err.splitlines() if line.startswith("ERROR")]


def test_b3_read_only_at_the_start(db: Path, monkeypatch: pytest.MonkeyPatch, assert_invariants: Any) -> None:
    said = run_as_nobody(
        db,
        """
        def spools_until(place, mode, path=db):
            place.chmod(mode)
            begin(path)
            end(3)
            report = handle.flush(30)
            assert (report.committed, report.spooled, report.dropped) == (0, 3, {}), (mode, report)
            place.chmod(mode | 0o200)
            end(1)
            report = handle.flush(30)
            assert (report.committed, report.spooled, report.dropped) == (4, 0, {}), (mode, report)
            handle.shutdown()
        spools_until(db, 0o444)
        spools_until(db.parent, 0o555)
        spools_until(db.parent, 0o555, db.with_name("new.db"))
        print("done")
        """,
        monkeypatch,
    )
    endings = [f"No permission to write {place}. (further" for place in (db, db.parent, db.parent)]
    assert [ending in line for line, ending in zip(said, endings, strict=True)] == [True] * 3, said
    assert_invariants(db, spans=1 + 4 + 4)
    assert_invariants(db.with_name("new.db"), spans=4)


def test_b3_read_only_in_the_middle(db: Path, monkeypatch: pytest.MonkeyPatch, assert_invariants: Any) -> None:
    """What is open stays open: it is the next connection that may not write."""
    said = run_as_nobody(
        db,
        """
        begin()
        end(2)
        handle.flush(30)
        db.chmod(0o444)
        db.parent.chmod(0o555)
        end(2)
        assert handle.flush(30).committed == 4
        handle.processor._exporter._shared.engine.dispose()
        end(2)
        report = handle.flush(30)
        assert (report.committed, report.spooled, report.dropped) == (4, 2, {}), report
        db.parent.chmod(0o755)
        db.chmod(0o644)
        end(1)
        report = handle.shutdown(30)
        assert (report.committed, report.spooled, report.dropped) == (7, 0, {}), report
        print("done")
        """,
        monkeypatch,
    )
    assert len(said) == 1
    assert f"No permission to write {db}." in said[0]
    assert_invariants(db, spans=1 + 7)
