"""The OpenAI Agents SDK with OpenInference's instrumentation.

    pip install openai-agents openinference-instrumentation-openai-agents
    python examples/openai_agents.py && step-exporter runs

The model is scripted, so that the example runs offline; leave ``model=`` out to use OpenAI's.
"""

import asyncio
import json
from typing import Any

from agents import Agent, ModelResponse, Runner, Usage, function_tool, set_trace_processors
from agents.models.interface import Model
from agents.tracing import generation_span
from openai.types.responses import ResponseFunctionToolCall, ResponseOutputMessage, ResponseOutputText
from openinference.instrumentation.openai_agents import OpenAIAgentsInstrumentor
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

from step_exporter import StepSpanExporter

provider = TracerProvider(resource=Resource.create({"service.name": "openai-agents-example"}))
provider.add_span_processor(BatchSpanProcessor(StepSpanExporter("sqlite:///steps.db")))
set_trace_processors([])  # send nothing to OpenAI
OpenAIAgentsInstrumentor().instrument(tracer_provider=provider)


@function_tool
def get_weather(city: str) -> str:
    """The weather in a city."""
    return f"{city}: sunny"


class Scripted(Model):
    """Asks for the weather once, then answers. The generation span is what the SDK's own models open."""

    async def get_response(
        self,
        system_instructions: str | None,
        input: Any,  # noqa: A002  so named in Model
        *args: Any,
        **kwargs: Any,
    ) -> ModelResponse:
        conversation = [{"role": "user", "content": input}] if isinstance(input, str) else input
        usage = {"input_tokens": 120 + 10 * len(conversation), "output_tokens": 12}
        output: Any
        if any(item.get("type") == "function_call_output" for item in conversation):
            answer = "It is sunny in Lisbon."
            text = ResponseOutputText(type="output_text", text=answer, annotations=[])
            output = ResponseOutputMessage(
                id="msg_1", type="message", role="assistant", status="completed", content=[text]
            )
            reply = {"role": "assistant", "content": answer}
        else:
            call = {"name": "get_weather", "arguments": json.dumps({"city": "Lisbon"})}
            output = ResponseFunctionToolCall(type="function_call", call_id="call_1", **call)
            reply = {"role": "assistant", "tool_calls": [{"id": "call_1", "type": "function", "function": call}]}
        with generation_span(input=conversation, output=[reply], model="scripted-1", usage=usage):
            total = sum(usage.values())
            return ModelResponse([output], Usage(requests=1, total_tokens=total, **usage), response_id=None)

    def stream_response(self, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError


agent = Agent(name="weather", instructions="Be brief.", tools=[get_weather], model=Scripted())
print(asyncio.run(Runner.run(agent, "How is the weather in Lisbon?")).final_output)

provider.shutdown()  # at the end of a program: waits until everything is stored
