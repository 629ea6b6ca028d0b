"""What real instrumentations recorded becomes the rows that the model's server and the tools saw."""

from __future__ import annotations

import json
import sqlite3
from collections import defaultdict
from contextlib import closing
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from recordings import all_recordings
from recordings.scoring import Fact, score
from step_exporter.cli.imports import import_files

pytestmark = pytest.mark.once

LEAST = 0.97
"""Of the recordings, how many have no miss."""
LEAST_OF_KIND = 0.95
"""Of each kind of fact that is asked for at least ten times, how many are right."""

Scored = dict[str, list[Fact]]


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> Scored:
    """The facts of each recording, after all were imported into one database."""
    directory = tmp_path_factory.mktemp("recordings")
    files: list[Path] = []
    for number, recording in enumerate(all_recordings()):
        files.append(directory / f"{number}.json")
        files[-1].write_text(json.dumps(recording.spans), encoding="utf-8")
    database = directory / "steps.db"
    said = StringIO()
    summary = import_files(files, f"sqlite:///{database}", Console(file=said))
    assert (summary.files, summary.quarantined, summary.problems) == (381, 0, []), said.getvalue()
    assert summary.spans == sum(len(recording.raws()) for recording in all_recordings())
    with closing(sqlite3.connect(database)) as db:
        return {recording.name: list(score(recording, db)) for recording in all_recordings()}


def test_almost_every_recording_is_read_without_a_miss(scored: Scored) -> None:
    misses = {name: [fact for fact in facts if not fact.right] for name, facts in scored.items()}
    missed = {name: facts for name, facts in misses.items() if facts}
    assert len(scored) == 381
    assert len(missed) <= (1 - LEAST) * len(scored), missed


def test_no_kind_of_fact_is_weak(scored: Scored) -> None:
    kinds: dict[str, list[bool]] = defaultdict(list)
    for facts in scored.values():
        for fact in facts:
            kinds[fact.kind].append(fact.right)
    shares = {kind: sum(right) / len(right) for kind, right in kinds.items() if len(right) >= 10}
    assert len(shares) == 30
    assert {kind: share for kind, share in shares.items() if share < LEAST_OF_KIND} == {}
