"""Another try for what is in the quarantine: a newer version may store what an older one could not."""

from __future__ import annotations

from typing import NamedTuple

from sqlalchemy import Engine, delete, func, select

from step_exporter.models import Base
from step_exporter.store import audit
from step_exporter.store.audit import Caller, Entry
from step_exporter.store.codec import from_canonical
from step_exporter.store.encryption import open_value
from step_exporter.store.ingest import UNDERIVED, Writer
from step_exporter.store.prepare import UNSTORABLE
from step_exporter.store.rebuild import rebuild

_QUARANTINE = Base.metadata.tables["quarantine"]
_ENTRIES = 500


class Requeued(NamedTuple):
    """What came of it."""

    stored: int
    """Spans that are rows now, and traces whose rows could be derived."""
    refused: int
    """Those that are in the quarantine as before."""


def requeue(engine: Engine, caller: Caller = audit.ITSELF) -> Requeued:
    """Store the spans that could not be stored, and derive the traces that could not be derived, if they can be now.

    Spans that lost to another one under their key, and those without a valid id, stay: no version changes that.
    """
    stored = refused = 0
    writer = Writer(engine)
    with engine.begin() as conn:
        newest = conn.scalar(select(func.max(_QUARANTINE.c.id))) or 0
    last = 0
    noted: int | None = None
    while True:
        columns = tuple(_QUARANTINE.c[name] for name in ("id", "trace_id", "span_id", "body"))
        query = select(*columns).where(_QUARANTINE.c.reason == UNSTORABLE, _QUARANTINE.c.id > last)
        with engine.begin() as conn:
            rows = conn.execute(
                query.where(_QUARANTINE.c.id <= newest).order_by(_QUARANTINE.c.id).limit(_ENTRIES)
            ).all()
        if not rows:
            break
        for row in rows:
            last = row.id
            body = open_value(conn, row.body, "quarantine.body", row.trace_id or "", row.span_id or "")
            try:
                raw = from_canonical(body)
            except (ValueError, TypeError, KeyError):
                refused += 1
                continue
            if writer.write([raw]).quarantined:
                refused += 1
            else:
                stored += 1
            with engine.begin() as conn:  # it is a row now, or a new entry of the quarantine
                conn.execute(delete(_QUARANTINE).where(_QUARANTINE.c.id == row.id))
                written = audit.write(conn, Entry(caller.actor, "requeue", details={"stored": stored}), noted)
            noted = written
    with engine.begin() as conn:
        underived = set(conn.scalars(select(_QUARANTINE.c.trace_id).where(_QUARANTINE.c.reason == UNDERIVED)))
    for trace_id in sorted(underived):
        try:
            rebuild(engine, [trace_id], caller=caller)
            stored += 1
        except Exception:  # as before: the readers or the derivation fail on it
            refused += 1
    return Requeued(stored, refused)
