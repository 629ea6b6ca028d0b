"""Recorded spans of real instrumentations, each with the truth beside it (``README.md``)."""

from __future__ import annotations

import gzip
import json
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from step_exporter.facts import RawSpan
from step_exporter.otlp import decode_json

_DATA = Path(__file__).parent / "data"


class Recording(NamedTuple):
    """The spans of one scenario, as one emitter exported them, and what really happened."""

    emitter: str
    scenario: str
    spans: dict[str, Any]
    """OTLP/JSON, in the order of export."""
    truth: dict[str, Any]

    @property
    def name(self) -> str:
        return f"{self.emitter}/{self.scenario}"

    def raws(self) -> list[RawSpan]:
        found = list(decode_json(self.spans))
        spans = [item for item in found if isinstance(item, RawSpan)]
        assert len(spans) == len(found), f"{self.name} holds what cannot be read"
        return spans


@cache
def all_recordings() -> tuple[Recording, ...]:
    """Every recording, by emitter and scenario."""
    return tuple(
        Recording(path.name.removesuffix(".json.gz"), scenario, parts["spans"], parts["truth"])
        for path in sorted(_DATA.glob("*.json.gz"))
        for scenario, parts in json.loads(gzip.decompress(path.read_bytes())).items()
    )


def sample(every: int) -> list[RawSpan]:
    """The spans of each so manyth recording."""
    return [raw for recording in all_recordings()[::every] for raw in recording.raws()]
