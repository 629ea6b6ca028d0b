"""Work that one process at a time does for all, every so often: the rows of ``maintenance`` say when it is due next.

By the database's clock, and by rows rather than advisory locks, so that it holds on every engine.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, Engine, func, update
from sqlalchemy.dialects import postgresql, sqlite

from step_exporter.models import Base

_MAINTENANCE = Base.metadata.tables["maintenance"]


def claim(engine: Engine, task: str, seconds: int) -> bool:
    """Whether a task is due, and nobody else has taken it. Then it is not due again before so many seconds."""
    with engine.begin() as conn:
        insert = postgresql.insert if conn.dialect.name == "postgresql" else sqlite.insert
        conn.execute(insert(_MAINTENANCE).values(task=task, due_at=_in(conn, 0)).on_conflict_do_nothing())
        is_due = (_MAINTENANCE.c.task == task, _MAINTENANCE.c.due_at <= _in(conn, 0))
        return conn.execute(update(_MAINTENANCE).where(*is_due).values(due_at=_in(conn, seconds))).rowcount == 1


def prolong(engine: Engine, task: str, seconds: int) -> None:
    """Put off a task that is being done, for so many seconds from now."""
    with engine.begin() as conn:
        conn.execute(update(_MAINTENANCE).where(_MAINTENANCE.c.task == task).values(due_at=_in(conn, seconds)))


def _in(conn: Connection, seconds: int) -> Any:
    """A time by the database's own clock, in the form of ``UtcDateTime``."""
    if conn.dialect.name == "postgresql":
        return func.clock_timestamp() + func.make_interval(0, 0, 0, 0, 0, 0, seconds)
    return func.strftime("%Y-%m-%d %H:%M:%f", "now", f"+{seconds} seconds").op("||")("000")
