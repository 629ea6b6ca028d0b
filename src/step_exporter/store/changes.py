"""Writes what a derivation changed: rows of ``steps``, ``step_metrics``, ``runs`` and ``messages``."""

from __future__ import annotations

from collections.abc import Container, Iterable
from operator import itemgetter
from typing import Any

from msgspec.structs import astuple
from sqlalchemy import Connection

from step_exporter.derive.rows import Changes, MessageRow, RunRow, StepMetricsRow, StepRow
from step_exporter.store.bulk import Statements

STEPS = (*StepRow.__struct_fields__[:-1], "created_at", "updated_at")
METRICS = StepMetricsRow.__struct_fields__
RUNS = (*RunRow.__struct_fields__[:-1], "created_at", "updated_at")
MESSAGES = MessageRow.__struct_fields__

_key = itemgetter(0, 1)


def write_changes(
    conn: Connection,
    sql: Statements,
    changes: Iterable[tuple[str, Changes]],
    new_traces: Container[str] = (),
    now: Any = None,
) -> None:
    """Write the changes of several traces (id, changes): what is gone first, then every row that is new or other.
    ``new_traces`` are those that this transaction made, ``now`` is its time (``Statements.now``).

    Rows are sorted by key: neighbours go to neighbouring pages, and two writers never wait for each other in turn.
    """
    changes = list(changes)
    now = now or sql.now()
    time = sql.time
    for table, deleted in (
        ("messages", [(trace, key) for trace, change in changes for key in change.deleted_messages]),
        ("steps", [(trace, key) for trace, change in changes for key in change.deleted_steps]),
        ("runs", [(trace, key) for trace, change in changes for key in change.deleted_runs]),
    ):
        sql.delete(conn, table, sorted(deleted))
    steps = [(*astuple(row)[:-1], time(row.created_ns), now) for _, change in changes for row in change.steps]
    sql.upsert(conn, "steps", STEPS, sorted(steps, key=_key), new_traces)
    metrics = [astuple(row) for _, change in changes for row in change.step_metrics]
    sql.upsert(conn, "step_metrics", METRICS, sorted(metrics, key=_key), new_traces)
    runs = [(*astuple(row)[:-1], time(row.created_ns), now) for _, change in changes for row in change.runs]
    sql.upsert(conn, "runs", RUNS, sorted(runs, key=_key), new_traces)
    messages = [astuple(row) for _, change in changes for row in change.messages]
    sql.upsert(conn, "messages", MESSAGES, sorted(messages, key=_key), new_traces)
