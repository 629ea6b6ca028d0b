"""An agent of your own that says itself what its steps are.

Needs nothing but step_exporter. GenAI attributes name the model and its tokens; the constants in
step_exporter.attributes add what these lack.

    python examples/native.py && step-exporter runs
"""

from opentelemetry import trace
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

from step_exporter import StepSpanExporter
from step_exporter.attributes import (
    STEP_AGENT_ID,
    STEP_AGENT_NAME,
    STEP_CONTEXT_WINDOW_LIMIT,
    STEP_ID,
    STEP_MODEL_HANDLE,
    STEP_ORGANIZATION_NAME,
    STEP_ORIGIN,
    STEP_RUN_ID,
    STEP_STOP_REASON,
    STEP_TAGS,
)

provider = TracerProvider(resource=Resource.create({"service.name": "native-example"}))
provider.add_span_processor(BatchSpanProcessor(StepSpanExporter("sqlite:///steps.db")))
trace.set_tracer_provider(provider)
tracer = trace.get_tracer("my.agent")


def ask_model(question: str) -> str:
    """Stands for your client. Its span is what an instrumentation of that client would emit."""
    with tracer.start_as_current_span("chat gpt-5-mini") as span:
        span.set_attributes(
            {
                "gen_ai.operation.name": "chat",
                "gen_ai.provider.name": "openai",
                "gen_ai.request.model": "gpt-5-mini",
                "gen_ai.usage.input_tokens": 120 + len(question),
                "gen_ai.usage.output_tokens": 24,
            }
        )
        return "get_weather" if "weather" in question else "It is sunny."


def run_tool(name: str) -> str:
    attributes = {"gen_ai.operation.name": "execute_tool", "gen_ai.tool.name": name}
    with tracer.start_as_current_span(f"execute_tool {name}", attributes=attributes):
        return "sunny, 24 °C"


def step(number: int, question: str, tool: bool) -> str:
    """One turn of the loop: a model request, and the tool that it asked for."""
    attributes = {
        STEP_ID: f"step-{number}",
        STEP_RUN_ID: "run-weather",
        STEP_AGENT_ID: "agent-7",
        STEP_AGENT_NAME: "weather",
        STEP_ORGANIZATION_NAME: "Example Ltd",
        STEP_ORIGIN: "cli",
        STEP_MODEL_HANDLE: "openai/gpt-5-mini",
        STEP_CONTEXT_WINDOW_LIMIT: 400_000,
        STEP_TAGS: ["example", "weather"],
    }
    with tracer.start_as_current_span("agent_step", attributes=attributes) as span:
        answer = ask_model(question)
        span.set_attribute(STEP_STOP_REASON, "tool_call" if tool else "end_turn")
        return run_tool(answer) if tool else answer


with tracer.start_as_current_span("answer"):
    weather = step(1, "What is the weather?", tool=True)
    print(step(2, f"Say this: {weather}", tool=False))

provider.shutdown()  # at the end of a program: waits until everything is stored
