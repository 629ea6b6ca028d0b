"""Filters as SQL conditions. Values are checked (``filters``) and only ever bound, never written into the SQL."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import ColumnElement, String, Table, Text, and_, false, func, literal, or_, select, tuple_
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
        conditions += [_has_tag(tag, dialect) for tag in filters.check_texts("tags_all", which.tags_all)]
    if which.tags_any is not None:
        any_of = [_has_tag(tag, dialect) for tag in filters.check_texts("tags_any", which.tags_any)]
        conditions.append(or_(false(), *any_of))
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
    values = [literal(value, column.type) for value, column in zip(place, _key(table), strict=True)]
    here, there = tuple_(*_key(table)), tuple_(*values)
    if order == "newest":
        return and_(columns.created_at <= values[0], here < there)
    return and_(columns.created_at >= values[0], here > there)


def ordering(table: Table, order: Order) -> list[ColumnElement[Any]]:
    """By (created_at, trace_id, id): total, as ids are unique in a trace."""
    return [column.desc() if order == "newest" else column.asc() for column in _key(table)]


def _key(table: Table) -> tuple[ColumnElement[Any], ...]:
    return table.c.created_at, table.c.trace_id, table.c.id


def _common(which: StepFilter | RunFilter, table: Table, names: Sequence[str]) -> list[Condition]:
    conditions: list[Condition] = []
    if which.trace_ids is not None:
        trace_ids = [filters.check_trace_id(id_) for id_ in filters.check_texts("trace_ids", which.trace_ids)]
        one = len(trace_ids) == 1
        conditions.append(table.c.trace_id == trace_ids[0] if one else table.c.trace_id.in_(trace_ids))
    for name in names:
        value = getattr(which, name)
        if value is not None:
            conditions.append(table.c[name] == filters.check_text(name, value))
    if which.started_after is not None:
        conditions.append(table.c.created_at >= filters.check_time("started_after", which.started_after))
    if which.started_before is not None:
        conditions.append(table.c.created_at < filters.check_time("started_before", which.started_before))
    return conditions


def _has_tag(tag: str, dialect: str) -> Condition:
    if dialect == "sqlite":
        entry = func.json_each(_STEPS.c.tags).table_valued("value", joins_implicitly=True)
        return select(1).select_from(entry).where(entry.c.value == literal(tag, Text)).exists()
    # Entries are compared as JSON text, which is canonical: jsonb, and any decoding, refuses \u0000.
    entry = func.json_array_elements(sql_cast(_STEPS.c.tags, JSON)).column_valued("entry", joins_implicitly=True)
    return select(1).where(sql_cast(entry, String) == literal(models.canonical_json(tag), Text)).exists()
