"""Two traces for the command line to show, and what a command leaves behind."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, NamedTuple

from step_exporter.facts import RawSpan, Resource

WEATHER = "0af7651916cd43dd8448eb211c80319c"
TRAVEL = "1bf7651916cd43dd8448eb211c80319c"
START = 1_795_368_468_000_000_000
MS = 10**6


class Result(NamedTuple):
    """What a command left behind."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Cli = Callable[..., Result]


def text_message(role: str, text: str) -> dict[str, Any]:
    return {"role": role, "parts": [{"type": "text", "content": text}]}


def span(trace_id: str, number: int, parent: int, name: str, start_ms: int, end_ms: int, **values: Any) -> RawSpan:
    return RawSpan(
        trace_id,
        f"{number:016x}",
        f"{parent:016x}" if parent else None,
        name,
        start_ns=START + start_ms * MS,
        end_ns=START + end_ms * MS,
        resource=Resource({"service.name": "weather-service"}),
        **values,
    )


def llm(
    model: str, asked: list[dict[str, Any]], answer: dict[str, Any], prompt: int, completion: int
) -> dict[str, Any]:
    return {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "openai",
        "gen_ai.request.model": model,
        "gen_ai.usage.input_tokens": prompt,
        "gen_ai.usage.output_tokens": completion,
        "gen_ai.input.messages": json.dumps(asked),
        "gen_ai.output.messages": json.dumps([answer]),
    }


def agent(name: str) -> dict[str, Any]:
    return {
        "gen_ai.operation.name": "invoke_agent",
        "gen_ai.agent.name": name,
        "gen_ai.conversation.id": f"talk-{name}",
    }


def weather_run() -> list[RawSpan]:
    """Two steps: a tool that fails and whose error goes back to the model, then the answer."""
    question = text_message("user", "Is it \x1b[31mred\x1b[0m in Lisbon?")
    call = {"role": "assistant", "parts": [{"type": "tool_call", "id": "c1", "name": "look", "arguments": {"at": 1}}]}
    result = {"role": "tool", "parts": [{"type": "tool_call_response", "id": "c1", "response": "no answer"}]}
    answer = text_message("assistant", "I cannot tell.")
    tool = {"gen_ai.operation.name": "execute_tool", "gen_ai.tool.name": "look", "gen_ai.tool.call.id": "c1"}
    first = llm("gpt-5-mini", [question], call, 101, 37)
    second = llm("gpt-5-mini", [question, call, result], answer, 201, 47)
    failure = {"status_code": "error", "status_message": "TimeoutError: no answer"}
    return [
        span(WEATHER, 2, 1, "chat gpt-5-mini", 0, 100, attributes=first),
        span(WEATHER, 3, 1, "execute_tool look", 100, 200, attributes=tool, **failure),
        span(WEATHER, 4, 1, "chat gpt-5-mini", 200, 400, attributes=second),
        span(WEATHER, 1, 0, "invoke_agent weather", 0, 400, attributes=agent("weather")),
    ]


def travel_run() -> list[RawSpan]:
    """One step, an hour later, whose request fails."""
    attributes = llm("claude-5", [text_message("user", "Plan a day.")], {}, 0, 0)
    attributes |= {"gen_ai.provider.name": "anthropic", "error.type": "RateLimitError"}
    failure = {"status_code": "error", "status_message": "slow down"}
    hour = 3_600_000
    return [
        span(TRAVEL, 2, 1, "chat claude-5", hour, hour + 50, attributes=attributes, **failure),
        span(
            TRAVEL,
            1,
            0,
            "invoke_agent travel",
            hour,
            hour + 60,
            attributes=agent("travel") | {"error.type": "RateLimitError"},
            **failure,
        ),
    ]
