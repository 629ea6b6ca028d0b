"""Every recording, sent to the receiver as JSON and as protobuf, leaves the rows that ``import`` leaves."""

from __future__ import annotations

import gzip
import json
from itertools import groupby
from operator import attrgetter
from pathlib import Path

import pytest
from otlp_protobuf import to_protobuf
from rich.console import Console
from viewer_server import Serve

from dumps import Dump, dump, opened
from recordings import all_recordings
from step_exporter.cli.imports import import_files

pytestmark = pytest.mark.once


@pytest.fixture(scope="module")
def imported(tmp_path_factory: pytest.TempPathFactory) -> Dump:
    directory = tmp_path_factory.mktemp("imported")
    file = directory / "spans.jsonl"
    file.write_text("\n".join(json.dumps(recording.spans) for recording in all_recordings()), encoding="utf-8")
    url = f"sqlite:///{directory / 'steps.db'}"
    summary = import_files([file], url, Console(stderr=True))
    assert summary.problems == []
    assert summary.spans == sum(len(recording.raws()) for recording in all_recordings())
    with opened(url) as engine:
        return dump(engine)


@pytest.mark.parametrize("kind", ["application/json", "application/x-protobuf"])
def test_what_is_sent_leaves_the_rows_of_an_import(serve: Serve, tmp_path: Path, imported: Dump, kind: str) -> None:
    server = serve(f"sqlite:///{tmp_path / 'sent.db'}")
    for emitter, recordings in groupby(all_recordings(), attrgetter("emitter")):
        groups = [group for recording in recordings for group in recording.spans["resourceSpans"]]
        sent = {"resourceSpans": groups}
        body = json.dumps(sent).encode() if kind == "application/json" else to_protobuf(sent)
        answer = server.send(gzip.compress(body, 1), kind, **{"Content-Encoding": "gzip"})
        assert (answer.status, answer.body) == (200, b"{}" if kind == "application/json" else b""), emitter
    with opened(server.url) as engine:
        stored = dump(engine)
    assert stored.keys() == imported.keys()
    for table, rows in stored.items():
        assert rows == imported[table], table
