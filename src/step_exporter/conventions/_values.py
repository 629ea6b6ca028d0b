"""Tolerant typed getters: an attribute value of any type in, a plain value of one type or None out.

The SDK lets any value through (nested mappings, bytes, NaN, ints beyond 64 bits, IntEnum), so nothing
here raises, whatever it is given.
"""

from __future__ import annotations

import ast
import json
import math
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, cast

from step_exporter.facts import MAX_NS

MAX_PARSED = 4 * 1024 * 1024
"""Longer JSON is not parsed for one id or count in it: 4 MiB take about 40 ms."""
MAX_LITERAL = 64 * 1024
"""Longer Python literals are not evaluated: ``ast`` is 30 times slower than ``json``."""
EMPTY: Mapping[str, Any] = {}
SAYS_MORE = frozenset({"gen_ai.operation.name", "openinference.span.kind", "traceloop.span.kind"})
"""What says what a span is where an emitter's own attribute is on all spans, those of other instrumentations too."""
_EPOCH = datetime.fromtimestamp(0, UTC)
_MICROSECOND = timedelta(microseconds=1)
_MEMBER = re.compile(r"[A-Z]\w*\.[A-Z][A-Z0-9_]*")
_LITERAL = re.compile(
    r"""(?x) (?: \s++ | [][(){},:] | (?:None|True|False)\b
        | [-+]?(?:\d++(?:\.\d*+)?+|\.\d++)(?:[eE][-+]?\d++)?+(?![\w.])
        | '(?:[^'\\]|\\(?:[\\'"abfnrtv]|x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8}))*+'
        | "(?:[^"\\]|\\(?:[\\'"abfnrtv]|x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8}))*+"
        | b'(?:[^'\\]|\\(?:[\\'"abfnrtv]|x[0-9a-fA-F]{2}))*+'
        | b"(?:[^"\\]|\\(?:[\\'"abfnrtv]|x[0-9a-fA-F]{2}))*+" )*+"""
)
"""What ``repr`` writes of plain values. To anything else Python's parser may say more than no: a warning on stderr for
``'\\d'`` or ``1if`` (3.12), 1.3 s for an f-string of 150,000 characters, whose square 3.11 takes."""


def text(value: Any) -> str | None:
    """A text that is not empty; a number (an id that was set as one) as text."""
    if type(value) is str:
        return value or None
    if value is None or isinstance(value, (bool, bytes)):
        return None
    if isinstance(value, str):
        return str.__str__(value) or None  # str() of a member of a (str, Enum) would give "Class.MEMBER"
    if isinstance(value, int):
        return int.__repr__(value) if abs(value) <= MAX_NS else None
    return None


def member(value: Any) -> str | None:
    """A text; of a Python enum's member that was written as one, ``FinishReason.STOP``, the member's name."""
    found = text(value)
    return found[found.rindex(".") + 1 :] if found and _MEMBER.fullmatch(found) else found


def unquoted(value: Any) -> str | None:
    """A text, also where it is JSON text of one."""
    if isinstance(value, str) and value[:1] == '"':
        return text(parsed(value))
    return text(value)


def moment_ns(value: Any) -> int | None:
    """When an ISO 8601 time with its offset from UTC was, in nanoseconds since 1970."""
    if not isinstance(value, str) or len(value) > 40:
        return None
    try:
        since = datetime.fromisoformat(value.replace("Z", "+00:00")) - _EPOCH
    except (ValueError, TypeError, OverflowError):  # TypeError: no offset
        return None
    found = since // _MICROSECOND * 1000
    return found if 0 <= found <= MAX_NS else None


def count(value: Any) -> int | None:
    """A whole number from 0 to 2^63 - 1, also as "12" or 12.0. True, -5, 3.7, "12k", NaN, [] give None."""
    if type(value) is int:
        return value if 0 <= value <= MAX_NS else None
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        return count(int.__int__(value))
    if isinstance(value, float):
        return int(value) if 0 <= value < MAX_NS and value.is_integer() else None
    if isinstance(value, str) and len(value) < 20 and value.isascii() and value.isdigit():
        return count(int(value))
    return None


def number(value: Any) -> float | None:
    """A finite number that is not negative, such as a duration."""
    if isinstance(value, str):
        try:
            value = float(value[:40])
        except ValueError:
            return None
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        try:
            plain = float(value)
        except OverflowError:
            return None
        return plain if math.isfinite(plain) and plain >= 0 else None
    return None


def parsed(value: Any) -> Any:
    """What JSON text says; a value that is structured already as it is; None where it cannot be read."""
    if not isinstance(value, str):
        return value
    if len(value) > MAX_PARSED:
        return None
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return None


def literal(value: Any, max_chars: int = MAX_LITERAL) -> Any:
    """What a Python literal says: ``str(some_dict)``, as litellm writes them; None where it cannot be read."""
    if not isinstance(value, str):
        return value
    if len(value) > max_chars or not _LITERAL.fullmatch(value):
        return None
    try:
        return ast.literal_eval(value)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return None


def mapping(value: Any) -> Mapping[str, Any]:
    """The mapping that a value or JSON text is, or an empty one."""
    value = parsed(value)
    return cast(Mapping[str, Any], value) if isinstance(value, Mapping) else EMPTY


def items(value: Any) -> Sequence[Any]:
    """The sequence that a value is, or an empty one."""
    return cast(Sequence[Any], value) if isinstance(value, (list, tuple)) else ()


def texts(value: Any) -> tuple[str, ...]:
    """The texts of a sequence, of JSON text of one, or the one text."""
    if isinstance(value, str) and value[:1] == "[":
        value = parsed(value) or value
    if isinstance(value, (list, tuple)):
        return tuple(found for item in cast(Sequence[Any], value) if (found := text(item)))
    found = text(value)
    return (found,) if found else ()


def first_text(value: Any) -> str | None:
    """The first text of a sequence, of JSON text of one, or the one text."""
    if type(value) is str and value[:1] != "[":
        return value or None
    if type(value) is tuple:  # how the SDK hands sequences on
        for item in cast(Sequence[Any], value):
            if found := text(item):
                return found
        return None
    found = texts(value)
    return found[0] if found else None
