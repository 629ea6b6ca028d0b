"""What a writer remembers of live traces, so that a batch costs what is new in it."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field

from step_exporter.derive import Derivation

_MAX_HASHES = 50_000
"""Hashes of one trace that are remembered as stored; forgetting them costs an insert that does nothing."""
_CHARS = 4096
"""What a span without content takes, about."""


@dataclass(slots=True)
class KnownTrace:
    """A trace as of a revision: its derivation, and which contents and resources are stored."""

    epoch: int
    revision: int
    derivation: Derivation
    hashes: set[str] = field(default_factory=set[str])
    chars: int = 0
    """Of the texts in it."""

    def remember(self, hashes: set[str], chars: int) -> None:
        """Note what is stored now, and how many characters came with it."""
        self.chars += chars
        self.hashes |= hashes
        if len(self.hashes) > _MAX_HASHES:
            self.hashes = hashes


class KnownTraces:
    """The traces written to last, bounded by the spans in them and by their texts, of which 4,096 characters count as a
    span.

    One trace alone may hold four times the bound: a trace that is loaded anew for each batch costs its square.
    """

    def __init__(self, max_spans: int = 30_000) -> None:
        self._max_spans = max_spans
        self._spans = 0
        self._traces: OrderedDict[str, tuple[KnownTrace, int]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._traces)

    def take(self, trace_id: str) -> KnownTrace | None:
        """What is known of a trace. It is forgotten until it is put back: after COMMIT, never after an error."""
        known, spans = self._traces.pop(trace_id, (None, 0))
        self._spans -= spans
        return known

    def put(self, trace_id: str, known: KnownTrace) -> None:
        """Remember a trace, and forget the ones used longest ago where there are too many spans."""
        spans = len(known.derivation) + known.chars // _CHARS + 1
        self._traces[trace_id] = (known, spans)
        self._spans += spans
        while self._spans > self._max_spans and (len(self._traces) > 1 or self._spans > 4 * self._max_spans):
            _, (_, spans) = self._traces.popitem(last=False)
            self._spans -= spans

    def clear(self) -> None:
        """Forget everything."""
        self._traces.clear()
        self._spans = 0
