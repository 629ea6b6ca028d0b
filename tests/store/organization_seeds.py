"""Traces of two organizations and of nobody. Every text says whose it is, so that a leak is told by looking for it."""

from __future__ import annotations

import json
from typing import Any

from query_seeds import DAY_NS, trace_id
from sqlalchemy import Engine

from step_exporter.facts import RawSpan
from step_exporter.store.ingest import Writer

ACME, GLOBEX, NOBODY = "acme", "globex", "nobody"
ACMES, GLOBEXES, SHARED, NOBODYS = (trace_id(number) for number in (1, 2, 3, 4))
"""Traces: acme's, globex's, one in which acme's agent calls one of globex by a tool, and one without organization."""
ACMES_SHARE = {f"{number:016x}" for number in (2, 3, 4, 5)}
"""The spans of the shared trace that are acme's."""


def span(trace: str, number: int, parent: int, whose: str, kind: str, **attributes: Any) -> RawSpan:
    named = {"gen_ai.operation.name": kind, "step.organization_id": whose} if kind != "other" else {}
    if whose == NOBODY:
        named.pop("step.organization_id", None)
    return RawSpan(
        trace,
        f"{number:016x}",
        f"{parent:016x}" if parent else None,
        f"{kind} of {whose}",
        start_ns=DAY_NS + number * 1000,
        end_ns=DAY_NS + 10**9 - number * 1000,
        attributes=named | attributes,
    )


def agent(trace: str, number: int, parent: int, whose: str) -> RawSpan:
    return span(trace, number, parent, whose, "invoke_agent", **{"gen_ai.agent.name": f"agent of {whose}"})


def chat(trace: str, number: int, parent: int, whose: str) -> RawSpan:
    said = [{"role": "user", "parts": [{"type": "text", "content": f"question of {whose}"}]}]
    answer = [{"role": "assistant", "parts": [{"type": "text", "content": f"answer of {whose}"}]}]
    return span(
        trace,
        number,
        parent,
        whose,
        "chat",
        **{
            "gen_ai.request.model": f"model of {whose}",
            "gen_ai.provider.name": f"provider of {whose}",
            "gen_ai.conversation.id": f"conversation of {whose}",
            "gen_ai.usage.input_tokens": 60,
            "gen_ai.usage.output_tokens": 40,
            "gen_ai.input.messages": json.dumps(said),
            "gen_ai.output.messages": json.dumps(answer),
        },
    )


def tool(trace: str, number: int, parent: int, whose: str) -> RawSpan:
    return span(trace, number, parent, whose, "execute_tool", **{"gen_ai.tool.name": f"tool of {whose}"})


def of_one(trace: str, whose: str) -> list[RawSpan]:
    """A plain span, an agent below it, with an LLM request and a tool."""
    return [
        span(trace, 1, 0, whose, "other"),
        agent(trace, 2, 1, whose),
        chat(trace, 3, 2, whose),
        tool(trace, 4, 2, whose),
    ]


def shared() -> list[RawSpan]:
    """Acme's agent (2 to 5) below a span of nobody; its tool calls an agent of globex (6 to 9)."""
    return [
        span(SHARED, 1, 0, NOBODY, "other"),
        agent(SHARED, 2, 1, ACME),
        chat(SHARED, 3, 2, ACME),
        tool(SHARED, 4, 2, ACME),
        span(SHARED, 5, 2, ACME, "other"),
        agent(SHARED, 6, 4, GLOBEX),
        chat(SHARED, 7, 6, GLOBEX),
        tool(SHARED, 8, 6, GLOBEX),
        span(SHARED, 9, 6, GLOBEX, "other"),
    ]


def fill(engine: Engine) -> None:
    """Write the four traces."""
    Writer(engine).write([*of_one(ACMES, ACME), *of_one(GLOBEXES, GLOBEX), *shared(), *of_one(NOBODYS, NOBODY)])
