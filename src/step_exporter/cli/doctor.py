"""``step-exporter doctor``: is the database sound, and is everything in it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, NamedTuple, cast

import typer
from rich.console import RenderableType
from rich.text import Text
from sqlalchemy import Connection, Engine, func, select
from sqlalchemy.exc import DBAPIError

from step_exporter.cli.options import DEFAULT_URL as URL
from step_exporter.cli.options import Db, Json, app
from step_exporter.cli.output import print_json, show
from step_exporter.cli.text import count
from step_exporter.ddl import VERSION
from step_exporter.environment import OTEL_EXPORTER_STEPS_SPOOL
from step_exporter.errors import DatabaseError, NotFoundError
from step_exporter.models import Base
from step_exporter.spool import spool_directory, spool_files, spool_home
from step_exporter.store import sqlite
from step_exporter.store.audit import Caller, current_user
from step_exporter.store.engine import BUSY_TIMEOUT_S, create_sync_engine, display_url, sqlite_path
from step_exporter.store.failures import cause
from step_exporter.store.processes import find_abandoned, without_last_account
from step_exporter.store.requeue import requeue
from step_exporter.store.schema import check_schema, schema_version
from step_exporter.text import harmless

_TABLES = Base.metadata.tables
_SPANS, _QUARANTINE, _PROCESSES = _TABLES["spans"], _TABLES["quarantine"], _TABLES["processes"]


_MARKS = {True: ("✓ ", "green"), False: ("! ", "bold yellow"), None: ("– ", "dim")}


class Finding(NamedTuple):
    """One thing that was looked at."""

    name: str
    value: Any
    said: str
    """For people."""
    is_well: bool | None = True
    """None if nobody can tell."""


@app.command()
def doctor(
    db: Db = URL,
    again: Annotated[
        bool, typer.Option("--requeue", help="Try once more to store what could not be stored (the quarantine).")
    ] = False,
    spool: Annotated[
        Path | None,
        typer.Option(metavar="DIRECTORY", envvar=OTEL_EXPORTER_STEPS_SPOOL, help="Where spools are, if not at home."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Look whether the database is sound and everything is in it; record what processes that are gone left open.

    Exits with 1 if the file is damaged or the database cannot be used; what waits in spools is said all the same.
    """
    if not spool_home(None if spool is None else str(spool)):  # words that the exporter takes as well
        spool = None
    try:
        findings = examine(db, again=again, spool=spool)
    except (DatabaseError, NotFoundError):
        _show([_spools(db, spool)], as_json)
        raise
    _show(findings, as_json)
    if any(finding.name == "integrity" and not finding.is_well for finding in findings):
        raise typer.Exit(1)


def examine(db: str, *, again: bool = False, spool: Path | None = None) -> list[Finding]:
    """Look at everything. ``again``: try once more to store what is in the quarantine. Raises ``DatabaseError`` where
    the database cannot be used, ``NotFoundError`` where there is none."""
    reader = create_sync_engine(db, read_only=True)  # says so where there is no file, and makes none
    engine = create_sync_engine(db)
    try:
        with reader.connect() as conn:
            check_schema(conn)
        return list(_findings(engine, db, again, spool))
    except DBAPIError as error:
        waited = f"; it was waited for {BUSY_TIMEOUT_S} s, try again" if "locked" in cause(error) else ""
        raise DatabaseError(f"Cannot use {display_url(db)}: {cause(error)}{waited}") from error
    finally:
        reader.dispose()
        engine.dispose()


def lines(findings: list[Finding]) -> Iterator[RenderableType]:
    """The findings for a terminal."""
    for finding in findings:
        yield Text.assemble(_MARKS[finding.is_well], (f"{finding.name:<12}", "bold"), harmless(finding.said))


def _show(findings: list[Finding], as_json: bool) -> None:
    if as_json:
        print_json({finding.name: finding.value for finding in findings})
    else:
        show(lines(findings))


def _findings(engine: Engine, db: str, again: bool, spool: Path | None) -> Iterator[Finding]:
    yield Finding("database", display_url(db), display_url(db))
    found = find_abandoned(engine)
    if again:
        done = requeue(engine, Caller(current_user()))
        yield Finding(
            "requeue", done._asdict(), f"{done.stored:,} stored, {done.refused:,} refused again", not done.refused
        )
    with engine.begin() as conn:
        version = schema_version(conn)
        yield Finding("schema", version, f"version {version}, this program's is {VERSION}", version == VERSION)
        yield _integrity(conn)
        yield _spans(conn)
        yield _open(conn, found)
        yield _quarantine(conn)
        yield _processes(conn)
    if (path := sqlite_path(db)) is not None:
        yield _log(sqlite.wal_bytes(path))
    yield _spools(db, spool)


def _integrity(conn: Connection) -> Finding:
    if conn.dialect.name != "sqlite":
        return Finding("integrity", "ok", "the server sees to it")
    problems = [str(row[0]) for row in conn.exec_driver_sql("PRAGMA integrity_check(10)")]
    return Finding("integrity", "; ".join(problems), "; ".join(problems), problems == ["ok"])


def _spans(conn: Connection) -> Finding:
    counts = {
        table: conn.scalar(select(func.count()).select_from(_TABLES[table])) or 0
        for table in ("traces", "spans", "steps", "runs", "messages")
    }
    return Finding("stored", counts, ", ".join(f"{number:,} {table}" for table, number in counts.items()))


def _open(conn: Connection, found: int) -> Finding:
    query = select(func.count(), func.count(_SPANS.c.abandoned_ns)).where(_SPANS.c.state == "open")
    total, abandoned = conn.execute(query).one()
    said = f"{count(total - abandoned, 'span')} running, {abandoned:,} abandoned ({found:,} found just now)"
    return Finding("open", {"running": total - abandoned, "abandoned": abandoned, "found_now": found}, said)


def _quarantine(conn: Connection) -> Finding:
    query = select(_QUARANTINE.c.reason, func.count()).group_by(_QUARANTINE.c.reason).order_by(_QUARANTINE.c.reason)
    reasons: dict[str, int] = {row[0]: row[1] for row in conn.execute(query)}
    said = ", ".join(f"{number:,} {reason}" for reason, number in reasons.items())
    hint = "; try again: doctor --requeue" if reasons.keys() & {"unstorable", "underived"} else ""
    return Finding("quarantine", reasons, (said or "empty") + hint, not reasons)


def _processes(conn: Connection) -> Finding:
    """What writers said of themselves: spans seen against stored."""
    query = select(_PROCESSES.c.seen, _PROCESSES.c.committed, _PROCESSES.c.spooled, _PROCESSES.c.dropped)
    seen = committed = spooled = 0
    dropped = Counter[str]()
    rows = conn.execute(query.where(_PROCESSES.c.seen.is_not(None))).all()
    if not rows:  # serve and import answer whoever sends, and keep no account
        return Finding("seen", None, "no writer has reported what became of its spans", None)
    for row in rows:
        seen, committed, spooled = seen + row.seen, committed + row.committed, spooled + row.spooled
        dropped.update(cast("dict[str, int]", row.dropped or {}))
    said = f"{seen:,} spans, {committed:,} committed, {spooled:,} spooled, {sum(dropped.values()):,} dropped"
    reasons = ", ".join(f"{number:,} {reason}" for reason, number in sorted(dropped.items()))
    said += f" ({reasons})" if reasons else ""
    unknown = without_last_account(conn)
    if unknown:
        said += f"; {count(unknown, 'writer')} ended without a last report"
    value = {"seen": seen, "committed": committed, "spooled": spooled, "dropped": dict(dropped), "unknown": unknown}
    return Finding("seen", value, said, False if dropped else None if unknown else True)


def _log(size: int) -> Finding:
    """The write-ahead log, which grows while a reader keeps it from being written back."""
    is_well = size <= sqlite.WAL_LIMIT
    hint = "" if is_well else ": some program reads in one transaction that does not end"
    return Finding("log", size, f"{size / 2**20:,.1f} MiB are not written back{hint}", is_well)


def _spools(db: str, home: Path | None) -> Finding:
    directory = spool_directory(db, home)
    files = list(spool_files(directory)) if directory is not None and directory.is_dir() else []
    value = [{"path": str(file.path), "facts": file.facts, "in_use": file.in_use} for file in files]
    said = "; ".join(f"{_facts(file.facts)} in {file.path}{_owner(file.in_use)}" for file in files)
    missing = f"none: there is no directory {home}" if home is not None and not home.is_dir() else "none"
    return Finding("spools", value, said or missing, not files)


def _facts(number: int | None) -> str:
    return "unreadable" if number is None else count(number, "fact")


def _owner(in_use: bool) -> str:
    return " (its process lives)" if in_use else " (orphaned: the next writer brings it in)"
