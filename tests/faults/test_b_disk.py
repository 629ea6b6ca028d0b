"""A1, A12, B1 and B2: a disk that fails, fills up, or loses what was not synced; and deaths between its calls.

``disk.c`` stands between SQLite and the kernel; nothing of SQLite or of ours is replaced.
"""

from __future__ import annotations

import os
import random
import shutil
import struct
import subprocess
import sys
import textwrap
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from fault_apps import APP, ended, rows, run

from step_exporter.exporter import StepSpanExporter

pytestmark = pytest.mark.once

EVERY = int(os.environ.get("STEP_EXPORTER_DISK_EVERY", "47"))
"""Of the calls in a program's life, each how many-th it is killed at; 1 for all of them."""
POWER_CUTS = int(os.environ.get("STEP_EXPORTER_POWER_CUTS", "6"))

DISK = """
import ctypes, logging, step_exporter.exporter
logging.basicConfig(format="%(levelname)s %(message)s")
step_exporter.exporter._PAUSE_S = 0.0
disk = ctypes.CDLL(None)
def end(count):
    # in one trace: looking through many takes long
    with tracer.start_as_current_span("agent", attributes={"gen_ai.operation.name": "invoke_agent"}):
        for _ in range(count - 1):
            tracer.start_span("chat", attributes=LLM).end()
"""


@pytest.fixture(scope="session")
def disk(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of a program whose disk can fail."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None or sys.platform != "linux":
        pytest.skip("needs a C compiler, on Linux")
    library = tmp_path_factory.mktemp("disk") / "disk.so"
    source = Path(__file__).with_name("disk.c")
    subprocess.run([compiler, "-O1", "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
    return {"LD_PRELOAD": str(library)}


def run_on(disk: dict[str, str], code: str, db: str | Path, **env: str) -> tuple[int, str, str]:
    return run(DISK + textwrap.dedent(code), db, **env, **disk)


def errors(err: str) -> list[str]:
    return [line for line in err.splitlines() if line.startswith("ERROR")]


def test_b1_and_b2_a_disk_that_fails_for_a_while_costs_nothing(
    db: Path, disk: dict[str, str], assert_invariants: Any
) -> None:
    """Writes that find no room, and writes, fsyncs and reads that fail. What failed is written again, by a connection
    that was opened after an error of the disk: an fsync that is only repeated says that all is well."""
    code, out, err = run_on(
        disk,
        """
        from sqlalchemy import event
        disk.disk_watch(os.environ["DB_PATH"].encode())
        end(100)
        assert handle.flush(30).committed == 100
        exporter = handle.processor._exporter
        engine = exporter._shared.engine
        opened = []
        event.listen(engine, "connect", lambda *_: opened.append(1))
        for operations, error in ((b"w", 28), (b"wt", 5), (b"s", 5), (b"r", 5)):
            exporter._notices._said.clear()
            before = handle.flush(0).committed
            opened.clear()
            if operations == b"r":  # nothing is read again that a connection remembers
                engine.dispose()
            disk.disk_fail(operations, error, 0)
            for _ in range(3):
                end(50)
                report = handle.flush(30)
            assert (report.committed, report.spooled, report.dropped) == (before, 150, {}), (operations, report)
            disk.disk_fail(b"", 0, 0)
            end(1)
            report = handle.flush(30)
            assert (report.committed, report.spooled) == (before + 151, 0), (operations, report)
            assert bool(opened) == (error == 5), operations
        print(handle.shutdown())
        """,
        f"sqlite:///{db}?synchronous=FULL",
        DB_PATH=str(db),
    )
    assert (code, out) == (0, "FlushReport(committed=704, spooled=0, dropped={}, let_go=0, pending=0)\n"), err
    full, *failed = errors(err)
    assert "database or disk is full" in full
    assert ["disk I/O error" in line for line in failed] == [True] * 3
    assert all(str(db) in line for line in errors(err))
    assert_invariants(db, spans=704)


def test_b1_a_full_disk_under_database_and_spool_is_counted_and_recovers(
    tmp_path: Path, disk: dict[str, str], assert_invariants: Any
) -> None:
    db = tmp_path / "steps.db"
    code, out, err = run_on(
        disk,
        """
        disk.disk_watch(os.environ["PLACE"].encode())
        end(10)
        handle.flush(30)
        disk.disk_fail(b"w", 28, 0)
        end(20)
        report = handle.flush(30)
        assert (report.committed, report.dropped) == (10, {"spool": 20}), report
        disk.disk_fail(b"", 0, 0)
        end(5)
        print(handle.shutdown())
        """,
        db,
        PLACE=str(tmp_path),
        XDG_STATE_HOME=str(tmp_path / "state"),
    )
    assert code == 0, err
    assert out == "FlushReport(committed=15, spooled=0, dropped={'spool': 20}, let_go=0, pending=0)\n"
    assert [("full" in line, str(tmp_path) in line) for line in errors(err)] == [(True, True)] * 2
    assert_invariants(db, spans=15)


ON_TMPFS = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"]
MOUNT = 'mount -t tmpfs -o size=4m tmpfs "$0" && exec "$@"'


def test_b1_a_tmpfs_that_is_really_full(tmp_path: Path, assert_invariants: Any) -> None:
    place, out = tmp_path / "disk", tmp_path / "out"
    place.mkdir()
    if shutil.which("unshare") is None or subprocess.run([*ON_TMPFS, MOUNT, place, "true"], check=False).returncode:
        pytest.skip("a tmpfs cannot be mounted here")
    app = (
        DISK
        + """
import shutil
end(10)
assert handle.flush(30).committed == 10
place = os.path.dirname(os.environ["DB"])
with open(place + "/ballast", "wb", buffering=0) as ballast:
    try:
        while True:
            ballast.write(bytes(4096))
    except OSError:
        pass
for _ in range(3):
    end(200)
    report = handle.flush(30)
assert report.dropped and not report.pending, report
os.unlink(place + "/ballast")
end(5)
report = handle.shutdown()
assert (report.seen, report.spooled, report.pending) == (615, 0, 0), report
shutil.copytree(place, os.environ["OUT"])
print(report.committed, set(report.dropped))
"""
    )
    done = subprocess.run(
        [*ON_TMPFS, MOUNT, place, sys.executable, "-W", "error", "-c", APP + app],
        env={**os.environ, "DB": f"{place}/steps.db", "XDG_STATE_HOME": f"{place}/state", "OUT": str(out)},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    committed, reasons = done.stdout.split(" ", 1)
    assert reasons == "{'spool'}\n"
    assert_invariants(out / "steps.db", spans=int(committed))


def test_a1_killed_between_any_two_calls_to_the_disk(
    tmp_path: Path, disk: dict[str, str], assert_invariants: Any
) -> None:
    """From the making of the tables to the last checkpoint, before a call or half way through a write."""
    code, out, err = run_on(
        disk,
        """
        def live(path, n, half, said):
            global handle
            disk.disk_watch(path.encode())
            disk.disk_kill(n, half)
            handle = step_exporter.configure(path, provider=trace.get_tracer_provider())
            for _ in range(3):
                end(5)
                os.write(said, b"%d " % handle.flush(30).committed)
            handle.shutdown()
        handle.shutdown()  # each program configures its own
        n, clean = 1, False
        while not clean:
            path = f"{os.environ['DB']}/{n}.db"
            reading, writing = os.pipe()
            if not (pid := os.fork()):
                live(path, n, n % 2, writing)
                os._exit(0)
            os.close(writing)
            status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            acknowledged = os.read(reading, 100).split()
            os.close(reading)
            assert status in (0, -signal.SIGKILL), status
            clean = status == 0
            print(path, int(acknowledged[-1]) if acknowledged else 0, flush=True)
            n += int(os.environ["EVERY"])
        """,
        tmp_path,
        EVERY=str(EVERY),
    )
    assert code == 0, err
    lives = [line.split() for line in out.splitlines()]
    assert len(lives) > 200 / EVERY  # it takes some hundred calls
    assert lives[-1][1] == "15"
    for path, acknowledged in lives:
        exporter = StepSpanExporter(path)
        exporter.export([ended()])
        exporter.shutdown()
        ((stored,),) = rows(Path(path), "SELECT count(*) FROM spans WHERE state = 'ended'")
        assert int(acknowledged) + 1 <= stored <= 16
        assert_invariants(path, exporter.stats(), spans=stored)


class Change(NamedTuple):
    """A call as ``disk_record`` put it down."""

    operation: str
    path: str
    offset: int
    body: bytes


def recorded(log: Path) -> Iterator[Change]:
    data = log.read_bytes()
    at = 0
    while at < len(data):
        operation, path_length, offset, length = struct.unpack_from("=4q", data, at)
        at += 32
        path = data[at : at + path_length].decode()
        at += path_length
        yield Change(chr(operation), path, offset, data[at : at + length])
        at += length


def after_a_power_cut(changes: list[Change], rng: random.Random | None) -> dict[str, bytes]:
    """The files as a disk may hold them: what was synced, and of the rest whatever sectors of 512 bytes got there
    (without ``rng``: none)."""
    durable = defaultdict[str, bytearray](bytearray)
    waiting = defaultdict[str, list[Change]](list)
    for change in changes:
        waiting[change.path].append(change)
        if change.operation == "s":
            for path in list(waiting):
                # That a file is gone is known after any fsync, as journaling file systems have it.
                gone = [at for at, before in enumerate(waiting[path]) if before.operation == "u"]
                settled = len(waiting[path]) if path == change.path else gone[-1] + 1 if gone else 0
                for before in waiting[path][:settled]:
                    apply(durable, before)
                del waiting[path][:settled]
    for left in waiting.values():
        for change in left:
            for at in range(0, max(len(change.body), 1), 512):
                if rng is not None and rng.random() < 0.5:
                    part = change._replace(offset=change.offset + at, body=change.body[at : at + 512])
                    apply(durable, part if change.operation == "w" else change)
    return {path: bytes(body) for path, body in durable.items()}


def apply(files: dict[str, bytearray], change: Change) -> None:
    if change.operation == "u":
        files.pop(change.path, None)
        return
    file = files[change.path]
    end = change.offset + len(change.body)
    if change.operation == "w":
        file.extend(bytes(max(0, end - len(file))))
        file[change.offset : end] = change.body
    elif change.operation == "t":
        del file[change.offset :]
        file.extend(bytes(change.offset - len(file)))


@pytest.mark.parametrize("synchronous", ["NORMAL", "FULL"])
def test_a12_a_power_cut(tmp_path: Path, disk: dict[str, str], synchronous: str, assert_invariants: Any) -> None:
    """NORMAL: consistent, the last commits may be lost. FULL: none is."""
    db, log = tmp_path / "steps.db", tmp_path / "log"
    code, _, err = run_on(
        disk,
        """
        path = os.environ["DB_PATH"]
        disk.disk_watch(path.encode())
        disk.disk_record(os.environ["LOG"].encode())
        from sqlalchemy import Engine, event
        @event.listens_for(Engine, "connect")
        def connect(connection, _):  # so that a small file sees many
            connection.execute("PRAGMA wal_autocheckpoint = 50")
        acknowledged = os.open(path + ".acknowledged", os.O_WRONLY | os.O_CREAT)
        for _ in range(12):
            end(20)
            os.write(acknowledged, b"%d " % handle.flush(30).committed)
        handle.shutdown()
        """,
        f"sqlite:///{db}?synchronous={synchronous}",
        DB_PATH=str(db),
        LOG=str(log),
    )
    assert code == 0, err
    changes = [change for change in recorded(log) if not change.path.endswith("-shm")]
    acks = [(at, int(change.body)) for at, change in enumerate(changes) if change.path.endswith(".acknowledged")]
    assert acks[-1][1] == 240
    syncs = [change.path for change in changes[acks[0][0] :] if change.operation == "s"]
    assert db.as_posix() in syncs  # a checkpoint is among what is cut
    rng = random.Random(12)
    cuts: list[tuple[int, random.Random | None]] = [(at, None) for at, _ in acks[5:8]]
    cuts += [(rng.randrange(len(changes)), rng) for _ in range(POWER_CUTS)]
    missing = 0
    for number, (at, luck) in enumerate(cuts):
        place = tmp_path / str(number)
        place.mkdir()
        for path, body in after_a_power_cut(changes[: at + 1], luck).items():
            (place / Path(path).name).write_bytes(body)
        exporter = StepSpanExporter(place / db.name)
        exporter.export([ended()])
        exporter.shutdown()
        assert_invariants(place / db.name, exporter.stats())
        ((stored,),) = rows(place / db.name, "SELECT count(*) FROM spans")
        missing += max(0, max((count for ack, count in acks if ack <= at), default=0) + 1 - stored)
    assert missing == 0 if synchronous == "FULL" else missing > 0
    assert rows(db, "SELECT count(*) FROM spans") == [(240,)]
