"""Whoever opens a page finds what processes that are gone left open."""

from __future__ import annotations

import http.client

from msgspec.structs import replace
from viewer_server import KEY, Server

from step_exporter.facts import RawSpan
from step_exporter.store.engine import create_sync_engine
from step_exporter.store.ingest import Writer
from step_exporter.store.processes import register

LLM = {"gen_ai.operation.name": "chat", "gen_ai.request.model": "m"}


def leave_open(server: Server) -> None:
    """A span of a process whose pid is another one's now."""
    engine = create_sync_engine(server.url)
    span = RawSpan("a" * 32, "b" * 16, None, "chat", start_ns=1_000, end_ns=None, ended=False, attributes=LLM)
    Writer(engine).write([replace(span, process_id=register(engine))])
    with engine.begin() as conn:
        conn.exec_driver_sql("UPDATE processes SET pid_start = 1")
    engine.dispose()


def status(server: Server) -> list[str]:
    with server.store() as store:
        return [step.status for step in store.steps()]


def test_the_page_of_runs(server: Server) -> None:
    leave_open(server)
    assert status(server) == ["pending"]
    assert server.get("/").status == 200
    assert status(server) == ["abandoned"]


def test_the_page_of_a_trace_shows_it_at_once(server: Server) -> None:
    leave_open(server)
    assert "abandoned" in server.get(f"/traces/{'a' * 32}").text


def test_a_page_that_is_open(server: Server) -> None:
    leave_open(server)
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    connection.request("GET", f"/live/traces/{'a' * 32}", headers={"Authorization": f"Bearer {KEY}"})
    response = connection.getresponse()
    response.readline()
    while status(server) == ["pending"]:
        pass
    assert status(server) == ["abandoned"]
    response.close()
    connection.close()
