"""Texts that every database takes: PostgreSQL has no NUL, and neither it nor SQLite lone surrogates."""

from __future__ import annotations

import re
from collections.abc import Mapping

VISIBLE: Mapping[int, str] = {code: f"\\u{code:04x}" for code in (0, *range(0xD800, 0xE000))}
"""How what they refuse is shown."""

_UNCLEAN = re.compile("[\x00\ud800-\udfff]")


def is_clean(text: str) -> bool:
    """Whether every database takes the text as it is."""
    return "\0" not in text if text.isascii() else _UNCLEAN.search(text) is None


def visible(text: str) -> str:
    """The text with NUL and lone surrogates shown as ``\\u0000`` and ``\\ud800``."""
    return text if is_clean(text) else text.translate(VISIBLE)
