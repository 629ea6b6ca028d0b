"""Changes texts before anything is written."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast

from msgspec.structs import replace

from step_exporter.facts import REDACTION_FAILED, AttributeValue, RawSpan
from step_exporter.store.values import MAX_DEPTH

Redact = Callable[[str, str], str]
"""Takes the name of an attribute and a text in it, gives the text to store."""

FAILED = "[redaction failed]"
SPAN_NAME = "span.name"
STATUS_MESSAGE = "status.message"
EVENT_NAME = "event.name"
SCOPE_NAME = "scope.name"
SCOPE_VERSION = "scope.version"
"""The names under which texts that are no attributes are given."""


def redacted(raw: RawSpan, redact: Redact, failed: Callable[[str, str], object]) -> RawSpan:
    """The span with every text in its attributes, events, links, name, status message, resource and scope, its name and
    version too, given to ``redact``. Names of attributes are not, as they are an instrumentation's.

    Texts within sequences and mappings are given one by one, under the attribute's name; bytes as the text that they
    are in UTF-8. Where ``redact`` raises or
    gives anything but a text, the text is replaced: what might be a secret is not stored. The span is flagged then,
    and kept, as what is replaced may be what said that it matters; ``failed`` is told the name and the kind of error.
    """
    has_failed = False

    def text(name: str, value: str) -> str:
        nonlocal has_failed
        try:
            result = cast(object, redact(name, value))
        except Exception as error:
            why = type(error).__name__
        else:
            if isinstance(result, str):
                return result
            why = f"it gave {type(result).__name__}, no text"
        has_failed = True
        failed(name, why)
        return FAILED

    def value_of(name: str, value: AttributeValue, depth: int = 0) -> AttributeValue:
        if isinstance(value, str):
            return text(name, value)
        if isinstance(value, bytes | bytearray):
            said = bytes(value).decode("utf-8", "replace")
            return value if (kept := text(name, said)) == said else kept
        if isinstance(value, tuple | list | Mapping) and depth == MAX_DEPTH:
            return FAILED  # deeper is not stored, and Python's stack may end before
        if isinstance(value, tuple | list):
            return tuple(value_of(name, item, depth + 1) for item in cast("tuple[Any, ...]", value))
        if isinstance(value, Mapping):
            return {key: value_of(name, item, depth + 1) for key, item in cast("Mapping[str, Any]", value).items()}
        return value

    def all_of(attributes: Mapping[str, AttributeValue]) -> dict[str, AttributeValue]:
        return {key: value_of(key, value) for key, value in attributes.items()}

    safe = replace(
        raw,
        name=text(SPAN_NAME, raw.name),
        status_message=None if raw.status_message is None else text(STATUS_MESSAGE, raw.status_message),
        attributes=all_of(raw.attributes),
        events=tuple(
            replace(event, name=text(EVENT_NAME, event.name), attributes=all_of(event.attributes))
            for event in raw.events
        ),
        links=tuple(replace(link, attributes=all_of(link.attributes)) for link in raw.links),
        resource=replace(raw.resource, attributes=all_of(raw.resource.attributes)),
        scope=replace(
            raw.scope,
            name=raw.scope.name and text(SCOPE_NAME, raw.scope.name),
            version=raw.scope.version and text(SCOPE_VERSION, raw.scope.version),
            attributes=all_of(raw.scope.attributes),
        ),
    )
    return replace(safe, flags=tuple(sorted({*safe.flags, REDACTION_FAILED}))) if has_failed else safe
