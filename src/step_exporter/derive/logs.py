"""Log records meet the spans that they are about, whichever comes first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from step_exporter.conventions.logs import CONVENTION, with_logs
from step_exporter.derive.tree import Node
from step_exporter.facts import SpanFacts


class Logs:
    """The log records of one trace, and the spans that they are about as these came."""

    def __init__(self) -> None:
        self._about: dict[str, str] = {}  # by record: the span that it is about
        self._records: dict[str, dict[str, SpanFacts]] = {}  # by that span
        self._spans: dict[str, SpanFacts] = {}  # those of these that came

    def merge(self, facts: Sequence[SpanFacts], known: Mapping[str, Node]) -> Sequence[SpanFacts]:
        """New facts, and known spans of which there are new records, as their records complete them.

        Args:
            facts: Spans and records, new versions of known ones included.
            known: The spans there are, by id.
        """
        changed: dict[str, None] = {}
        for record in facts:
            if self._about and (about := self._about.pop(record.span_id, None)) is not None:
                del self._records[about][record.span_id]
                changed[about] = None
            if record.convention == CONVENTION and (about := record.parent_span_id) is not None:
                self._about[record.span_id] = about
                self._records.setdefault(about, {})[record.span_id] = record
                changed[about] = None
                if about not in self._spans and about in known:
                    self._spans[about] = known[about].facts
        if not self._records:
            return facts  # nearly always
        merged: list[SpanFacts] = []
        for span in facts:
            if span.span_id in self._records:
                self._spans[span.span_id] = span
                changed[span.span_id] = None
            else:
                merged.append(span)
        merged += (
            with_logs(self._spans[about], self._records[about].values()) for about in changed if about in self._spans
        )
        return merged
