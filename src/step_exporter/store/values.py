"""Attribute values as canonical JSON text, and back, without loss.

A safe value is None, a bool, an int, a float, a str, bytes, a tuple of safe values or a dict of them with
str keys. ``safe`` makes one of anything; ``encode`` and ``decode`` are each other's inverse on safe mappings.

What JSON or a database's text cannot hold is written as an object with one key that begins with ``$``:
``{"$float": "nan"}``, ``{"$int": "…"}`` beyond 64 bits, ``{"$bytes": base64}``, ``{"$text": …}`` for a text with
NUL or lone surrogates, ``{"$pairs": [[key, value]]}`` for a mapping with such keys and ``{"$object": {…}}``
around a real mapping whose only key begins with ``$``.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Mapping, Sequence
from enum import Enum
from types import NoneType
from typing import Any, cast

import orjson

from step_exporter.conventions.clean import VISIBLE, is_clean
from step_exporter.facts import AttributeValue

MAX_TEXT = 1 << 20
"""Characters of one text that are kept whole: 1 MiB."""
HEAD = 64 << 10
"""Characters that are kept of a longer text."""
MAX_DEPTH = 100
"""Nesting that is kept; orjson stops at 254."""

TRUNCATED = "truncated"
UNSAFE = "unsafe_value"

RESERVED = "step_exporter.raw"
"""The attribute that holds what has no other place: names of attributes with NUL or lone surrogates."""

_SCALARS = frozenset({str, int, bool, float, NoneType})
_FLAT = _SCALARS | {tuple}
_NAMES = frozenset({str})
_TO_ESCAPE = {**VISIBLE, ord("\\"): "\\\\"}
_ESCAPED = re.compile(r"\\(\\|u[0-9a-f]{4})")


# --- texts


def shortened(text: str) -> str:
    """The head of a text that is too long, with its length and SHA-256."""
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
    return f"{text[:HEAD]} … [truncated: {len(text)} characters, sha256 {digest}]"


def is_shortened(text: str) -> bool:
    """Whether the text is what ``shortened`` gave."""
    return len(text) <= HEAD + 120 and text.startswith(" … [truncated: ", HEAD)


# --- making values safe


def is_plain(attributes: Mapping[str, AttributeValue]) -> bool:
    """Whether the mapping is one of scalars and tuples of scalars, which needs no second look (1 µs)."""
    kinds = set(map(type, attributes.values()))
    if not kinds <= _FLAT or not _NAMES.issuperset(map(type, attributes)):
        return False
    if tuple in kinds:
        for value in attributes.values():
            if type(value) is tuple and not _SCALARS.issuperset(map(type, cast("tuple[object, ...]", value))):
                return False
    return True


def safe_mapping(attributes: Mapping[Any, Any], flags: set[str], depth: int = 0) -> dict[str, AttributeValue]:
    """The mapping with every key and value made safe; what was changed is named in ``flags``."""
    return {_safe_key(key, flags): safe(value, flags, depth + 1) for key, value in attributes.items()}


def _safe_key(key: object, flags: set[str]) -> str:
    return key if type(key) is str else _as_text(key, flags)


def safe(value: object, flags: set[str], depth: int = 0) -> AttributeValue:
    """The value made safe to store; adds ``unsafe_value`` or ``truncated`` to ``flags`` where it had to change."""
    kind = type(value)
    if kind is str:
        return value if len(cast(str, value)) <= MAX_TEXT else _cut(cast(str, value), flags)
    if kind in _SCALARS and kind is not int:
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        return _safe_int(value, flags)
    if depth > MAX_DEPTH:
        flags.add(TRUNCATED)
        return f"[nested deeper than {MAX_DEPTH}]"
    try:
        return _safe_other(value, flags, depth)
    except Exception:  # an object's own methods may do anything
        flags.add(UNSAFE)
        return f"[{kind.__name__}: cannot be read]"


def _safe_int(value: int, flags: set[str]) -> AttributeValue:
    if type(value) is not int:
        flags.add(UNSAFE)
        value = int.__int__(value)
    if value.bit_length() > 4 * MAX_TEXT:
        return _cut(hex(value), flags)
    return value


def _safe_other(value: object, flags: set[str], depth: int) -> AttributeValue:
    if isinstance(value, str):  # a subclass loses nothing by becoming a plain str
        return safe(str.__str__(value), flags)
    if isinstance(value, float):
        return float.__float__(value)
    if isinstance(value, bytes | bytearray | memoryview):
        data = bytes(cast(bytes, value))
        return data if len(data) <= MAX_TEXT else _cut(data.hex(), flags)
    if isinstance(value, Mapping):
        return safe_mapping(cast("Mapping[Any, Any]", value), flags, depth)
    if isinstance(value, Sequence):
        return tuple(safe(item, flags, depth + 1) for item in cast("Sequence[object]", value))
    if isinstance(value, Enum):
        flags.add(UNSAFE)
        return safe(cast(object, value.value), flags, depth + 1)
    return safe(_as_text(value, flags), flags)


def _as_text(value: object, flags: set[str]) -> str:
    flags.add(UNSAFE)
    try:
        return str.__str__(str(value))
    except Exception:
        return f"[{type(value).__name__}: cannot be read]"


def _cut(text: str, flags: set[str]) -> str:
    flags.add(TRUNCATED)
    return shortened(text)


# --- canonical JSON


def encode(attributes: Mapping[str, AttributeValue], placeholders: Mapping[str, object] | None = None) -> str:
    """Canonical JSON (sorted keys) of a safe mapping. The mapping itself is never escaped, only what is in it.

    ``placeholders`` stand for further values and are JSON already; ``decode`` leaves them to its caller.
    One orjson call does for nearly all: it raises on what JSON cannot hold, but for NaN and infinity (written
    as null), NUL (a text column of PostgreSQL would take the escape, its JSON functions not) and our own escapes.
    """
    text = _dumps(attributes) if RESERVED not in attributes else None
    if text is not None and not placeholders:
        return text
    escaped = attributes if text is not None else _escape_attributes(attributes)
    return orjson.dumps({**escaped, **(placeholders or {})}, option=orjson.OPT_SORT_KEYS).decode()


def encode_value(value: AttributeValue) -> str:
    """Canonical JSON of one safe value."""
    text = _dumps(value)
    return orjson.dumps(_escape(value), option=orjson.OPT_SORT_KEYS).decode() if text is None else text


def _dumps(value: object) -> str | None:
    """JSON text of a value, if it gives the same value back."""
    try:
        text = orjson.dumps(value, option=orjson.OPT_SORT_KEYS).decode()
    except TypeError:
        return None
    # To look for one character first takes 0.04 µs instead of 0.4.
    if "null" in text or ("$" in text and '{"$' in text) or ("\\" in text and "\\u0000" in text):
        return None
    return text


def _escape_attributes(attributes: Mapping[str, AttributeValue]) -> dict[str, object]:
    escaped = {key: _escape(value) for key, value in attributes.items() if key != RESERVED and is_clean(key)}
    if len(escaped) < len(attributes):
        escaped[RESERVED] = _pairs({key: value for key, value in attributes.items() if key not in escaped})
    return escaped


def _escape(value: AttributeValue) -> object:
    if isinstance(value, str):
        return value if is_clean(value) else {"$text": value.translate(_TO_ESCAPE)}
    if isinstance(value, bool | None):
        return value
    if isinstance(value, int):
        if -(2**63) <= value < 2**64:
            return value
        return {"$int": str(value) if value.bit_length() <= 4096 else hex(value)}  # Python refuses 4,300 digits
    if isinstance(value, float):
        return value if value - value == 0 else {"$float": repr(value)}
    if isinstance(value, bytes):
        return {"$bytes": base64.b64encode(value).decode()}
    if isinstance(value, tuple):
        return [_escape(item) for item in cast("tuple[AttributeValue, ...]", value)]
    mapping = cast("dict[str, AttributeValue]", value)
    if not all(map(is_clean, mapping)):
        return {"$pairs": _pairs(mapping)}
    escaped = {key: _escape(item) for key, item in mapping.items()}
    return {"$object": escaped} if len(escaped) == 1 and next(iter(escaped)).startswith("$") else escaped


def _pairs(mapping: Mapping[str, AttributeValue]) -> list[object]:
    return [[_escape(key), _escape(mapping[key])] for key in sorted(mapping)]


def decode(text: str | bytes) -> dict[str, AttributeValue]:
    """The mapping that ``encode`` wrote. Arrays come back as tuples, placeholders as they are."""
    return restore(orjson.loads(text))


def restore(attributes: dict[str, Any]) -> dict[str, AttributeValue]:
    """``decode`` of text that is parsed already; changes the mapping in place."""
    for key, value in attributes.items():
        if isinstance(value, list | dict):
            attributes[key] = restore_value(cast("list[Any] | dict[str, Any]", value))
    if RESERVED in attributes:
        attributes.update(cast("tuple[tuple[str, Any], ...]", attributes.pop(RESERVED)))
    return attributes


def restore_value(value: Any) -> AttributeValue:
    """One value of parsed JSON that ``encode_value`` wrote."""
    if isinstance(value, list):
        return tuple(restore_value(item) for item in cast("list[Any]", value))
    if not isinstance(value, dict):
        return value
    mapping = cast("dict[str, Any]", value)
    if len(mapping) == 1:
        ((key, inner),) = mapping.items()
        if key.startswith("$"):
            return _restore_escape(key, inner)
    return {key: restore_value(item) for key, item in mapping.items()}


def _restore_escape(key: str, inner: Any) -> AttributeValue:
    match key:
        case "$text":
            return _ESCAPED.sub(lambda found: "\\" if found[1] == "\\" else chr(int(found[1][1:], 16)), inner)
        case "$int":
            return int(inner, 0)
        case "$float":
            return float(inner)
        case "$bytes":
            return base64.b64decode(inner)
        case "$pairs":
            return {cast(str, restore_value(name)): restore_value(item) for name, item in inner}
        case "$object":
            return {name: restore_value(item) for name, item in inner.items()}
        case _:
            return {key: restore_value(inner)}
