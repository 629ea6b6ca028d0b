"""The steps of the writing transaction, each on a connection that holds it."""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from operator import attrgetter, itemgetter
from typing import Any

from sqlalchemy import Connection

from step_exporter.conventions.content import values_of
from step_exporter.derive import Derivation
from step_exporter.derive.rows import Changes
from step_exporter.facts import Annotation, Deletion, SpanFacts
from step_exporter.store.bulk import Statements
from step_exporter.store.codec import FACT, Source, SpanRow
from step_exporter.store.collisions import settle
from step_exporter.store.known import KnownTrace, KnownTraces
from step_exporter.store.load import load_people, load_some, load_spans
from step_exporter.store.prepare import Prepared

_MAX_RELOADED = 2_000
"""Spans of a trace that is forgotten as soon as it looks finished; to load it again takes a tenth of a second."""


@dataclass(slots=True)
class Work:
    """What a transaction does to one trace, which it has locked."""

    trace_id: str
    epoch: int
    revision: int
    """Of what is new in this transaction: one more than that of what was there."""
    first_ns: int | None
    last_ns: int | None
    is_new: bool
    known: KnownTrace | None
    """As remembered, perhaps behind, until ``catch_up``."""
    spans: list[Prepared]
    contested: list[Prepared] = field(default_factory=list[Prepared])
    """Spans whose key is taken by another fact."""
    facts: dict[str, SpanFacts] = field(default_factory=dict[str, SpanFacts])
    """By span id: what is new."""
    hashes: set[str] = field(default_factory=set[str])
    """Contents and resources that are stored after this transaction."""
    chars: int = 0
    """Of the contents that are stored by this transaction, or were loaded."""
    came_back: bool = False
    """Whether it was loaded: somebody goes on with what looked finished, or was forgotten."""

    @property
    def has_news(self) -> bool:
        """Whether deriving may be needed."""
        return bool(self.facts or self.contested)

    def add(self, facts: SpanFacts) -> None:
        """Note a new fact, and the times that it gives the trace."""
        self.facts[facts.span_id] = facts
        self.first_ns, self.last_ns = _hull((facts,), self.first_ns, self.last_ns)

    @property
    def is_behind(self) -> bool:
        """Whether the trace has facts that the derivation lacks."""
        return self.known is None or self.known.revision < self.revision - 1

    def catch_up(self, conn: Connection, people: Iterable[Annotation | Deletion]) -> None:
        """Bring what is known of the trace to just before this transaction: from nothing, or by what other writers
        stored since. What follows from that is in the database already, so those changes are thrown away."""
        facts: list[SpanFacts | Annotation | Deletion] = list(people)
        if self.is_new and not facts:
            return  # nothing was before
        before = self.revision - 1
        known, after = self.known, None
        if known is None:
            known = self.known = self._begun()
            self.came_back = not self.is_new
        else:
            after = known.revision
        if not self.is_new:
            facts.extend(span.facts() for span in load_spans(conn, self.trace_id, after, before))
        if facts:
            known.derivation.apply(facts)
            self.chars += _chars(facts)
        known.revision = before

    def derive(self) -> Changes:
        """What the new facts change."""
        finished = self._looks_finished()
        known = self.known or self._begun(is_whole=finished)
        changes = known.derivation.apply(self.facts.values())
        if finished and not self.came_back and len(known.derivation) <= _MAX_RELOADED:
            known = None
        self.known = known
        return changes

    def _begun(self, *, is_whole: bool = False) -> KnownTrace:
        return KnownTrace(self.epoch, 0, Derivation(self.trace_id, is_whole=is_whole))

    def _looks_finished(self) -> bool:
        """Whether nothing more is to be expected: a local root has ended. If more comes after all, the trace is loaded
        once, and then kept."""
        for item in self.spans:
            raw = item.encoded.raw
            if raw.ended and (raw.parent_span_id is None or raw.parent_is_remote is True):
                return True
        return False

    def after_commit(self, known: KnownTrace) -> KnownTrace:
        """What is known now."""
        if self.facts:
            known.revision = self.revision
        known.remember(self.hashes, self.chars)
        return known


def _chars(facts: Iterable[SpanFacts | Annotation | Deletion]) -> int:
    """Characters of the messages of spans; a prompt repeats most of those before it, but for its last one."""
    return sum(
        len(message.text)
        for span in facts
        if isinstance(span, SpanFacts)
        for message in (*span.input_messages[-1:], *span.output_messages)
    )


def _hull(facts: Iterable[SpanFacts], first: int | None, last: int | None) -> tuple[int | None, int | None]:
    """The earliest and the latest time of spans and of what was known before."""
    for span in facts:
        for moment in (span.start_ns, span.end_ns):
            if moment is not None:
                if first is None or moment < first:
                    first = moment
                if last is None or moment > last:
                    last = moment
    return first, last


def lock_traces(
    conn: Connection, sql: Statements, batch: Iterable[Prepared], known: KnownTraces, now: Any
) -> list[Work]:
    """Lock the traces of a batch, in order. What is known of them is taken out of ``known``, for an error to lose."""
    spans: dict[str, list[Prepared]] = {}
    for item in batch:
        spans.setdefault(item.facts.trace_id, []).append(item)
    offered: dict[str, tuple[object, ...]] = {}
    epochs = secrets.token_bytes(8 * len(spans))  # one call of the system for all
    for at, trace_id in enumerate(sorted(spans)):  # of a new trace all that comes is new, and its row can stay
        first_ns, last_ns = _hull([item.facts for item in spans[trace_id]], None, None)
        epoch = int.from_bytes(epochs[8 * at : 8 * at + 8], "little") >> 1  # 63 bits
        offered[trace_id] = (trace_id, epoch, 1, first_ns, last_ns, now)
    works: list[Work] = []
    for trace_id, epoch, revision, first_ns, last_ns in sql.lock(conn, list(offered.values())):
        remembered = known.take(trace_id)
        if remembered is not None and (remembered.epoch != epoch or remembered.revision > revision):
            remembered = None  # deleted and made again, or put back from a backup
        is_new = epoch == offered[trace_id][1]
        next_revision = revision if is_new else revision + 1
        works.append(Work(trace_id, epoch, next_revision, first_ns, last_ns, is_new, remembered, spans[trace_id]))
    works.sort(key=attrgetter("trace_id"))
    return works


def traces_made(works: Iterable[Work]) -> set[str]:
    """The traces that this transaction made."""
    return {work.trace_id for work in works if work.is_new}


def insert_facts(conn: Connection, sql: Statements, works: Sequence[Work]) -> Counter[str]:
    """Insert spans, resources and contents. Spans whose key is taken are told apart: the same fact again is counted,
    another one becomes ``contested``."""
    counts: Counter[str] = Counter()
    chosen: list[dict[str, Prepared]] = []  # of each trace, by span id
    sources: list[tuple[str, str, str]] = []
    elements: list[tuple[str, str, str | None, str]] = []
    rows: list[tuple[object, ...]] = []
    for work in works:
        trace_id, hashes = work.trace_id, work.hashes
        stored = work.known.hashes if work.known is not None else set[str]()
        given: dict[str, Prepared] = {}
        noted: tuple[Source, Source] | None = None
        for item in work.spans:
            first = given.setdefault(item.facts.span_id, item)
            encoded = item.encoded
            if first is not item:
                if first.encoded.fact == encoded.fact:
                    counts["duplicates"] += 1
                    continue
                work.contested.append(item)
            if encoded.sources is not noted:  # nearly all spans of a trace have one resource, and most one scope
                noted = encoded.sources
                for source in noted:
                    if source.hash not in hashes and source.hash not in stored:
                        sources.append((trace_id, source.hash, source.body))
                        hashes.add(source.hash)
            for value in values_of(encoded.contents):
                for element in reversed(value.elements):
                    if element.hash not in hashes and element.hash not in stored:
                        elements.append((trace_id, element.hash, element.parent_hash, element.body))
                        hashes.add(element.hash)
                        work.chars += len(element.body)
                    elif element.parent_hash is not None:
                        break  # and so are all those before it, whoever came with them
        chosen.append(given)
        rows += [given[span_id].row(work.revision) for span_id in sorted(given)]
    sources.sort()
    elements.sort(key=itemgetter(0, 1))
    new_traces = traces_made(works)
    sql.insert(conn, "resources", ("trace_id", "hash", "body"), sources, new_traces)
    sql.insert(conn, "contents", ("trace_id", "hash", "parent_hash", "body"), elements, new_traces)
    new = sql.insert(conn, "spans", SpanRow._fields, rows, new_traces)
    taken = _taken(conn, works) if new < len(rows) else {}
    for work, given in zip(works, chosen, strict=True):
        for span_id, item in given.items():
            current = taken.get((work.trace_id, span_id)) if taken else None
            if current is None:
                work.facts[span_id] = item.facts
            elif current[FACT] == item.encoded.fact:
                counts["duplicates"] += 1
            else:
                work.contested.append(item)
        counts["new"] += len(work.facts)
        if not work.is_new:
            work.first_ns, work.last_ns = _hull(work.facts.values(), work.first_ns, work.last_ns)
    return counts


def _taken(conn: Connection, works: Iterable[Work]) -> dict[tuple[str, str], SpanRow]:
    """The rows that were there before, of the keys of the batch."""
    return {
        (row.trace_id, row.span_id): row
        for work in works
        for row in load_some(conn, work.trace_id, {item.facts.span_id for item in work.spans})
        if row.revision < work.revision
    }


def catch_up(conn: Connection, works: Iterable[Work]) -> None:
    """Load what the derivations of traces with news lack."""
    behind = [work for work in works if work.has_news and work.is_behind]
    people = load_people(conn, [work.trace_id for work in behind])
    for work in behind:
        work.catch_up(conn, people.get(work.trace_id, ()))


def settle_contested(conn: Connection, sql: Statements, works: Iterable[Work]) -> Counter[str]:
    """Let each contested span meet what stands under its key by then."""
    counts: Counter[str] = Counter()
    for work in works:
        for item in work.contested:
            (current,) = load_some(conn, work.trace_id, [item.facts.span_id])
            facts, collided = settle(conn, sql, item, current, work.revision)
            counts["collisions" if collided else "duplicates" if facts is None else "new"] += 1
            if facts is not None:
                work.add(facts)
    return counts


def update_traces(conn: Connection, sql: Statements, works: Iterable[Work], now: Any) -> None:
    """Note on the traces with new facts their revision and times; those that are new say so since they were locked."""
    rows = [
        (work.trace_id, work.revision, work.first_ns, work.last_ns, now)
        for work in works
        if work.facts and not work.is_new
    ]
    sql.update(conn, "traces", ("trace_id",), ("revision", "first_ns", "last_ns", "changed_at"), rows)
