"""The commonest message: OpenTelemetry's GenAI form, of texts, tool calls and their results.

One call of msgspec parses it and sees that it is one, in a third of the time that the standard library takes to parse
it. What it refuses may still be a message: ``messages`` reads every shape.
"""

from __future__ import annotations

from msgspec import MsgspecError, Raw, Struct
from msgspec.json import Decoder

_NOTHING = Raw(b"null")


class Text(Struct, frozen=True, gc=False, forbid_unknown_fields=True, tag_field="type", tag="text"):
    """A part that is text."""

    content: str


class Call(Struct, frozen=True, gc=False, forbid_unknown_fields=True, tag_field="type", tag="tool_call"):
    """A part that asks for a tool."""

    id: str | None = None
    name: str | None = None
    arguments: Raw = _NOTHING
    """JSON."""


class Result(Struct, frozen=True, gc=False, forbid_unknown_fields=True, tag_field="type", tag="tool_call_response"):
    """A part that is what a tool gave."""

    id: str | None = None
    response: Raw = _NOTHING
    """JSON."""


class GenAIMessage(Struct, frozen=True, gc=False, forbid_unknown_fields=True):
    """A message of ``gen_ai.input.messages`` or ``gen_ai.output.messages``, with no part of another kind."""

    role: str
    parts: list[Text | Call | Result]
    name: str | None = None
    finish_reason: str | None = None


_decode = Decoder(GenAIMessage).decode
_MAX_DIGITS = 4300
"""Of an integer; Python refuses to read more."""
_TOO_MANY = b"0" * (_MAX_DIGITS + 1)
_DIGITS = bytes([ord("0") if chr(byte).isdecimal() else ord(" ") for byte in range(256)])


def parse(text: str) -> GenAIMessage | None:
    """The message that the text is; None where it is not the JSON of one, or JSON that the standard library refuses."""
    try:
        message = _decode(text)
    except (MsgspecError, TypeError, UnicodeEncodeError, RecursionError):  # TypeError: a text of a class of its own
        return None
    if len(text) > _MAX_DIGITS and any(map(_has_endless_number, message.parts)):
        return None
    return message


def _has_endless_number(part: Text | Call | Result) -> bool:
    if isinstance(part, Text):
        return False
    raw = bytes(part.arguments if isinstance(part, Call) else part.response)
    return len(raw) > _MAX_DIGITS and not raw.startswith(b'"') and _TOO_MANY in raw.translate(_DIGITS)
