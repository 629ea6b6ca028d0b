"""G: what readers, pages and searches are up against. The other cases of G carry their number in the files of what
they are about: receiver, security, browser, export, engine."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import quote

import pytest
from opentelemetry.sdk.trace import TracerProvider
from sqlalchemy import select, text
from sqlalchemy.exc import DBAPIError
from viewer_server import Serve, Server
from viewer_spans import agent_run, document, span

from step_exporter.processor import StepSpanProcessor
from step_exporter.redaction import FAILED, Redact
from step_exporter.store.query import StepStore
from step_exporter.store.reads import STEPS, TRACES
from step_exporter.viewer.reading import PageStore

pytestmark = pytest.mark.once

LONG = 100_000
BOMB = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n"


def test_g2_the_connection_of_the_pages_cannot_write(server: Server, tmp_path: Path) -> None:
    server.send(agent_run())
    other = tmp_path / "other.db"
    with PageStore(server.url) as store:
        for statement in (
            "INSERT INTO traces (trace_id) VALUES ('x')",
            "DELETE FROM steps",
            "CREATE TABLE mine (x)",
            "PRAGMA user_version = 7",
            "SELECT load_extension('x')",
        ):
            with store._engine.connect() as conn, pytest.raises(DBAPIError):
                conn.execute(text(statement))
        with store._engine.connect() as conn:
            conn.execute(text(f"ATTACH DATABASE '{other}' AS other"))
            with pytest.raises(DBAPIError):
                conn.execute(text("CREATE TABLE other.mine (x)"))
        assert len(store.steps()) == 2
    assert not other.exists() or other.stat().st_size == 0


def test_g2_a_query_without_an_end_is_given_up(server: Server) -> None:
    server.send(agent_run())
    with (
        PageStore(server.url, deadline_s=0.2) as store,
        store._engine.connect() as conn,
        pytest.raises(DBAPIError, match="interrupted"),
    ):
        conn.execute(text(BOMB))


HOSTILE = {
    "letters": "a" * LONG,
    "angles": "<" * LONG,
    "reprs": "<" + " at 0xf" * (LONG // 7),
    "quotes": '"a" ' * (LONG // 4),
    "fields": '"a":[ ' * (LONG // 6),
    "blanks": '{"messages": [' + " " * LONG,
    "backslashes": "\\" * LONG,
    "errors": "a.Error" * (LONG // 7),
}


def test_g13_no_text_is_read_or_searched_for_ever(server: Server) -> None:
    names = ("gen_ai.input.messages", "gen_ai.output.messages", "input.value", "llm.openai.messages", "error.type")
    for number, hostile in enumerate(HOSTILE.values(), 1):
        has = {"gen_ai.operation.name": "chat", **dict.fromkeys(names, hostile)}
        assert server.send(document(span(number, 1, None, hostile[:1000], 0, 1, has=has))).status == 200
        assert server.get(f"/traces/{number:032x}?step={1:016x}").status == 200
        for asked in (hostile[:5000], f"{hostile[:40]}!", "%" * 5000, "(a+)+$", ".*" * 500):
            assert server.get(f"/?q={quote(asked, safe='')}").status == 200
    assert server.get("/stats").status == 200


def test_g13_what_a_redaction_gives_up_on_is_not_stored(sqlite_url: str) -> None:
    def redact(name: str, value: str) -> str:
        if "secret" in value:
            raise TimeoutError("the pattern took too long")  # as those of the package regex do
        return value

    trace_id = _recorded(sqlite_url, redact)
    with StepStore(sqlite_url) as store:
        (found,) = store.trace(trace_id).spans
    assert found.attributes["note"] == FAILED


def test_g13_a_slow_redaction_holds_up_neither_the_app_nor_its_end(sqlite_url: str) -> None:
    def redact(name: str, value: str) -> str:
        time.sleep(0.5)
        return value

    processor = StepSpanProcessor(sqlite_url, redact=redact)
    provider = TracerProvider()
    provider.add_span_processor(processor)
    tracer = provider.get_tracer("app")
    for _ in range(100):  # 100 s of redaction
        tracer.start_span("chat m", attributes={"gen_ai.operation.name": "chat"}).end()
    assert not processor.force_flush(200)
    processor.shutdown(0.5)
    report = processor.flush(0)
    assert report.committed + report.spooled + sum(report.dropped.values()) + report.pending == 100


def _recorded(url: str, redact: Redact) -> str:
    processor = StepSpanProcessor(url, redact=redact)
    provider = TracerProvider()
    provider.add_span_processor(processor)
    chat = provider.get_tracer("app").start_span("chat m", attributes={"gen_ai.operation.name": "chat"})
    chat.set_attribute("note", "a secret")
    chat.end()
    provider.shutdown()
    context = chat.get_span_context()
    assert context is not None
    return f"{context.trace_id:032x}"


def test_g14_an_open_page_sees_one_moment_and_holds_up_no_writer(database_url: str, serve: Serve) -> None:
    server = serve(database_url)
    for trace in range(1, 6):
        server.send(agent_run(trace))
    ids = select(STEPS.c.trace_id, STEPS.c.id).order_by(STEPS.c.trace_id, STEPS.c.id)
    with PageStore(database_url) as pages, StepStore(database_url) as writer:
        with pages._engine.connect() as page:
            before = page.execute(ids).fetchall()
            for trace in range(6, 11):
                assert server.send(agent_run(trace)).status == 200
            assert writer.delete(trace_id=f"{1:032x}") == 1
            assert writer.prune(older_than=datetime.now(UTC)).traces == 9
            assert page.execute(ids).fetchall() == before
            assert len(page.execute(select(TRACES.c.trace_id)).fetchall()) == 5
        assert not pages.steps().items
