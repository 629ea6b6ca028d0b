"""Finished spans of agents, made by the real SDK before anything is timed.

``none``, ``1k`` and ``20k`` are traces of ten spans (one agent, five LLM requests, four tools: five steps) without
content, and with an input and an output message of 1 or 20 KiB each on every LLM span. ``loop`` is an agent of 20
steps (40 spans) whose every LLM span carries the whole conversation so far, 1 KiB longer than at the step before.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

import orjson
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.trace import SpanKind, Tracer, set_span_in_context

WORKLOADS = ("none", "1k", "20k", "loop")
BATCH = 512

_KIB = 1024
_EPOCH_NS = 1_790_000_000_000_000_000
_WORDS = ["".join(random.Random(seed).choices("abcdefghijklmnopqrstuvwxyz", k=2 + seed % 9)) for seed in range(1000)]
_WORDS += [f'"{word}"' for word in _WORDS[:20]] + [f"{word}.\n" for word in _WORDS[:60]]


class _Collect(SpanProcessor):
    """Finished spans, in the order in which they end, as ``BatchSpanProcessor`` would hand them on."""

    def __init__(self) -> None:
        self.spans: list[ReadableSpan] = []

    def on_end(self, span: ReadableSpan) -> None:
        self.spans.append(span)


class SpanMaker:
    """Makes traces with a tracer of the SDK; ``spans`` is what has ended so far."""

    def __init__(self, seed: int = 1) -> None:
        self._collect = _Collect()
        self.provider = TracerProvider(resource=Resource.create({"service.name": "benchmark"}), shutdown_on_exit=False)
        self.provider.add_span_processor(self._collect)
        self._tracer: Tracer = self.provider.get_tracer("benchmark", "1.0")
        self._random = random.Random(seed)
        self._now = _EPOCH_NS

    @property
    def spans(self) -> list[ReadableSpan]:
        return self._collect.spans

    def take(self) -> list[ReadableSpan]:
        """What has ended since the last call."""
        taken, self._collect.spans = self._collect.spans, []
        return taken

    def text(self, size: int) -> str:
        """So many characters of new words, in lines, some of them quoted."""
        return " ".join(self._random.choices(_WORDS, k=size // 5 + 1))[:size].ljust(size, ".")

    def trace(self, steps: int, message_bytes: int = 0, *, conversation: bool = False) -> None:
        """One agent of so many steps, tools between them: ``2 * steps`` spans.

        Each LLM span carries a new message of ``message_bytes`` (none at 0), with ``conversation`` all before it too.
        """
        conversation_id = f"conv-{self._random.getrandbits(64):016x}"
        self._now += 10_000_000_000
        agent = self._tracer.start_span(
            "invoke_agent researcher",
            kind=SpanKind.INTERNAL,
            start_time=self._now,
            attributes={
                "gen_ai.operation.name": "invoke_agent",
                "gen_ai.provider.name": "openai",
                "gen_ai.agent.name": "researcher",
                "gen_ai.agent.id": "agent-7",
                "gen_ai.conversation.id": conversation_id,
                "gen_ai.request.model": "gpt-4.1-mini",
            },
        )
        below = set_span_in_context(agent)
        messages: list[object] = []
        at = self._now
        for step in range(steps):
            call_id = f"call_{self._random.getrandbits(64):016x}"
            last = step == steps - 1
            question = {"role": "user", "parts": [{"type": "text", "content": self.text(message_bytes)}]}
            query = {"query": self.text(24)}
            answer_parts: list[object] = []
            if last or not conversation:
                answer_parts.append({"type": "text", "content": self.text(message_bytes)})
            if not last:
                answer_parts.append({"type": "tool_call", "id": call_id, "name": "search", "arguments": query})
            answer = {"role": "assistant", "parts": answer_parts}
            if step == 0 or not conversation:
                messages = [*messages, question] if conversation else [question]
            attributes: dict[str, str | int | float | list[str]] = {
                "gen_ai.operation.name": "chat",
                "gen_ai.provider.name": "openai",
                "gen_ai.request.model": "gpt-4.1-mini",
                "gen_ai.conversation.id": conversation_id,
                "gen_ai.request.temperature": 0.2,
                "server.address": "api.openai.com",
                "server.port": 443,
            }
            if message_bytes:
                attributes["gen_ai.input.messages"] = orjson.dumps(messages).decode()
            span = self._tracer.start_span(
                "chat gpt-4.1-mini", below, SpanKind.CLIENT, attributes, start_time=at + 1_000_000
            )
            span.set_attribute("gen_ai.response.model", "gpt-4.1-mini-2025-04-14")
            span.set_attribute("gen_ai.response.id", f"chatcmpl-{self._random.getrandbits(96):024x}")
            span.set_attribute("gen_ai.response.finish_reasons", ["stop" if last else "tool_calls"])
            span.set_attribute("gen_ai.usage.input_tokens", 800 + step)
            span.set_attribute("gen_ai.usage.output_tokens", 120 + step)
            if message_bytes:
                reply = {**answer, "finish_reason": "stop" if last else "tool_call"}
                span.set_attribute("gen_ai.output.messages", orjson.dumps([reply]).decode())
            at += 800_000_000 + self._random.randrange(10_000_000)
            span.end(at)
            if last:
                break
            result = self.text(message_bytes if conversation else 64)
            tool_attributes: dict[str, str] = {
                "gen_ai.operation.name": "execute_tool",
                "gen_ai.tool.name": "search",
                "gen_ai.tool.type": "function",
                "gen_ai.tool.call.id": call_id,
            }
            if message_bytes:
                tool_attributes["gen_ai.tool.call.arguments"] = orjson.dumps(query).decode()
                tool_attributes["gen_ai.tool.call.result"] = result
            tool = self._tracer.start_span(
                "execute_tool search", below, SpanKind.INTERNAL, tool_attributes, start_time=at + 2_000_000
            )
            at += 150_000_000 + self._random.randrange(10_000_000)
            tool.end(at)
            if conversation:
                response = {"type": "tool_call_response", "id": call_id, "response": result}
                messages = [*messages, answer, {"role": "tool", "parts": [response]}]
        agent.end(at + 3_000_000)
        self._now = at


def spans(workload: str, count: int, seed: int = 1) -> list[ReadableSpan]:
    """``count`` spans of a workload."""
    maker = SpanMaker(seed)
    while len(maker.spans) < count:
        if workload == "loop":
            maker.trace(20, _KIB, conversation=True)
        else:
            maker.trace(5, {"none": 0, "1k": _KIB, "20k": 20 * _KIB}[workload])
    return maker.spans[:count]


def batches(spans: list[ReadableSpan], size: int = BATCH) -> Iterator[list[ReadableSpan]]:
    """The spans, so many at a time."""
    for at in range(0, len(spans), size):
        yield spans[at : at + size]
