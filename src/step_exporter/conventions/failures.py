"""How a span says that it failed: status, ``error.type``, exception events. The same in all vocabularies."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from step_exporter.conventions._draft import Draft
from step_exporter.conventions._values import EMPTY, text
from step_exporter.facts import RawSpan, Role

_TYPE = re.compile(r"([A-Za-z_][\w.]*(?:Error|Exception|Interrupt|Exit|Timeout|Cancelled))(?::|\(|$)")
"""An exception's type at the beginning of ``repr(error)``, ``Type: message`` or a traceback's last line."""
_CLASS = re.compile(r"<class '(?:[^'<>]*\.)?([^'<>.]+)'>")
_WRAPPER = frozenset({None, "_OTHER", "Exception", "builtins.Exception"})
"""Types that say nothing."""


def fill(raw: RawSpan, draft: Draft) -> None:
    """Fill in whether and why a span failed. A recorded exception alone is no failure, as it may have been handled; but
    for a request that got no answer."""
    get = raw.attributes.get
    declared = get("error.type")
    if declared is not None:
        declared = text(declared)
    if raw.status_code == "error" or (declared and raw.status_code != "ok"):
        draft.failed = True
    elif draft.role is Role.LLM and raw.status_code != "ok" and raw.events and _has_no_answer(draft):
        draft.failed = bool(last_exception(raw))  # Quarkus records the exception and no more
    if not draft.failed:
        return
    exception = last_exception(raw)
    message = raw.status_message or text(exception.get("exception.message")) or text(get("error.message"))
    traceback = text(exception.get("exception.stacktrace")) or text(get("error.stack_trace"))
    kind = draft.error_type or declared
    if kind and (wrapped := _CLASS.fullmatch(kind)):  # Semantic Kernel: str(type(error))
        kind = wrapped[1]
    if kind in _WRAPPER:
        kind = text(exception.get("exception.type")) or kind
    if kind in _WRAPPER:
        kind = _type_in(message, traceback) or kind or "_OTHER"  # the registry's name for a type that is not known
    draft.error_type = kind
    draft.error_message = draft.error_message or message
    draft.error_traceback = draft.error_traceback or traceback
    draft.cancelled = draft.cancelled or is_cancellation(kind)


def _has_no_answer(draft: Draft) -> bool:
    tokens = draft.tokens
    return (
        draft.request_id is None
        and draft.stop_reason is None
        and not draft.output_messages
        and tokens.prompt is None
        and tokens.completion is None
    )


def last_exception(raw: RawSpan) -> Mapping[str, Any]:
    """The attributes of the last exception event; nothing where there is none."""
    for event in reversed(raw.events):
        if event.name == "exception":
            return event.attributes
    return EMPTY


def is_cancellation(error_type: str | None) -> bool:
    """Whether an error's type says that somebody cancelled: asyncio, trio, JavaScript's AbortError, .NET."""
    if not error_type:
        return False
    last = error_type.rpartition(".")[2]
    return last.startswith(("Cancelled", "Canceled")) or last.endswith(
        ("AbortError", "CancelledError", "CancelledException", "CanceledException")
    )


def _type_in(message: str | None, traceback: str | None) -> str | None:
    """The type that a message begins with, or that the end of a traceback names."""
    found = _TYPE.match(message[:300]) if message else None
    if found:
        return found[1]
    for line in reversed((traceback or "")[-4000:].splitlines()):  # below it there may be notes (PEP 678)
        found = _TYPE.match(line)
        if found:
            return found[1]
    return None
