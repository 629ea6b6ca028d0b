"""Values as people read them, in a terminal and on a page."""

from __future__ import annotations

import re
from decimal import Decimal

from step_exporter.conventions.messages import _read_element as read_element  # pyright: ignore
from step_exporter.facts import Content
from step_exporter.store.records import MessageRecord

UNKNOWN = "–"

_HARMFUL = re.compile(r"[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters (ESC begins a terminal's commands), line breaks, and marks that turn the writing
direction around; lone surrogates, which no terminal can be sent."""


def harmless(text: str) -> str:
    """The text on one line, with whatever a terminal would obey shown as its escape."""
    return _HARMFUL.sub(_escape, text)


def _escape(found: re.Match[str]) -> str:
    code = ord(found[0])
    named = {9: r"\t", 10: r"\n", 13: r"\r"}.get(code)
    return named or (f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}")


def duration(ns: int | None) -> str:
    """Three digits and a unit: ``412 µs``, ``45.2 ms``, ``1.42 s``, ``2m 05s``, ``3h 20m``."""
    if ns is None:
        return UNKNOWN
    if ns < 0:
        return f"-{duration(-ns)}"
    for unit, size in (("ns", 1), ("µs", 10**3), ("ms", 10**6), ("s", 10**9)):
        value = ns / size
        if value < (1000 if unit != "s" else 60):
            digits = 0 if unit == "ns" or value >= 100 else 1 if value >= 10 else 2
            shown = f"{value:.{digits}f}"
            if shown != "1000":
                return f"{shown} {unit}"
    minutes, seconds = divmod(round(ns / 10**9), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h {minutes:02}m" if hours else f"{minutes}m {seconds:02}s"


def tokens(prompt: int, completion: int) -> str:
    """Tokens in and out: ``1,204 → 88``."""
    return f"{prompt:,} → {completion:,}"


def dollars(usd: Decimal) -> str:
    """US dollars, to the cent from one on: ``$1,204.50``, ``$0.0412``, ``<$0.0001``."""
    if not usd:
        return "$0"
    if usd < Decimal("0.0001"):
        return "<$0.0001"
    return f"${usd:,.{2 if usd >= 1 else 4}f}"


def count(number: int, noun: str) -> str:
    """``1 step``, ``2 steps``."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def message_text(message: MessageRecord) -> str:
    """What a message says, without the JSON that its emitter wrapped it in."""
    if message.body is None:
        return ""
    read = read_element(Content(message.content_hash or "", None, message.body), "indexed", message.role, {})
    # One element may hold the results of several tools, each a message.
    its_own = [part for part in read if (part.role, part.tool_call_id) == (message.role, message.tool_call_id)]
    text = "\n".join(part.text for part in its_own or read if part.text)
    return text or ("" if message.tool_calls else message.body)
