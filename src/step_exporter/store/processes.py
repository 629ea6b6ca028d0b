"""Processes that write, and what became of their spans.

An open span whose process is gone will not end any more. Whoever finds that out (a writer at its start, ``doctor``,
``tail``, the page) records it as a fact: the span gets ``abandoned_ns``, and ``step_exporter.abandoned`` says why. An
end that arrives all the same wins.
"""

from __future__ import annotations

import logging
import os
import platform
import threading
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from msgspec.structs import replace
from sqlalchemy import (
    ColumnElement,
    Connection,
    Engine,
    Row,
    bindparam,
    func,
    insert,
    literal_column,
    select,
    update,
)
from sqlalchemy.exc import SQLAlchemyError

from step_exporter.errors import StepExporterError
from step_exporter.facts import RawSpan
from step_exporter.models import Base
from step_exporter.store.codec import SpanRow
from step_exporter.store.failures import cause
from step_exporter.store.ingest import Writer
from step_exporter.store.load import decoded, load_some

_log = logging.getLogger(__name__)

HEARTBEAT_S = 10.0
"""How often a process says that it lives."""
SILENT_S = 120
"""A process of another host that has not said so for that long, by the database's clock, is taken to be gone."""
ABANDONED = "step_exporter.abandoned"
"""The attribute of an abandoned span that says how its process was found gone: ``ended`` (it said so itself),
``not_running`` (its host has no such process any more) or ``silent`` (no heartbeat)."""

_PROCESSES, _SPANS = Base.metadata.tables["processes"], Base.metadata.tables["spans"]


class Account(NamedTuple):
    """What became of the spans that ended in a process."""

    seen: int
    committed: int
    spooled: int
    dropped: Mapping[str, int]

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to tell: spans that were let go are none of anybody's business."""
        return not (self.committed or self.spooled or self.dropped)


def register(engine: Engine, account: Account | None = None, *, ended: bool = False) -> str:
    """Put this process down, perhaps with what became of its spans so far and that it ends; its id."""
    id_ = uuid.uuid4().hex
    with engine.begin() as conn:
        now = _now(conn)
        values: dict[str, Any] = {
            "id": id_,
            "host": platform.node(),
            "boot_id": _boot_id(),
            "pid": os.getpid(),
            "pid_start": _start_of(os.getpid()),
            "started_at": now,
            "heartbeat_at": now,
            **(account._asdict() if account is not None else {}),
            **({"ended_at": now} if ended else {}),
        }
        conn.execute(insert(_PROCESSES).values(values))
    return id_


def heartbeat(engine: Engine, id_: str, account: Account, *, ended: bool = False) -> None:
    """Say that a process lives, or that it ends, and what became of its spans."""
    with engine.begin() as conn:
        now = _now(conn)
        values: dict[str, Any] = {"heartbeat_at": now, **account._asdict(), **({"ended_at": now} if ended else {})}
        conn.execute(update(_PROCESSES).where(_PROCESSES.c.id == id_).values(values))


def without_last_account(conn: Connection) -> int:
    """How many processes are gone, and did not tell at their end what became of their spans."""
    query = select(_PROCESSES, _silent(conn).label("silent")).where(_PROCESSES.c.ended_at.is_(None))
    here = _here()
    return sum(_how_gone(row, here) is not None for row in conn.execute(query))


def find_abandoned(engine: Engine, writer: Writer | None = None, *, reader: Engine | None = None) -> int:
    """Record the open spans of processes that are gone as abandoned; how many. Costs a look at what is open, through
    ``reader`` where one is given: it takes no lock, and ``engine`` connects only if there is something to record."""
    with (reader or engine).connect() as conn:
        gone = _gone(conn)
        if not gone:
            return 0
        raws = [
            replace(
                found.raw,
                abandoned_ns=time.time_ns(),
                attributes={**found.raw.attributes, ABANDONED: gone[found.raw.process_id or ""]},
            )
            for trace_id, span_ids in _open_spans(conn, gone).items()
            for found in decoded(conn, trace_id, _still_open(conn, trace_id, span_ids))
        ]
    _write(writer or Writer(engine), raws)
    return len(raws)


class Finder:
    """Finds what is abandoned while something else is read: once in ``HEARTBEAT_S``, in one thread at a time. What goes
    wrong with it does not stop the reading: the database may be away, or the user not be allowed to write."""

    def __init__(self, reader: Engine, writing: Engine) -> None:
        self._reader = reader
        self._writing = writing
        self._lock = threading.Lock()
        self._due = 0.0

    def look(self) -> None:
        """Look, if it is time to."""
        if time.monotonic() < self._due or not self._lock.acquire(blocking=False):
            return
        try:
            self._due = time.monotonic() + HEARTBEAT_S
            find_abandoned(self._writing, reader=self._reader)
        except (SQLAlchemyError, StepExporterError) as error:
            _log.info("step_exporter could not record abandoned spans: %s", cause(error))
        finally:
            self._lock.release()


def _write(writer: Writer, raws: list[RawSpan]) -> None:
    if raws:
        writer.write(raws)


def _gone(conn: Connection) -> dict[str, str]:
    """Processes with open spans that are gone, and how that was found."""
    has_open = select(_SPANS.c.process_id).where(
        _SPANS.c.state == literal_column("'open'"), _SPANS.c.process_id.is_not(None), _SPANS.c.abandoned_ns.is_(None)
    )
    query = select(_PROCESSES, _silent(conn).label("silent")).where(_PROCESSES.c.id.in_(has_open))
    here = _here()
    return {row.id: how for row in conn.execute(query) if (how := _how_gone(row, here)) is not None}


def _here() -> tuple[str, str | None]:
    """The host and its boot."""
    return platform.node(), _boot_id()


def _how_gone(row: Row[Any], here: tuple[str, str | None]) -> str | None:
    """How it is known that a process of ``processes`` is gone; None if it is not."""
    if row.ended_at is not None:
        return "ended"
    if row.boot_id is not None and (row.host, row.boot_id) == here:
        return None if _runs(row.pid, row.pid_start) else "not_running"
    return "silent" if row.silent else None


def _silent(conn: Connection) -> ColumnElement[bool]:
    return _PROCESSES.c.heartbeat_at < _now(conn, SILENT_S)


def _open_spans(conn: Connection, processes: dict[str, str]) -> dict[str, list[str]]:
    query = select(_SPANS.c.trace_id, _SPANS.c.span_id).where(
        _SPANS.c.state == literal_column("'open'"),
        _SPANS.c.process_id.in_(bindparam("processes", expanding=True)),
        _SPANS.c.abandoned_ns.is_(None),
    )
    found: dict[str, list[str]] = {}
    for trace_id, span_id in conn.execute(query, {"processes": sorted(processes)}):
        found.setdefault(trace_id, []).append(span_id)
    return found


def _still_open(conn: Connection, trace_id: str, span_ids: list[str]) -> list[SpanRow]:
    return [row for row in load_some(conn, trace_id, span_ids) if row.state == "open"]


def _now(conn: Connection, seconds_ago: int = 0) -> Any:
    """The database's own clock, in the form of ``UtcDateTime``."""
    if conn.dialect.name == "postgresql":
        return func.now() - func.make_interval(0, 0, 0, 0, 0, 0, seconds_ago)
    return func.strftime("%Y-%m-%d %H:%M:%f", "now", f"-{seconds_ago} seconds").op("||")("000")


def _boot_id() -> str | None:
    """Names the host's current boot, and the space in which pids count (a container's); None where that is unknown."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return None


def _start_of(pid: int) -> int | None:
    """When a process began, in clock ticks since the boot; 0 if it has ended and nobody has asked for its result."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    return 0 if fields[0] in ("Z", "X") else int(fields[19])


def _runs(pid: int | None, start: int | None) -> bool:
    """Whether that very process runs on this host; True if nobody can tell."""
    if pid is None:
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True  # another user's
    now = _start_of(pid)
    return now is None or start is None or now == start
