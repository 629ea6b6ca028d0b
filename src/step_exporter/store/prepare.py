"""What is done with spans before a transaction: made safe, taken apart, encoded and read."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from step_exporter.conventions.clean import visible
from step_exporter.conventions.content import ContentMemo, take_apart
from step_exporter.conventions.logfire import pending
from step_exporter.facts import RawSpan, SpanFacts, Value
from step_exporter.store import safety
from step_exporter.store.codec import Encoded, Sources, canonical, encode
from step_exporter.store.reading import read

INVALID_ID = "invalid_id"
UNSTORABLE = "unstorable"
_MAX_BODY = safety.MAX_TOTAL


class Prepared(Value, frozen=True):
    """A span that can be stored, and what it means."""

    encoded: Encoded
    facts: SpanFacts

    @property
    def key(self) -> tuple[str, str]:
        """The trace's id and the span's."""
        return self.facts.trace_id, self.facts.span_id

    def row(self, revision: int) -> tuple[object, ...]:
        """The row of ``spans``, in the order of ``SpanRow``."""
        facts = self.facts  # a plain text: sqlite3 looks for an adapter of an enum's member, 0.4 µs
        return (*self.encoded.fact, str.__str__(facts.role), facts.convention, 0, revision)


class Rejected(NamedTuple):
    """A span for the quarantine, as a row of it without its time."""

    trace_id: str | None
    span_id: str | None
    reason: str
    detail: str
    body: bytes


def prepare(
    raws: Iterable[RawSpan], sources: Sources, memo: ContentMemo | None = None
) -> tuple[list[Prepared], list[Rejected]]:
    """Spans ready to store, and those that cannot be."""
    prepared: list[Prepared] = []
    rejected: list[Rejected] = []
    good = ""  # the last trace's id: most spans have the one of the span before
    for raw in raws:
        try:
            if "logfire.span_type" in raw.attributes:
                raw = pending(raw) or raw  # a marker becomes the open span that it announces
            if raw.trace_id != good or not safety.is_span_id(raw.span_id):
                if safety.bad_id(raw) is not None:
                    raw = safety.with_lower_ids(raw)
                    if (why := safety.bad_id(raw)) is not None:
                        rejected.append(reject(raw, INVALID_ID, why))
                        continue
                good = raw.trace_id
            encoded = encode(raw, sources, memo)
            facts = read(encoded.raw, encoded.contents, encoded.has_escapes)
            encoded.contents.parsed.clear()  # what nobody read
            prepared.append(Prepared(encoded, facts))
        except Exception as error:  # nothing that a span holds is known to get here; its neighbours must not pay
            rejected.append(reject(raw, UNSTORABLE, repr(error)))
    return prepared, rejected


def reject(raw: RawSpan, reason: str, detail: str) -> Rejected:
    """The span as a row of the quarantine."""
    try:
        safe = safety.made_safe(raw)
        body = canonical(safe)
        if len(body) > _MAX_BODY:
            body = canonical(safety.shortened(safe, take_apart(safe)))
    except Exception as error:
        body = repr(error).encode("utf-8", "backslashreplace")
    return Rejected(_id(raw.trace_id), _id(raw.span_id), reason, visible(detail)[:2000], body[: 4 * _MAX_BODY])


def _id(value: object) -> str | None:
    return visible(value)[:100] if isinstance(value, str) else None
