"""Filters as SQL conditions. Values are checked (``filters``) and only ever bound, never written into the SQL."""

from __future__ import annotations

from collections.abc import Sequence, Set
from typing import Any

from sqlalchemy import ColumnElement, String, Table, and_, bindparam, func, select, tuple_
from sqlalchemy import cast as sql_cast
from sqlalchemy.dialects.postgresql import JSON

from step_exporter import models
from step_exporter.errors import InputError
from step_exporter.store import filters
from step_exporter.store.filters import Order, Place, RunFilter, StepFilter

Condition = ColumnElement[bool]

_STEPS, _RUNS = models.Base.metadata.tables["steps"], models.Base.metadata.tables["runs"]

_STEP_TEXTS = (
    "run_id",
    "agent_id",
    "agent_name",
    "model",
    "provider_name",
    "status",
    "error_type",
    "feedback",
    "organization_id",
    "project_id",
    "service_name",
)
_RUN_TEXTS = (
    "parent_run_id",
    "agent_id",
    "agent_name",
    "status",
    "error_type",
    "organization_id",
    "project_id",
    "conversation_id",
    "service_name",
)
"""Filters that ask for equality with the column of their name."""


def step_conditions(which: StepFilter, dialect: str) -> list[Condition]:
    """What a filter asks of ``steps``. ``dialect`` is sqlite or postgresql."""
    columns = _STEPS.c
    conditions = _common(which, _STEPS, _STEP_TEXTS)
    if which.has_feedback is not None:
        given = filters.check_bool("has_feedback", which.has_feedback)
        conditions.append(columns.feedback.is_not(None) if given else columns.feedback.is_(None))
    if which.feedback not in (None, "positive", "negative"):
        raise InputError(f"feedback is 'positive' or 'negative', not {which.feedback!r:.40}")
    if which.conversation_id is not None:
        conversation = filters.check_text("conversation_id", which.conversation_id)
        of_it = select(_RUNS.c.trace_id, _RUNS.c.id).where(_RUNS.c.conversation_id == conversation)
        conditions.append(tuple_(columns.trace_id, columns.run_id).in_(of_it))
    if which.tags_all is not None:
        all_of = set(filters.check_texts("tags_all", which.tags_all))
        conditions.append(_tags_among(all_of, dialect) == len(all_of))
    if which.tags_any is not None:
        conditions.append(_tags_among(set(filters.check_texts("tags_any", which.tags_any)), dialect) > 0)
    return conditions


def run_conditions(which: RunFilter) -> list[Condition]:
    """What a filter asks of ``runs``."""
    conditions = _common(which, _RUNS, _RUN_TEXTS)
    if which.run_id is not None:
        conditions.append(_RUNS.c.id == filters.check_text("run_id", which.run_id))
    if which.top_level is not None:
        parent = _RUNS.c.parent_run_id
        top = filters.check_bool("top_level", which.top_level)
        conditions.append(parent.is_(None) if top else parent.is_not(None))
    return conditions


def beyond(table: Table, place: Place, order: Order) -> Condition:
    """The rows that come after a place. The first comparison alone is what an index on ``created_at`` can use."""
    columns = table.c
    named = place_values(place).items()
    values = [bindparam(name, value, column.type) for (name, value), column in zip(named, _key(table), strict=True)]
    here, there = tuple_(*_key(table)), tuple_(*values)
    if order == "newest":
        return and_(columns.created_at <= values[0], here < there)
    return and_(columns.created_at >= values[0], here > there)


def place_values(place: Place) -> dict[str, Any]:
    """What ``beyond`` binds, by the names of the parameters."""
    return {"after_created_at": place.created_at, "after_trace_id": place.trace_id, "after_id": place.id}


def plain_values(which: StepFilter) -> dict[str, Any] | None:
    """What a filter binds, by the names of the parameters; None if it is not for single values of columns alone."""
    if (
        which.tags_all is not None
        or which.tags_any is not None
        or which.has_feedback is not None
        or which.feedback is not None
        or which.conversation_id is not None
        or (which.trace_ids is not None and len(which.trace_ids) != 1)
    ):
        return None
    values = _values(which, _STEP_TEXTS)
    if which.trace_ids is not None:
        (values["trace_id"],) = _trace_ids(which.trace_ids)
    return values


def ordering(table: Table, order: Order) -> list[ColumnElement[Any]]:
    """By (created_at, trace_id, id): total, as ids are unique in a trace."""
    return [column.desc() if order == "newest" else column.asc() for column in _key(table)]


def _key(table: Table) -> tuple[ColumnElement[Any], ...]:
    return table.c.created_at, table.c.trace_id, table.c.id


def _common(which: StepFilter | RunFilter, table: Table, names: Sequence[str]) -> list[Condition]:
    columns = table.c
    conditions: list[Condition] = []
    if which.trace_ids is not None:
        trace_ids = _trace_ids(which.trace_ids)
        if len(trace_ids) == 1:
            conditions.append(columns.trace_id == bindparam("trace_id", trace_ids[0], columns.trace_id.type))
        else:
            conditions.append(columns.trace_id.in_(trace_ids))
    for name, value in _values(which, names).items():
        bound = bindparam(name, value, columns[name if name in names else "created_at"].type)
        if name == "started_after":
            conditions.append(columns.created_at >= bound)
        elif name == "started_before":
            conditions.append(columns.created_at < bound)
        else:
            conditions.append(columns[name] == bound)
    return conditions


def _values(which: StepFilter | RunFilter, names: Sequence[str]) -> dict[str, Any]:
    """The checked values of the columns asked for, and of the times."""
    values: dict[str, Any] = {}
    for name in names:
        value = getattr(which, name)
        if value is not None:
            values[name] = filters.check_text(name, value)
    if which.status is not None:
        statuses = filters.STEP_STATUSES if isinstance(which, StepFilter) else filters.RUN_STATUSES
        filters.check_one_of("status", which.status, statuses)
    if which.started_after is not None:
        values["started_after"] = filters.check_time("started_after", which.started_after)
    if which.started_before is not None:
        values["started_before"] = filters.check_time("started_before", which.started_before)
    return values


def _trace_ids(given: Sequence[str]) -> list[str]:
    return [filters.check_trace_id(id_) for id_ in filters.check_texts("trace_ids", given)]


def _tags_among(tags: Set[str], dialect: str) -> ColumnElement[int]:
    """How many of the tags a step has. One list, because SQLite takes 1,000 conditions at most."""
    if dialect == "sqlite":
        entry = func.json_each(_STEPS.c.tags).table_valued("value", joins_implicitly=True)
        found, wanted = entry.c.value, sorted(tags)
    else:
        # Entries are compared as JSON text, which is canonical: jsonb, and any decoding, refuses \u0000.
        entry = func.json_array_elements(sql_cast(_STEPS.c.tags, JSON)).column_valued("entry", joins_implicitly=True)
        found, wanted = sql_cast(entry, String), [models.canonical_json(tag) for tag in sorted(tags)]
    return select(func.count(found.distinct())).where(found.in_(wanted)).scalar_subquery()
