"""The questions of docs/queries.md, asked of both engines."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace
from sqlalchemy import Connection, bindparam, text

from step_exporter.facts import RawSpan, Resource
from step_exporter.models import UtcDateTime
from step_exporter.store.engine import create_sync_engine
from step_exporter.store.ingest import Writer
from step_exporter.store.query import StepStore
from step_exporter.store.schema import ensure_schema

PAGE = Path(__file__).parent.parent / "docs" / "queries.md"
QUERIES = dict(
    re.findall(r"^## (\d+)\. .*?```sql\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
)
START, SECOND, MS = 1_795_368_468 * 10**9, 10**9, 10**6
GOOD, BAD = "a" * 32, "b" * 32


def span(trace: str, number: int, parent: int | None, begin: int, end: int, name: str, **attributes: Any) -> RawSpan:
    failed = attributes.pop("failed", False)
    return RawSpan(
        trace,
        f"{number:016x}",
        None if parent is None else f"{parent:016x}",
        name,
        start_ns=START + begin * MS,
        end_ns=START + end * MS,
        attributes={f"gen_ai.{key.replace('__', '.')}": value for key, value in attributes.items()},
        status_code="error" if failed else "unset",
        status_message="ToolError: broken" if failed else None,
        resource=Resource({"service.name": "s"}),
    )


def chat(
    trace: str, number: int, begin: int, end: int, model: str, prompt: int, cached: int | None, said: str
) -> RawSpan:
    answer = json.dumps([{"role": "assistant", "parts": [{"type": "text", "content": said}]}])
    more = {} if cached is None else {"usage__cache_read__input_tokens": cached}
    return span(
        trace, number, 1, begin, end, f"chat {model}", operation__name="chat", provider__name="openai",
        request__model=model, usage__input_tokens=prompt, usage__output_tokens=10, output__messages=answer, **more,
    )  # fmt: skip


def agent_trace(trace: str, agent: str, failed: bool) -> list[RawSpan]:
    tool = {"operation__name": "execute_tool", "tool__name": "look"}
    return [
        chat(trace, 2, 0, 100, "gpt-5-mini", 90, 30, f"{agent} looks"),
        span(trace, 3, 1, 100, 400, "execute_tool look", failed=failed, **tool),
        span(trace, 4, 1, 400, 410, "execute_tool think", **(tool | {"tool__name": "think"})),
        *([] if failed else [chat(trace, 5, 500, 700, "gpt-5", 290, None, "done")]),
        span(
            trace,
            1,
            None,
            0,
            800,
            f"invoke_agent {agent}",
            failed=failed,
            operation__name="invoke_agent",
            agent__name=agent,
        ),
    ]


@contextmanager
def written(database_url: str, spans: list[RawSpan]) -> Iterator[Connection]:
    """A database with these spans more."""
    engine = create_sync_engine(database_url)
    ensure_schema(engine)
    Writer(engine).write(spans)
    with engine.connect() as conn:
        yield conn
    engine.dispose()


@pytest.fixture
def conn(database_url: str) -> Iterator[Connection]:
    """A run that succeeds, and one that fails on its tool and was disliked."""
    with written(
        database_url, agent_trace(GOOD, "weather", failed=False) + agent_trace(BAD, "travel", failed=True)
    ) as conn:
        with StepStore(database_url) as store:
            store.feedback(f"{2:016x}", "negative", trace_id=BAD)
        yield conn


def ask(conn: Connection, number: int) -> list[dict[str, Any]]:
    query = text(QUERIES[str(number)])
    if ":since" in query.text:
        query = query.bindparams(bindparam("since", datetime(2026, 11, 1, tzinfo=UTC), UtcDateTime()))
    return [dict(row) for row in conn.execute(query).mappings()]


def test_there_are_ten() -> None:
    assert sorted(map(int, QUERIES)) == list(range(1, 11))


def test_the_questions_are_answered(conn: Connection) -> None:
    [failed] = ask(conn, 1)
    assert (failed["agent_name"], failed["trace_id"]) == ("travel", BAD)

    usage = ask(conn, 2)
    assert [(row["model"], row["total_tokens"]) for row in usage] == [("gpt-5", 300), ("gpt-5-mini", 200)]
    assert [float(row["percent"]) for row in usage] == [60, 40]

    assert [(row["agent_name"], float(row["tokens_per_run"])) for row in ask(conn, 3)] == [
        ("weather", 400),
        ("travel", 100),
    ]

    tools = [(row["name"], row["calls"], float(row["mean_ms"])) for row in ask(conn, 4)]
    assert tools == [("execute_tool look", 2, 300), ("execute_tool think", 2, 10)]

    assert ask(conn, 5) == [{"name": "execute_tool look", "calls": 2, "failures": 1}]

    [after_tool] = ask(conn, 6)
    assert (after_tool["agent_name"], after_tool["trace_id"]) == ("travel", BAD)
    step = conn.execute(text("SELECT span_id FROM steps WHERE id = :id"), {"id": after_tool["step_id"]}).scalar_one()
    assert step == f"{2:016x}"

    waits = {row["agent_name"]: (float(row["llm_ms"]), float(row["tools_ms"])) for row in ask(conn, 7)}
    assert waits == {"weather": (300, 310), "travel": (100, 310)}

    [cached] = ask(conn, 8)
    assert (cached["model"], round(float(cached["percent"]), 1)) == ("gpt-5-mini", 33.3)

    [disliked] = ask(conn, 9)
    assert disliked["agent_name"] == "travel"
    assert "travel looks" in disliked["body"]

    circles = ask(conn, 10)
    assert [(row["agent_name"], row["step_count"], row["tool_call_count"]) for row in circles] == [
        ("weather", 2, 2),
        ("travel", 1, 2),
    ]


def test_unknown_counts_and_times_are_no_error_and_no_zero(database_url: str) -> None:
    trace = "c" * 32
    spans = [
        chat(trace, 2, 0, 0, "m", 0, None, "nothing is known"),
        chat(trace, 3, 10, 10, "n", 100, 50, "half of it"),
        chat(trace, 4, 20, 20, "n", 100, None, "unknown"),
    ]
    unknown = replace(spans[0], attributes={"gen_ai.operation.name": "chat", "gen_ai.request.model": "m"})
    with written(database_url, [unknown]) as conn:
        assert [(row["total_tokens"], row["percent"]) for row in ask(conn, 2)] == [(0, None)]
        assert [row["llm_percent"] for row in ask(conn, 7)] == [None]
        assert ask(conn, 8) == []
    with written(database_url, spans[1:]) as conn:
        assert [float(row["percent"]) for row in ask(conn, 8)] == [50]


def test_runs_are_told_apart_and_a_call_that_two_saw_is_one(database_url: str) -> None:
    trace = "d" * 32
    agent = {"operation__name": "invoke_agent"}
    tool = {"operation__name": "execute_tool", "tool__name": "look"}
    spans = [
        span(trace, 1, None, 0, 900, "invoke_agent searcher", agent__name="searcher", **agent),
        chat(trace, 2, 0, 100, "m", 10, None, "look"),
        span(trace, 3, 1, 100, 400, "execute_tool look", failed=True, **tool),
        span(trace, 4, 3, 110, 390, "execute_tool look", failed=True, **tool),
        chat(trace, 5, 500, 600, "m", 10, None, "it failed"),
        span(trace, 6, None, 0, 900, "invoke_agent writer", failed=True, agent__name="writer", **agent),
        replace(chat(trace, 7, 0, 100, "m", 40, None, "write"), parent_span_id=f"{6:016x}"),
    ]
    with written(database_url, spans) as conn:
        assert ask(conn, 6) == []
        assert [(row["name"], row["calls"]) for row in ask(conn, 4)] == [("execute_tool look", 1)]
        assert [(row["calls"], row["failures"]) for row in ask(conn, 5)] == [(1, 1)]
        assert {row["agent_name"]: row["most"] for row in ask(conn, 3)} == {"searcher": 40, "writer": 50}
