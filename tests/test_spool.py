"""While the database is away, spans wait on disk, and come in when it is back: with this process or the next."""

from __future__ import annotations

import os
import sqlite3
import stat
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.sdk.trace.export import SpanExportResult

import step_exporter.exporter as exporter_module
from sdk_spans import LLM, SECRET, adds_up, ended, fail_with, provider_for, query
from step_exporter.errors import DatabaseError
from step_exporter.exporter import StepSpanExporter
from step_exporter.facts import Event, Link, RawSpan, Resource, Scope
from step_exporter.spool import Spool, adopt, spool_directory, spool_files, spooled
from step_exporter.store.engine import close_idle_files
from step_exporter.store.prepare import Rejected


@pytest.fixture
def away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A database whose directory does not exist yet."""
    monkeypatch.setattr(exporter_module, "_PAUSE_S", 0.0)
    return tmp_path / "later" / "steps.db"


def raw(number: int) -> RawSpan:
    return RawSpan(f"{number + 1:032x}", f"{number + 1:016x}", None, "chat", attributes={"a": (1, "b\0", float("inf"))})


def collect(into: list[RawSpan]) -> object:
    def write(raws: Sequence[RawSpan], rejected: Sequence[Rejected]) -> None:
        into.extend(raws)

    return write


def test_spans_wait_and_come_in_when_the_database_is_back(away: Path) -> None:
    exporter = StepSpanExporter(away)
    assert exporter.export([ended()]) is SpanExportResult.SUCCESS
    assert exporter.stats().spooled == 1
    assert exporter.force_flush() is False
    away.parent.mkdir()
    assert exporter.export([ended(span_id=8)]) is SpanExportResult.SUCCESS
    assert exporter.force_flush() is True
    stats = exporter.stats()
    assert (stats.seen, stats.committed, stats.spooled, stats.dropped) == (2, 2, 0, {})
    assert query(away, "SELECT count(*) FROM steps") == [(2,)]
    directory = spool_directory(away)
    assert directory is not None
    assert list(directory.iterdir()) == []
    exporter.shutdown()


def test_the_next_process_brings_them_in(away: Path) -> None:
    first = StepSpanExporter(away)
    first.export([ended(span_id=n) for n in range(1, 1201)])
    first.shutdown()
    assert (first.stats().spooled, first.stats().dropped) == (1200, {})
    away.parent.mkdir()
    second = StepSpanExporter(away)
    second.export([ended(span_id=9_000)])
    assert (second.stats().adopted, second.stats().committed) == (1200, 1)
    assert query(away, "SELECT count(*), count(DISTINCT span_id) FROM spans") == [(1201, 1201)]
    second.shutdown()


def test_only_the_user_may_read_it(away: Path) -> None:
    exporter = StepSpanExporter(away)
    exporter.export([ended()])
    directory = spool_directory(away)
    assert directory is not None
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in directory.iterdir()} == {0o600}
    exporter.shutdown()


def test_no_content_is_in_it_when_content_is_off(away: Path) -> None:
    exporter = StepSpanExporter(away, content="off")
    fail_with(provider_for(exporter), SECRET)
    directory = spool_directory(away)
    assert directory is not None
    assert exporter.stats().spooled == 1
    assert all(SECRET.encode() not in path.read_bytes() for path in directory.iterdir())
    exporter.shutdown()


def spool_of_another(away: Path, **settings: Any) -> None:
    """What a process that is gone has left for a database, a rejected span among it."""
    gone = StepSpanExporter(away, **settings)
    fail_with(provider_for(gone), SECRET)
    gone.export([ended({**LLM, "said": SECRET}, span_id=0)])
    gone.shutdown()
    assert gone.stats().spooled == 2
    away.parent.mkdir()


def in_database(away: Path, text: str) -> bool:
    return any(text.encode() in path.read_bytes() for path in away.parent.iterdir())


def test_content_off_holds_for_what_is_adopted(away: Path) -> None:
    spool_of_another(away)
    exporter = StepSpanExporter(away, content="off")
    exporter.export([ended(span_id=9)])
    assert exporter.stats().adopted == 2
    exporter.shutdown()
    assert not in_database(away, SECRET)
    assert query(away, "SELECT count(*) FROM spans") == [(2,)]
    assert query(away, "SELECT reason FROM quarantine") == [("invalid_id",)]


def test_what_is_adopted_is_redacted_once(away: Path) -> None:
    spool_of_another(away)
    first = StepSpanExporter(away, redact=lambda name, text: text.replace(SECRET, "[hidden]"))
    first.export([ended(span_id=9)])
    assert first.stats().adopted == 2
    first.shutdown()
    assert not in_database(away, SECRET)
    assert in_database(away, "[hidden]")


def test_what_its_maker_has_redacted_is_not_redacted_again(away: Path) -> None:
    spool_of_another(away, redact=lambda name, text: text.replace(SECRET, "[hidden]"))
    second = StepSpanExporter(away, redact=lambda name, text: text.replace("hidden", "hidden twice"))
    second.export([ended(span_id=9)])
    assert second.stats().adopted == 2
    second.shutdown()
    assert in_database(away, "[hidden]")
    assert not in_database(away, "hidden twice")


LEAST = RawSpan(f"{1:032x}", f"{1:016x}", None, "")
MOST = RawSpan(
    f"{2:032x}",
    f"{2:016x}",
    f"{3:016x}",
    "chat",
    "client",
    5,
    7,
    status_code="error",
    status_message="",
    attributes={"a": None, "b": ()},
    events=(Event("", None), Event("e", 6, {"n": 1}, 2)),
    links=(Link(f"{4:032x}", f"{4:016x}", "k=v", {"n": 1.5}, 1, 0x301),),
    resource=Resource({"service.name": "s"}, "u"),
    scope=Scope("n", "v", {"n": True}, "u"),
    trace_flags=1,
    trace_state="k=v",
    parent_is_remote=False,
    dropped_attributes=1,
    dropped_events=2,
    dropped_links=3,
    flags=("truncated",),
)


def test_facts_come_out_as_they_went_in(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    facts = [raw(0), raw(1), LEAST, MOST]
    assert spool.put([spooled(fact) for fact in facts]) == 4
    found: list[RawSpan] = []
    assert spool.bring_in(collect(found)) == 4  # type: ignore[arg-type]
    assert found == facts
    assert list(tmp_path.iterdir()) == []


def test_it_is_bounded_and_what_it_has_no_room_for_is_counted(away: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exporter_module, "Spool", lambda directory, cipher: Spool(directory, max_bytes=2_000))
    exporter = StepSpanExporter(away)
    assert exporter.export([ended(span_id=n) for n in range(1, 11)]) is SpanExportResult.FAILURE
    stats = exporter.stats()
    assert 0 < stats.spooled < 10
    assert stats.dropped == {"spool_full": 10 - stats.spooled}
    assert adds_up(stats)
    exporter.shutdown()


def test_a_spool_that_cannot_be_written_is_counted_and_said(
    away: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    exporter = StepSpanExporter(away, spool=tmp_path / "file" / "spool")
    assert exporter.export([ended()]) is SpanExportResult.FAILURE
    assert exporter.stats().dropped == {"spool": 1}
    assert "spans are lost" in caplog.text
    exporter.shutdown()


def test_a_spool_that_is_in_use_is_left_alone(tmp_path: Path) -> None:
    code = (
        "import sys; from step_exporter.spool import *; from step_exporter.facts import RawSpan\n"
        f"spool = Spool(__import__('pathlib').Path({str(tmp_path)!r}))\n"
        "spool.put([spooled(RawSpan('1' * 32, '1' * 16, None, 'chat'))])\n"
        "print('ready', flush=True); sys.stdin.read(1)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as owner:
        assert owner.stdout is not None
        assert owner.stdout.readline() == "ready\n"
        found: list[RawSpan] = []
        assert adopt(tmp_path, collect(found), 100) == 0  # type: ignore[arg-type]
        assert [(file.facts, file.in_use) for file in spool_files(tmp_path)] == [(1, True)]
        owner.kill()
    assert [(file.facts, file.in_use) for file in spool_files(tmp_path)] == [(1, False)]
    assert adopt(tmp_path, collect(found), 100) == 1  # type: ignore[arg-type]
    assert [fact.name for fact in found] == ["chat"]
    assert list(tmp_path.iterdir()) == []


def test_what_fails_on_the_way_in_stays(tmp_path: Path) -> None:
    first = Spool(tmp_path)
    first.put([spooled(raw(0))])
    first.close()

    def fail(raws: Sequence[RawSpan], rejected: Sequence[Rejected]) -> None:
        raise DatabaseError

    with pytest.raises(DatabaseError):
        adopt(tmp_path, fail, 100)
    found: list[RawSpan] = []
    assert adopt(tmp_path, collect(found), 100) == 1  # type: ignore[arg-type]


def test_a_torn_spool_is_named_and_left(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "1-torn.db").write_bytes(b"no database" * 1000)
    found: list[RawSpan] = []
    assert adopt(tmp_path, collect(found), 100) == 0  # type: ignore[arg-type]
    assert "1-torn.db" in caplog.text
    assert (tmp_path / "1-torn.db").exists()
    assert [file.facts for file in spool_files(tmp_path)] == [None]


def test_the_directory_is_named_by_the_database_not_by_the_user(tmp_path: Path) -> None:
    one = spool_directory("postgresql://a:x@host:5432/steps", tmp_path)
    assert one == spool_directory("postgresql+asyncpg://b:y@host:5432/steps", tmp_path)
    assert one != spool_directory("postgresql://a:x@host:5433/steps", tmp_path)
    assert spool_directory("sqlite://", tmp_path) is None


@pytest.mark.parametrize("home", [None, "kept"])
def test_an_app_that_changes_its_directory_keeps_its_database_and_its_spool(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, home: str | None
) -> None:
    """The default URL is relative: it means the directory of the first export."""
    monkeypatch.setattr(exporter_module, "_PAUSE_S", 0.0)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    exporter = StepSpanExporter("sqlite:///later/steps.db", spool=home)
    exporter.export([ended()])
    monkeypatch.chdir("elsewhere")
    exporter.export([ended(span_id=8)])
    exporter.shutdown()
    assert exporter.stats().spooled == 2
    assert list((tmp_path / "elsewhere").iterdir()) == []
    monkeypatch.chdir(tmp_path)
    (tmp_path / "later").mkdir()
    second = StepSpanExporter("sqlite:///later/steps.db", spool=home)
    second.export([ended(span_id=9)])
    assert (second.stats().adopted, second.stats().committed) == (2, 1)
    second.shutdown()


NOBODY = 54321
"""A user without an entry in the passwd file, and without a home."""


@pytest.mark.skipif(os.getuid() != 0, reason="becomes another user")
@pytest.mark.parametrize("home", [None, "/root"])
def test_without_a_home_every_span_is_stored_or_spooled(tmp_path: Path, home: str | None) -> None:
    """As in a container that is started with ``--user``: the home is not there, or somebody else's."""
    code = f"""
        import os, stat
        from pathlib import Path
        from step_exporter.exporter import StepSpanExporter
        from step_exporter.spool import spool_directory
        from sdk_spans import ended
        db = Path("db/steps.db")
        warm = StepSpanExporter(db)  # what is imported late may be another user's to read
        warm.export([ended(span_id=99)])
        warm.shutdown()
        for path in db.parent.iterdir():
            path.unlink()
        os.setgroups([]); os.setgid({NOBODY}); os.setuid({NOBODY})
        exporter = StepSpanExporter(db)
        for number in range(1, 21):
            exporter.export([ended(span_id=number)])
        assert (exporter.stats().committed, exporter.stats().dropped) == (20, {{}}), exporter.stats()
        away = StepSpanExporter(Path("db/no/steps.db"))
        away.export([ended()])
        assert (away.stats().spooled, away.stats().dropped) == (1, {{}}), away.stats()
        directory = spool_directory("db/no/steps.db")
        assert directory.parent == Path(f"temporary/step_exporter-{NOBODY}").absolute()
        assert stat.S_IMODE(directory.parent.stat().st_mode) == stat.S_IMODE(directory.stat().st_mode) == 0o700
        exporter.shutdown()
        away.shutdown()
    """
    with tempfile.TemporaryDirectory() as name:  # pytest's own is closed to others
        place = Path(name)
        for path in (place, place / "db", place / "temporary"):
            path.mkdir(exist_ok=True)
            path.chmod(0o777)
        env = {key: value for key, value in os.environ.items() if key not in ("HOME", "XDG_STATE_HOME")}
        env |= {"TMPDIR": str(place / "temporary"), "PYTHONPATH": os.pathsep.join(sys.path)}
        env |= {} if home is None else {"HOME": home}
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(code)],
            cwd=place,
            env=env,
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 0, done.stderr


def test_a_temporary_directory_that_others_may_write_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("XDG_STATE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "file" / "home"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    (tmp_path / "file").write_text("")
    (tmp_path / "file").chmod(0o600)
    theirs = tmp_path / f"step_exporter-{os.getuid()}"
    theirs.mkdir()
    assert spool_directory("sqlite:///steps.db") is not None
    theirs.chmod(0o777)
    assert spool_directory("sqlite:///steps.db") is None
    assert "cannot spool" in caplog.text


def break_spool(away: Path) -> Path:
    """Damage the one spool of a database, as a bad sector does, and give its path."""
    directory = spool_directory(away)
    assert directory is not None
    (path,) = directory.glob("*.db")
    close_idle_files()  # as a fork does
    for beside in directory.glob(path.name + "-*"):
        beside.unlink()
    path.write_bytes(b"\x01" * 8192)
    return path


def test_a_damaged_spool_of_its_own_does_not_stop_the_database(away: Path, caplog: pytest.LogCaptureFixture) -> None:
    exporter = StepSpanExporter(away)
    exporter.export([ended()])
    path = break_spool(away)
    away.parent.mkdir()
    for number in range(8, 28):
        assert exporter.export([ended(span_id=number)]) is not None
    stats = exporter.stats()
    assert (stats.committed, stats.spooled, stats.dropped) == (20, 0, {"spool": 1})
    assert adds_up(stats)
    assert caplog.text.count(f"cannot read the spool {path}") == 1
    assert path.exists()
    exporter.shutdown()


@pytest.mark.parametrize("whole_directory", [False, True])
def test_what_was_deleted_with_its_spool_is_counted_once(
    away: Path, caplog: pytest.LogCaptureFixture, whole_directory: bool
) -> None:
    """As cleaners of temporary files do. Until the file is closed, its spans can be read."""
    exporter = StepSpanExporter(away)
    exporter.export([ended()])
    directory = spool_directory(away)
    assert directory is not None
    for path in directory.iterdir():
        path.unlink()
    if whole_directory:
        directory.rmdir()
    close_idle_files()  # as a fork does
    exporter.export([ended(span_id=8)])
    away.parent.mkdir()
    exporter.export([ended(span_id=9)])
    while exporter.tend():
        pass
    stats = exporter.stats()
    assert (stats.committed, stats.spooled, stats.dropped) == (2, 0, {"spool": 1})
    assert adds_up(stats)
    assert caplog.text.count("cannot read the spool") == 1
    assert exporter.tend() is False
    exporter.shutdown()


def test_where_the_spool_is_damaged_the_next_spans_go_to_a_new_one(away: Path) -> None:
    exporter = StepSpanExporter(away)
    exporter.export([ended()])
    break_spool(away)
    exporter.export([ended(span_id=8)])
    stats = exporter.stats()
    assert (stats.spooled, stats.dropped) == (1, {"spool": 1})
    away.parent.mkdir()
    exporter.export([ended(span_id=9)])
    assert query(away, "SELECT span_id FROM spans ORDER BY 1") == [(f"{8:016x}",), (f"{9:016x}",)]
    exporter.shutdown()


def test_a_forked_child_does_not_hold_the_parents_spool(tmp_path: Path) -> None:
    code = f"""
import os, signal, time
from pathlib import Path
from step_exporter.spool import Spool, spooled
from step_exporter.facts import Event, Link, RawSpan, Resource, Scope
spool = Spool(Path({str(tmp_path)!r}))
spool.put([spooled(RawSpan('1' * 32, '1' * 16, None, 'chat'))])
child = os.fork()
if child == 0:
    time.sleep(60)
print(child, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert done.stdout is not None
    child = int(done.stdout.readline())
    done.wait()
    done.stdout.close()
    try:
        found: list[RawSpan] = []
        assert adopt(tmp_path, collect(found), 100) == 1  # type: ignore[arg-type]
    finally:
        os.kill(child, 9)


def test_the_file_is_a_sound_database(away: Path) -> None:
    exporter = StepSpanExporter(away)
    exporter.export([ended()])
    directory = spool_directory(away)
    assert directory is not None
    (path,) = directory.glob("*.db")
    connection = sqlite3.connect(path)
    assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    connection.close()
    exporter.shutdown()
