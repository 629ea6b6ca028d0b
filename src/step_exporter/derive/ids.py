"""Ids that are functions of what they name: the same on every machine, in every process, in any order."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from hashlib import sha256


def _uuid(*parts: str) -> str:
    """A UUID (RFC 9562, version 8: custom) of the parts. 1 µs, half of ``uuid.uuid5``."""
    text = "".join([f"{len(part)}:{part}" for part in parts])  # so that no two lists of parts look the same
    h = sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
    return f"{h[:8]}-{h[8:12]}-8{h[13:16]}-{'89ab'[int(h[16], 16) & 3]}{h[17:20]}-{h[20:32]}"


_NO_SPAN = "0" * 16
"""No span's id (W3C Trace Context)."""


def _within(trace_id: str, span_id: str) -> str:
    """A UUID (RFC 9562, version 8: custom) of a span that begins as its trace's id does, for 12 digits.

    So the ids of one trace are neighbours in every index, which costs SQLite a tenth less once the file has 400 MB.
    """
    h = sha256(f"{trace_id}{span_id}".encode()).hexdigest()
    return f"{trace_id[:8]}-{trace_id[8:12]}-8{h[:3]}-8{h[3:6]}-{h[6:18]}"


def step_id(trace_id: str, span_id: str) -> str:
    """The id of a step that has none of its own, from its anchor."""
    return "step-" + _within(trace_id, span_id)


def run_id(trace_id: str, span_id: str) -> str:
    """The id of a run that has none of its own, from the agent or workflow span that opens it."""
    return "run-" + _within(trace_id, span_id)


def trace_run_id(trace_id: str) -> str:
    """The id of the run of everything in a trace that is below no agent or workflow.

    It depends on the trace alone, so that neither a missing parent nor a second root changes it.
    """
    return "run-" + _within(trace_id, _NO_SPAN)


def message_id(start: str, role: str, text: str, calls: Iterable[str]) -> str:
    """The id of a message: what was said, after what. ``start`` is the id before it, or the run's."""
    said = sha256(f"{len(start)}:{start}{len(role)}:{role}{len(text)}:".encode())  # no two lists of parts look the same
    said.update(text.encode("utf-8", "surrogatepass"))
    for part in calls:
        said.update(f"{len(part)}:{part}".encode("utf-8", "surrogatepass"))
    h = said.hexdigest()
    return f"message-{h[:8]}-{h[8:12]}-8{h[12:15]}-8{h[15:18]}-{h[18:30]}"  # a UUID like those of _uuid


@lru_cache(maxsize=1024)
def organization_id(name: str) -> str:
    """The id of an organization that is known by name only."""
    return "org-" + _uuid("organization", _normalised(name))


@lru_cache(maxsize=1024)
def provider_id(name: str) -> str:
    """The id of a provider that is known by name only."""
    return "provider-" + _uuid("provider", _normalised(name))


def _normalised(name: str) -> str:
    return " ".join(name.split()).casefold()
