"""Which rows a reader asks for, and from where on: filters, cursors, page sizes.

Everything that comes from outside is checked here, once, and raises ``InputError``; what passes goes into
statements as bound parameters only.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Literal, NamedTuple, cast, get_args

from step_exporter.conventions.clean import is_clean
from step_exporter.errors import InputError
from step_exporter.models import utc_datetime

Order = Literal["newest", "oldest"]
Time = datetime | int
"""A UTC-aware datetime, or nanoseconds since the Unix epoch."""

MAX_LIMIT = 1000
MAX_LIST = 1000
"""Trace ids or tags in one filter; SQLite takes 32,766 parameters a statement, PostgreSQL 65,535."""

STEP_STATUSES = ("pending", "running", "success", "failed", "cancelled", "abandoned")
RUN_STATUSES = ("created", "running", "completed", "failed", "cancelled")
Action = Literal["feedback", "tags", "transaction", "delete", "import", "prune", "rebuild", "requeue", "rotate_key"]
"""What an entry of the audit trail says was done."""
ACTIONS: tuple[Action, ...] = get_args(Action)

_TRACE_ID = re.compile("[0-9a-f]{32}")
_TRACE_ID_PREFIX = re.compile("[0-9a-f]{4,32}")
_SPAN_ID = re.compile("[0-9a-f]{16}")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFilter:
    """Which runs: those for which everything given holds. ``None`` asks nothing."""

    trace_ids: Sequence[str] | None = None
    """Whole trace ids, at most 1,000. An empty sequence asks for no rows."""
    run_id: str | None = None
    parent_run_id: str | None = None
    top_level: bool | None = None
    """True: without a parent run; False: with one."""
    agent_id: str | None = None
    agent_name: str | None = None
    status: str | None = None
    """created, running, completed, failed or cancelled."""
    error_type: str | None = None
    organization_id: str | None = None
    project_id: str | None = None
    conversation_id: str | None = None
    service_name: str | None = None
    started_after: Time | None = None
    """At or after, to the microsecond."""
    started_before: Time | None = None
    """Before, to the microsecond."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepFilter:
    """Which steps: those for which everything given holds. ``None`` asks nothing."""

    trace_ids: Sequence[str] | None = None
    """Whole trace ids, at most 1,000. An empty sequence asks for no rows."""
    run_id: str | None = None
    agent_id: str | None = None
    agent_name: str | None = None
    model: str | None = None
    provider_name: str | None = None
    status: str | None = None
    """pending, running, success, failed, cancelled or abandoned."""
    error_type: str | None = None
    tags_all: Sequence[str] | None = None
    """Steps that carry every one of these tags."""
    tags_any: Sequence[str] | None = None
    """Steps that carry at least one of these tags."""
    feedback: Literal["positive", "negative"] | None = None
    has_feedback: bool | None = None
    organization_id: str | None = None
    project_id: str | None = None
    conversation_id: str | None = None
    """The conversation of the step's run."""
    service_name: str | None = None
    started_after: Time | None = None
    """At or after, to the microsecond."""
    started_before: Time | None = None
    """Before, to the microsecond."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditFilter:
    """Which entries of the audit trail: those for which everything given holds. ``None`` asks nothing."""

    trace_ids: Sequence[str] | None = None
    """Whole trace ids, at most 1,000, of traces that may be gone. An empty sequence asks for no entries."""
    actor: str | None = None
    action: str | None = None
    """feedback, tags, transaction, delete, import, prune, rebuild, requeue or rotate_key."""
    subject: str | None = None
    """Id of a step, run or trace."""
    organization_id: str | None = None
    since: Time | None = None
    """At or after, to the microsecond."""
    until: Time | None = None
    """Before, to the microsecond."""


class Place(NamedTuple):
    """The last row of a page, by which the next one begins."""

    created_at: datetime
    trace_id: str
    id: str


def encode_cursor(table: str, order: Order, place: Place) -> str:
    """An opaque cursor. It names a place between rows rather than a count of them, so pages neither repeat nor
    skip a row while others arrive."""
    created_us = (place.created_at - _EPOCH) // _MICROSECOND
    text = json.dumps([table, order, created_us, place.trace_id, place.id], separators=(",", ":"))
    return base64.urlsafe_b64encode(text.encode()).rstrip(b"=").decode()


def decode_cursor(table: str, order: Order, cursor: str) -> Place:
    """The place that a cursor of the same table and order names; anything else raises ``InputError``."""
    try:
        text = base64.b64decode(cursor.encode() + b"=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
        made_for, made_in, created_us, trace_id, id_ = json.loads(text)
        place = Place(utc_datetime(created_us * 1000), _text("trace_id", trace_id), _text("id", id_))
    except (ValueError, TypeError, AttributeError, OverflowError, RecursionError, InputError):
        raise bad_cursor() from None
    if (made_for, made_in) != (table, order):
        raise InputError(f"the cursor is for {made_for!s:.20}, {made_in!s:.20} first, not for {table}, {order} first")
    return place


def bad_cursor() -> InputError:
    """What is wrong with a cursor that no page gave."""
    return InputError("the cursor is none that a page gave as its next")


def check_order(order: str) -> Order:
    """The order, if it is one."""
    if order not in ("newest", "oldest"):
        raise InputError(f"order is 'newest' or 'oldest', not {order!r:.40}")
    return order


def check_limit(limit: int) -> int:
    """The limit, if it is a page size."""
    if type(limit) is not int or not 1 <= limit <= MAX_LIMIT:
        raise InputError(f"limit is a number from 1 to {MAX_LIMIT}, not {limit!r:.40}")
    return limit


def check_trace_id(trace_id: str) -> str:
    """The whole trace id in lower case."""
    found = trace_id.strip().lower() if isinstance(trace_id, str) else ""  # pyright: ignore[reportUnnecessaryIsInstance]
    if not _TRACE_ID.fullmatch(found):
        raise InputError(f"a trace id is 32 hexadecimal digits, not {trace_id!r:.60}")
    return found


def check_trace_prefix(trace_id: str) -> str:
    """The beginning of a trace id in lower case."""
    found = trace_id.strip().lower() if isinstance(trace_id, str) else ""  # pyright: ignore[reportUnnecessaryIsInstance]
    if not _TRACE_ID_PREFIX.fullmatch(found):
        raise InputError(f"a trace id is 32 hexadecimal digits, or at least its first 4, not {trace_id!r:.60}")
    return found


def as_span_id(text: str) -> str | None:
    """The text as a span id in lower case; None if it cannot be one."""
    lower = text.strip().lower()
    return lower if _SPAN_ID.fullmatch(lower) else None


def check_text(name: str, value: str) -> str:
    """The value, if it is text that a column can hold."""
    try:
        return _text(name, value)
    except TypeError as wrong:
        raise InputError(str(wrong)) from None


def check_one_of(name: str, value: str, allowed: Sequence[str]) -> str:
    """The value, if it is an allowed one."""
    if value not in allowed:
        raise InputError(f"{name} is {', '.join(allowed[:-1])} or {allowed[-1]}, not {value!r:.40}")
    return value


def check_texts(name: str, values: Sequence[str]) -> tuple[str, ...]:
    """The values as a tuple, if they are texts and not too many."""
    if isinstance(values, str) or len(values) > MAX_LIST:
        raise InputError(f"{name} is a list of at most {MAX_LIST}")
    return tuple(check_text(name, value) for value in values)


def check_bool(name: str, value: bool) -> bool:
    """The value, if it is True or False."""
    if value is not True and value is not False:
        raise InputError(f"{name} is True or False, not {value!r:.40}")
    return value


def check_time(name: str, value: Time) -> datetime:
    """The time as UTC, to the microsecond."""
    if isinstance(value, datetime):
        if value.tzinfo is None:
            raise InputError(f"{name} has no time zone; use datetime.now(UTC)")
        try:
            return value.astimezone(UTC)
        except OverflowError:
            raise InputError(f"{name} is beyond the calendar in UTC: {value!s:.40}") from None
    if type(value) is not int:
        raise InputError(f"{name} is a datetime or integer nanoseconds, not {value!r:.40}")
    try:
        return utc_datetime(value)
    except OverflowError:
        raise InputError(f"{name} is nanoseconds since 1970; {value!r:.40} is beyond the calendar") from None


def check_time_ns(name: str, value: Time) -> int:
    """The time in nanoseconds since the Unix epoch."""
    moment = check_time(name, value)
    return value if isinstance(value, int) else (moment - _EPOCH) // _MICROSECOND * 1000


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str) or not is_clean(value):
        raise TypeError(f"{name} is a text without NUL or lone surrogates, not {cast(Any, value)!r:.60}")
    return value
