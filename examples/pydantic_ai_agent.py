"""pydantic-ai with its own instrumentation: two lines of setup, and every run is steps in SQL.

    pip install pydantic-ai-slim
    python examples/pydantic_ai_agent.py && step-exporter runs

The model is scripted, so that the example runs offline; put any other in its place.
"""

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from pydantic_ai import Agent
from pydantic_ai.messages import ModelMessage, ModelResponse, TextPart, ToolCallPart, ToolReturnPart
from pydantic_ai.models.function import AgentInfo, FunctionModel
from pydantic_ai.models.instrumented import InstrumentationSettings

from step_exporter import StepSpanExporter

provider = TracerProvider(resource=Resource.create({"service.name": "pydantic-ai-example"}))
provider.add_span_processor(BatchSpanProcessor(StepSpanExporter("sqlite:///steps.db")))
Agent.instrument_all(InstrumentationSettings(tracer_provider=provider))


def scripted(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
    """Ask for the weather in two cities at once, then answer."""
    results = [part for part in messages[-1].parts if isinstance(part, ToolReturnPart)]
    if results:
        return ModelResponse([TextPart(" ".join(str(result.content) for result in results))])
    return ModelResponse([ToolCallPart("get_weather", {"city": city}) for city in ("Lisbon", "Porto")])


agent = Agent(FunctionModel(scripted, model_name="scripted-1"), name="weather")


@agent.tool_plain
def get_weather(city: str) -> str:
    return f"{city}: sunny."


print(agent.run_sync("How is the weather in Lisbon and Porto?").output)

provider.shutdown()  # at the end of a program: waits until everything is stored
