"""OTLP/JSON documents, small."""

from __future__ import annotations

from typing import Any

SECOND = 10**9
START = 1_700_000_000 * SECOND


def attributes(values: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"key": key, "value": _value(value)} for key, value in values.items()]


def _value(value: Any) -> dict[str, Any]:
    return {"intValue": str(value)} if isinstance(value, int) else {"stringValue": value}


def span(
    trace: int, number: int, parent: int | None, name: str, at: float, seconds: float, **more: Any
) -> dict[str, Any]:
    start = START + int(at * SECOND)
    made: dict[str, Any] = {
        "traceId": f"{trace:032x}",
        "spanId": f"{number:016x}",
        "name": name,
        "startTimeUnixNano": str(start),
        "endTimeUnixNano": str(start + int(seconds * SECOND)),
        "attributes": attributes({key.replace("__", "."): value for key, value in more.pop("has", {}).items()}),
        **more,
    }
    return made if parent is None else {**made, "parentSpanId": f"{parent:016x}"}


def document(*spans: dict[str, Any], service: str = "shop") -> dict[str, Any]:
    resource = {"attributes": attributes({"service.name": service})}
    return {"resourceSpans": [{"resource": resource, "scopeSpans": [{"spans": list(spans)}]}]}


def agent_run(trace: int = 0xA1, *, agent: str = "helper", model: str = "gpt-5", error: str = "") -> dict[str, Any]:
    """An agent that asks a model, calls a tool and asks again."""
    chat = {"gen_ai.operation.name": "chat", "gen_ai.request.model": model, "gen_ai.usage.input_tokens": 100}
    chat |= {"gen_ai.usage.output_tokens": 20}
    said = '[{"role":"user","parts":[{"type":"text","content":"What is it?"}]}]'
    failed = {"status": {"code": 2, "message": error}} if error else {}
    wrong = {"error.type": "RateLimitError"} if error else {}
    return document(
        span(
            trace, 1, None, f"invoke_agent {agent}", 0, 4,
            has={"gen_ai.operation.name": "invoke_agent", "gen_ai.agent.name": agent} | wrong, **failed,
        ),
        span(trace, 2, 1, f"chat {model}", 0, 1, has={**chat, "gen_ai.input.messages": said}),
        span(trace, 3, 1, "execute_tool look", 1, 1,
             has={"gen_ai.operation.name": "execute_tool", "gen_ai.tool.name": "look"}),
        span(trace, 4, 1, f"chat {model}", 2, 2, has={**chat, **wrong}, **failed),
    )  # fmt: skip
