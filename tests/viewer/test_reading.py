"""Reading for pages: on both engines, within a deadline, while others write and delete."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from viewer_server import Serve, Server
from viewer_spans import agent_run, document, span

from step_exporter.errors import DatabaseError, NotFoundError
from step_exporter.store.query import StepStore
from step_exporter.viewer.reading import PageStore

TRACE = f"{0xA1:032x}"


def test_every_page_reads_both_engines(serve: Serve, database_url: str) -> None:
    server = serve(database_url)
    server.send(agent_run())
    for path in ("/", "/?q=helper&since=30d", f"/traces/{TRACE}?span={2:016x}", "/stats", "/stats?since=7d",
                 "/api/steps", "/api/stats?by=model", f"/api/traces/{TRACE}"):  # fmt: skip
        assert server.get(path).status == 200, path
    assert server.get(f"/traces/{0xB2:032x}").status == 404


def test_g2_a_statement_is_given_up_at_its_deadline(server: Server) -> None:
    server.send(document(*(span(1, at, None, f"chat {at}", at, 1) for at in range(1, 5000))))
    with PageStore(server.url, deadline_s=-1) as store, pytest.raises(DatabaseError, match="interrupted"):
        store.outline(f"{1:032x}")
    with PageStore(server.url) as store:
        assert len(store.outline(f"{1:032x}").rows) == 4999


def test_reading_does_not_change_the_file(server: Server) -> None:
    server.send(agent_run())
    path = Path(server.url.removeprefix("sqlite:///"))
    before = path.read_bytes()
    for page in ("/", f"/traces/{TRACE}", "/stats", "/api/steps"):
        assert server.get(page).status == 200
    assert path.read_bytes() == before


def test_g14_pages_are_whole_while_spans_come_and_traces_go(server: Server) -> None:
    server.send(agent_run(1))
    answers: list[int] = []
    done = threading.Event()

    def look() -> None:
        while not done.is_set():
            for path in ("/", "/stats", f"/traces/{1:032x}", f"/traces/{1:032x}?span={2:016x}"):
                answers.append(server.get(path).status)

    reader = threading.Thread(target=look)
    reader.start()
    with StepStore(server.url) as store:
        for trace in range(1, 30):
            assert server.send(agent_run(trace + 1)).status == 200
            store.delete(trace_id=f"{trace:032x}")
    done.set()
    reader.join()
    assert answers
    assert set(answers) <= {200, 404}


def test_an_outline_is_made_anew_when_its_trace_changes(server: Server) -> None:
    server.send(document(span(1, 1, None, "a", 0, 1)))
    with PageStore(server.url) as store:
        first = store.outline(f"{1:032x}")
        assert store.outline(f"{1:032x}") is first
        server.send(document(span(1, 2, 1, "b", 0, 1)))
        assert [row.span.name for row in store.outline(f"{1:032x}").rows] == ["a", "b"]
        with pytest.raises(NotFoundError):
            store.span(f"{1:032x}", "0" * 16)
