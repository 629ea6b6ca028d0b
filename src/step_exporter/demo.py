"""A scripted agent, offline: real spans of the OpenTelemetry SDK through a real exporter, in one second.

The agent plans a trip. It calls two tools at once, one of which fails and is tried again; asks another agent,
as a tool; and streams its answer. Its spans follow OpenTelemetry's GenAI conventions, as those of an
instrumented framework do: https://opentelemetry.io/docs/specs/semconv/gen-ai/gen-ai-agent-spans/
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, NamedTuple

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from opentelemetry.trace import SpanKind, Tracer, format_trace_id

from step_exporter.exporter import StepSpanExporter

Message = dict[str, Any]
Tool = Callable[..., Awaitable[str]]


class Call(NamedTuple):
    """A tool call that the model asks for."""

    id: str
    tool: str
    arguments: Mapping[str, str]


class Turn(NamedTuple):
    """What the model answers to one request: tool calls, or the final text."""

    seconds: float
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0
    calls: tuple[Call, ...] = ()
    text: str = ""
    streamed: bool = False


class Agent(NamedTuple):
    """An agent whose model plays back a script."""

    name: str
    model: str
    instructions: str
    tools: Mapping[str, Tool]
    script: Sequence[Turn]


def run_demo(url: str) -> str:
    """Run the agent, store its steps in the database, and return the trace id (32 hexadecimal digits)."""
    provider = TracerProvider(sampler=ALWAYS_ON, resource=Resource.create({"service.name": "step-exporter-demo"}))
    provider.add_span_processor(BatchSpanProcessor(StepSpanExporter(url)))
    tracer = provider.get_tracer("step_exporter.demo")
    try:
        with tracer.start_as_current_span("POST /plan", kind=SpanKind.SERVER) as request:
            asyncio.run(invoke(tracer, trip_planner(tracer), "Plan a day in Lisbon, with a flight there."))
    finally:
        provider.shutdown()  # waits until everything is stored
    return format_trace_id(request.get_span_context().trace_id)


async def invoke(tracer: Tracer, agent: Agent, question: str) -> str:
    """The loop of every agent: ask the model, run the tools that it asked for, tell it what came back."""
    attributes = {
        "gen_ai.operation.name": "invoke_agent",
        "gen_ai.agent.name": agent.name,
        "gen_ai.conversation.id": "demo",
    }
    with tracer.start_as_current_span(f"invoke_agent {agent.name}", attributes=attributes):
        conversation = [_message("user", _text(question))]
        for turn in agent.script:
            conversation.append(await _chat(tracer, agent, conversation, turn))
            conversation += await asyncio.gather(*(_execute(tracer, agent, call) for call in turn.calls))
        return agent.script[-1].text


async def _chat(tracer: Tracer, agent: Agent, conversation: Sequence[Message], turn: Turn) -> Message:
    attributes = {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "openai",
        "gen_ai.request.model": agent.model,
        "server.address": "api.example.com",
        "gen_ai.system_instructions": json.dumps([_text(agent.instructions)]),
        "gen_ai.input.messages": json.dumps(conversation),
    }
    with tracer.start_as_current_span(f"chat {agent.model}", kind=SpanKind.CLIENT, attributes=attributes) as span:
        asked = time.perf_counter()
        await asyncio.sleep(turn.seconds / 3)
        if turn.streamed:
            span.set_attribute("gen_ai.response.time_to_first_chunk", time.perf_counter() - asked)
        await asyncio.sleep(turn.seconds * 2 / 3)
        calls = [
            {"type": "tool_call", "id": call.id, "name": call.tool, "arguments": call.arguments} for call in turn.calls
        ]
        reply = _message("assistant", *([_text(turn.text)] if turn.text else []), *calls)
        finish_reason = "tool_call" if calls else "stop"
        span.set_attributes(
            {
                "gen_ai.response.id": f"chatcmpl-{agent.name}-{len(conversation)}",
                "gen_ai.response.model": agent.model,
                "gen_ai.response.finish_reasons": [finish_reason],
                "gen_ai.usage.input_tokens": turn.prompt_tokens,
                "gen_ai.usage.output_tokens": turn.completion_tokens,
                "gen_ai.usage.cache_read.input_tokens": turn.cached_tokens,
                "gen_ai.output.messages": json.dumps([{**reply, "finish_reason": finish_reason}]),
            }
        )
        return reply


async def _execute(tracer: Tracer, agent: Agent, call: Call) -> Message:
    """Run a tool. What it raises is on its span, and goes to the model as its result."""
    attributes = {
        "gen_ai.operation.name": "execute_tool",
        "gen_ai.tool.name": call.tool,
        "gen_ai.tool.call.id": call.id,
        "gen_ai.tool.call.arguments": json.dumps(call.arguments),
    }
    try:
        with tracer.start_as_current_span(f"execute_tool {call.tool}", attributes=attributes) as span:
            result = await agent.tools[call.tool](**call.arguments)
            span.set_attribute("gen_ai.tool.call.result", result)
    except TimeoutError as error:
        result = f"error: {error}"
    return _message("tool", {"type": "tool_call_response", "id": call.id, "response": result})


def _message(role: str, *parts: Mapping[str, Any]) -> Message:
    return {"role": role, "parts": list(parts)}


def _text(content: str) -> Mapping[str, Any]:
    return {"type": "text", "content": content}


def trip_planner(tracer: Tracer) -> Agent:
    """The agent of the demo."""
    searches = 0

    async def get_weather(city: str) -> str:
        await asyncio.sleep(0.08)
        return f"{city}: sunny, 24 °C"

    async def search_flights(to: str) -> str:
        nonlocal searches
        searches += 1
        await asyncio.sleep(0.12)
        if searches == 1:
            raise TimeoutError("the airline did not answer")
        return f"TP 571 to {to}, 08:15, 89 EUR"

    async def ask_local_guide(question: str) -> str:
        return await invoke(tracer, local_guide(), question)

    flight = {"to": "Lisbon"}
    return Agent(
        name="trip-planner",
        model="gpt-5-mini",
        instructions="You plan trips. Ask the local guide what to see.",
        tools={"get_weather": get_weather, "search_flights": search_flights, "ask_local_guide": ask_local_guide},
        script=[
            Turn(
                seconds=0.15,
                prompt_tokens=212,
                completion_tokens=48,
                calls=(
                    Call("call_1", "get_weather", {"city": "Lisbon"}),
                    Call("call_2", "search_flights", flight),
                ),
            ),
            Turn(
                seconds=0.12,
                prompt_tokens=310,
                completion_tokens=52,
                cached_tokens=192,
                calls=(
                    Call("call_3", "search_flights", flight),
                    Call("call_4", "ask_local_guide", {"question": "What is on in Lisbon today?"}),
                ),
            ),
            Turn(
                seconds=0.24,
                prompt_tokens=455,
                completion_tokens=96,
                cached_tokens=288,
                text="Fly TP 571 at 08:15 (89 EUR). It will be sunny: walk through Alfama, and hear fado at nine.",
                streamed=True,
            ),
        ],
    )


def local_guide() -> Agent:
    """The agent that the other one calls as a tool."""

    async def get_events(city: str) -> str:
        await asyncio.sleep(0.05)
        return f"{city}: fado in Alfama, 21:00"

    return Agent(
        name="local-guide",
        model="gpt-5-nano",
        instructions="You know Lisbon.",
        tools={"get_events": get_events},
        script=[
            Turn(
                seconds=0.09,
                prompt_tokens=88,
                completion_tokens=21,
                calls=(Call("call_5", "get_events", {"city": "Lisbon"}),),
            ),
            Turn(seconds=0.09, prompt_tokens=124, completion_tokens=18, text="Fado in Alfama at nine."),
        ],
    )
