"""How values are shown, and that nothing somebody else wrote is obeyed by the terminal."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from step_exporter.cli.text import duration, harmless, message_text, parse_time
from step_exporter.errors import InputError
from step_exporter.store.records import MessageRecord

NOW = datetime(2026, 1, 31, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("ns", "shown"),
    [
        (None, "–"),
        (0, "0 ns"),
        (999, "999 ns"),
        (1_500, "1.50 µs"),
        (45_230_000, "45.2 ms"),
        (999_600_000, "1.00 s"),
        (1_420_000_000, "1.42 s"),
        (59_990_000_000, "60.0 s"),
        (125_000_000_000, "2m 05s"),
        (12_000_000_000_000, "3h 20m"),
        (-1_500, "-1.50 µs"),
    ],
)
def test_durations(ns: int | None, shown: str) -> None:
    assert duration(ns) == shown


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain – é 天気 👩‍🚀", "plain – é 天気 👩‍🚀"),
        ("\x1b[31mred", r"\x1b[31mred"),
        ("two\nlines\r\t", r"two\nlines\r\t"),
        ("\x9b2J\x7f\x00", r"\x9b2J\x7f\x00"),
        ("\u202egnp.exe", r"\u202egnp.exe"),
        ("\ud800", r"\ud800"),
    ],
)
def test_g3_what_a_terminal_would_obey_is_shown_as_its_escape(text: str, shown: str) -> None:
    assert harmless(text) == shown


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("90s", NOW - timedelta(seconds=90)),
        ("30m", NOW - timedelta(minutes=30)),
        ("2h", NOW - timedelta(hours=2)),
        ("7d", NOW - timedelta(days=7)),
        ("1w", NOW - timedelta(weeks=1)),
        ("2026-01-30T08:00:00+02:00", datetime(2026, 1, 30, 6, tzinfo=UTC)),
        ("2026-01-30", datetime(2026, 1, 30).astimezone()),
    ],
)
def test_times_by_length_or_date(text: str, moment: datetime) -> None:
    assert parse_time("--since", text, NOW) == moment


@pytest.mark.parametrize("text", ["", "soon", "5 years", "999999w", "2026-13-01"])
def test_a_time_that_is_none_is_an_input_error_that_names_the_option(text: str) -> None:
    with pytest.raises(InputError, match="--since"):
        parse_time("--since", text, NOW)


@pytest.mark.parametrize(
    ("role", "body", "text"),
    [
        ("user", '{"role": "user", "parts": [{"type": "text", "content": "hello"}]}', "hello"),
        ("user", '{"message.role": "user", "message.content": "hello"}', "hello"),
        ("user", "hello", "hello"),
        ("assistant", '{"role": "assistant", "content": [{"type": "text", "text": "hi"}]}', "hi"),
        ("user", None, ""),
    ],
)
def test_a_message_says_its_text_whatever_wrapped_it(role: str, body: str | None, text: str) -> None:
    message = MessageRecord("a" * 32, "m", None, role, "h", None, None, None, None, None, 0, body)
    assert message_text(message) == text
