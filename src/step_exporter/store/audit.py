"""The audit trail: who changed what, and when, in the table ``audit``.

An entry is written in the transaction of the change that it tells of: neither is there without the other. Nothing here
deletes one; rebuilding, pruning and deleting leave them where they are. They hold what people set, and no content.
"""

from __future__ import annotations

import getpass
import os
from collections.abc import Mapping
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, Connection, insert, select, update

from step_exporter.models import Base, utc_now
from step_exporter.store import filters
from step_exporter.store.filters import Action, AuditFilter, Order, Place
from step_exporter.store.records import AuditRecord, Page

_AUDIT = Base.metadata.tables["audit"]


class Caller(NamedTuple):
    """On whose behalf a database is changed."""

    actor: str
    organization_id: str | None = None
    """The only organization whose rows may be changed; None: all."""


ITSELF = Caller("step_exporter")
"""Who keeps a database without being asked, such as a writer that prunes on a schedule."""


class Entry(NamedTuple):
    """What one entry says."""

    actor: str
    action: Action
    trace_id: str | None = None
    organization_id: str | None = None
    """Whose rows were changed, where they are of one organization."""
    subject: str | None = None
    """The id of the step, run or trace."""
    details: Mapping[str, Any] | None = None
    """JSON values. Of what people set: ``{"old": …, "new": …}`` under its name."""


def current_user() -> str:
    """The name of the operating system's user; ``uid 1000`` where it has none, as in containers."""
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):  # the second and third before Python 3.13
        return f"uid {os.getuid()}" if hasattr(os, "getuid") else "unknown"


def write(conn: Connection, entry: Entry, id_: int | None = None) -> int:
    """Write an entry in the transaction of its change; its id.

    Work of many transactions has one entry: each gives the id that the one before returned, once that is committed,
    and what it says takes the place of what was said.
    """
    if id_ is not None:
        conn.execute(update(_AUDIT).where(_AUDIT.c.id == id_).values(details=entry.details))
        return id_
    row = {**entry._asdict(), "at": utc_now()}
    return conn.execute(insert(_AUDIT).values(row).returning(_AUDIT.c.id)).scalar_one()


def entries(conn: Connection, which: AuditFilter, after: str | None, limit: int, order: Order) -> Page[AuditRecord]:
    """A page of entries, in the order in which they were written."""
    order, limit = filters.check_order(order), filters.check_limit(limit)
    id_ = _AUDIT.c.id
    query = select(_AUDIT).where(*_conditions(which)).limit(limit + 1)
    query = query.order_by(id_.desc() if order == "newest" else id_)
    if after is not None:
        last = filters.decode_cursor("audit", order, after).id
        if not last.isdecimal() or len(last) > 18:
            raise filters.bad_cursor()
        query = query.where(id_ < int(last) if order == "newest" else id_ > int(last))
    found = [AuditRecord(**row) for row in conn.execute(query).mappings()]
    if len(found) <= limit:
        return Page(tuple(found), None)
    last = found[limit - 1]
    return Page(tuple(found[:limit]), filters.encode_cursor("audit", order, Place(last.at, "", str(last.id))))


def _conditions(which: AuditFilter) -> list[ColumnElement[bool]]:
    if which.action is not None:
        filters.check_one_of("action", which.action, filters.ACTIONS)
    conditions: list[ColumnElement[bool]] = []
    for name in ("actor", "action", "organization_id", "subject"):
        value = getattr(which, name)
        if value is not None:
            conditions.append(_AUDIT.c[name] == filters.check_text(name, value))
    if which.trace_ids is not None:
        trace_ids = [filters.check_trace_id(id_) for id_ in filters.check_texts("trace_ids", which.trace_ids)]
        conditions.append(_AUDIT.c.trace_id.in_(trace_ids))
    if which.since is not None:
        conditions.append(_AUDIT.c.at >= filters.check_time("since", which.since))
    if which.until is not None:
        conditions.append(_AUDIT.c.at < filters.check_time("until", which.until))
    return conditions
