"""What only the content of a span told, kept beside a span that is stored without it.

Some emitters write the response's id, its finish reason or its counts nowhere but in the JSON of the response. Where
content is not stored, an attribute keeps what was read there: names, ids and counts, never a message.
"""

from __future__ import annotations

import re
from typing import Any, cast

from msgspec import MsgspecError, Struct
from msgspec.json import decode, encode
from msgspec.structs import asdict, replace

from step_exporter.facts import AttributeValue, Role, SpanFacts, TokenUsage

ATTRIBUTE = "step_exporter.from_content"
"""Holds ``_Kept`` as JSON text."""
_MAX_CHARS = 256
"""Of a name or an id; what is longer may be a message."""
_ERROR = re.compile(r"[\w.]*(?:Error|Exception|Exit|Interrupt|Timeout|Cancelled|Canceled)")


class _Kept(Struct, frozen=True, omit_defaults=True):
    """Fields of ``SpanFacts``; None where the span says the same without its content."""

    role: Role | None = None
    convention: str | None = None
    failed: bool | None = None
    cancelled: bool | None = None
    error_type: str | None = None
    agent_id: str | None = None
    agent_name: str | None = None
    conversation_id: str | None = None
    provider_name: str | None = None
    model: str | None = None
    served_model: str | None = None
    model_handle: str | None = None
    model_endpoint: str | None = None
    request_id: str | None = None
    stop_reason: str | None = None
    usage: TokenUsage | None = None
    first_token_ns: int | None = None
    asked_call_ids: tuple[str, ...] | None = None
    tool_name: str | None = None
    call_id: str | None = None
    flags: tuple[str, ...] | None = None


def kept(told: SpanFacts, left: SpanFacts) -> str | None:
    """The attribute's value: what a span ``told`` and its rest, ``left``, does not; None where that is nothing."""
    found: dict[str, Any] = {}
    for name in _Kept.__struct_fields__:
        value: Any = getattr(told, name)
        if value is not None and value != getattr(left, name) and (name != "error_type" or _ERROR.fullmatch(value)):
            texts = cast(
                "tuple[str, ...]", value if isinstance(value, tuple) else (value,) if isinstance(value, str) else ()
            )
            if max(map(len, texts), default=0) <= _MAX_CHARS:
                found[name] = value
    try:
        return encode(_Kept(**found)).decode() if found else None
    except UnicodeEncodeError:  # half a surrogate pair
        return None


def restored(facts: SpanFacts, value: AttributeValue) -> SpanFacts:
    """The facts with what the attribute says."""
    try:
        found = decode(value, type=_Kept)
    except (MsgspecError, TypeError, UnicodeEncodeError):  # somebody else's
        return facts
    return replace(facts, **{name: known for name, known in asdict(found).items() if known is not None})
