"""From a safe span to what it means, in texts that every database takes."""

from __future__ import annotations

import logging
from hashlib import sha256
from typing import Any, cast

from msgspec.structs import astuple, replace

from step_exporter import conventions
from step_exporter.conventions.clean import is_clean, visible
from step_exporter.conventions.content import Contents
from step_exporter.facts import RawSpan, Role, SpanFacts, Value
from step_exporter.store.notices import Notices
from step_exporter.store.values import TRUNCATED

_notices = Notices(logging.getLogger(__name__))

ID_COLLISION = "id_collision"
UNREADABLE = "unreadable"
MAX_ID = 256
"""Characters of an id that a column with an index gets: an entry of PostgreSQL's takes 2,704 bytes, and one index has
two ids of up to 4 bytes a character. A token used as a conversation's id is longer."""
_IDS = ("step_id", "run_id", "agent_id", "conversation_id", "organization_id", "provider_id")


def read(raw: RawSpan, contents: Contents, has_escapes: bool) -> SpanFacts:
    """The facts of a span that is safe, its collisions flagged.

    ``has_escapes`` says that reading may have parsed NUL or half a surrogate pair out of JSON (or found it as it
    is): then every text is looked through, but for messages that name their content, which ``conventions`` reads into
    clean ones. A reader that fails is a bug; the span is stored nevertheless, with the flag ``unreadable``.
    """
    try:
        facts = conventions.read(raw, contents)
    except Exception as error:
        where = (raw.span_id, raw.trace_id)
        _notices.say(UNREADABLE, "step_exporter cannot read span %s of trace %s; it is stored", *where, error=error)
        facts = _unread(raw)
    if has_escapes and not _is_clean(facts):
        facts = cast(SpanFacts, _clean(facts))
    if (
        ((found := facts.agent_id) is not None and len(found) > MAX_ID)  # one by one: a loop takes 1 µs
        or ((found := facts.conversation_id) is not None and len(found) > MAX_ID)
        or ((found := facts.step_id) is not None and len(found) > MAX_ID)
        or ((found := facts.run_id) is not None and len(found) > MAX_ID)
        or ((found := facts.organization_id) is not None and len(found) > MAX_ID)
        or ((found := facts.provider_id) is not None and len(found) > MAX_ID)
    ):
        facts = _with_short_ids(facts)
    if raw.collisions:
        facts = replace(facts, flags=tuple(sorted({*facts.flags, ID_COLLISION})))
    return facts


def _with_short_ids(facts: SpanFacts) -> SpanFacts:
    """Ids that an index takes: of a longer one its beginning and its SHA-256, the same wherever it occurs."""
    short: dict[str, Any] = {}
    for name in _IDS:
        value = cast("str | None", getattr(facts, name))
        if value is not None and len(value) > MAX_ID:
            digest = sha256(value.encode("utf-8", "surrogatepass")).hexdigest()
            short[name] = f"{value[: MAX_ID - 65]}-{digest}"
    return replace(facts, **short, flags=tuple(sorted({*facts.flags, TRUNCATED})))


def _unread(raw: RawSpan) -> SpanFacts:
    facts = conventions.plain(raw)
    return replace(facts, flags=tuple(sorted({*facts.flags, UNREADABLE})))


def _is_clean(facts: SpanFacts) -> bool:
    """Whether every database takes all texts. They are looked at as one: 2 µs, one by one 4."""
    texts = [value for value in astuple(facts) if type(value) is str]
    texts += facts.asked_call_ids
    texts += facts.tags
    for message in (*facts.input_messages, *facts.output_messages):
        if message.content_hash is None:
            return False
    return is_clean("".join(texts))


def _clean(value: Any) -> Any:
    if isinstance(value, str):
        return value if isinstance(value, Role) else visible(value)
    if isinstance(value, tuple):
        return tuple(map(_clean, cast("tuple[Any, ...]", value)))
    if isinstance(value, Value):
        return type(value)(*map(_clean, astuple(value)))
    return value
