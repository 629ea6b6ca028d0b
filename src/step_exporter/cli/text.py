"""Values as people read them in a terminal."""

from __future__ import annotations

import re
from datetime import datetime, timedelta

from step_exporter.errors import InputError
from step_exporter.text import UNKNOWN, count, duration, harmless, message_text, tokens

__all__ = ["UNKNOWN", "count", "duration", "harmless", "message_text", "parse_time", "tokens", "when"]


def when(moment: datetime) -> str:
    """A moment in the local time zone."""
    return moment.astimezone().strftime("%Y-%m-%d %H:%M:%S")


_AGO = re.compile(r"(\d{1,6})\s*([smhdw])")
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


def parse_time(option: str, text: str, now: datetime) -> datetime:
    """A moment: so long ago (``90s``, ``30m``, ``2h``, ``7d``, ``1w``) or ISO 8601, local where no zone is given."""
    if found := _AGO.fullmatch(text.strip()):
        try:
            return now - timedelta(**{_UNITS[found[2]]: int(found[1])})
        except OverflowError:
            raise InputError(f"{option} {text!r:.40} is before the calendar begins") from None
    try:
        return datetime.fromisoformat(text.strip()).astimezone()
    except (ValueError, OverflowError):
        raise InputError(
            f"{option} is a length of time such as 30m, 2h or 7d, or a date and time such as 2026-01-31T12:00, "
            f"not {text!r:.40}"
        ) from None
