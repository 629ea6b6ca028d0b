"""A weather agent, its model scripted. Its spans follow OpenTelemetry's GenAI conventions."""

from __future__ import annotations

from opentelemetry.trace import TracerProvider


def get_weather(city: str) -> str:
    if city == "Atlantis":
        raise LookupError("no such city")
    return f"{city}: sunny"


def weather_agent(city: str, tracer_provider: TracerProvider) -> str:
    tracer = tracer_provider.get_tracer("weather")
    agent = {"gen_ai.operation.name": "invoke_agent", "gen_ai.agent.name": "weather"}
    with tracer.start_as_current_span("invoke_agent weather", attributes=agent):
        _ask(tracer_provider, prompt_tokens=80, completion_tokens=12)
        tool = {"gen_ai.operation.name": "execute_tool", "gen_ai.tool.name": "get_weather"}
        with tracer.start_as_current_span("execute_tool get_weather", attributes=tool):
            found = get_weather(city)
        _ask(tracer_provider, prompt_tokens=110, completion_tokens=9)
        return found


def _ask(tracer_provider: TracerProvider, prompt_tokens: int, completion_tokens: int) -> None:
    attributes = {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "openai",
        "gen_ai.request.model": "gpt-5-mini",
        "gen_ai.usage.input_tokens": prompt_tokens,
        "gen_ai.usage.output_tokens": completion_tokens,
    }
    tracer_provider.get_tracer("weather").start_span("chat gpt-5-mini", attributes=attributes).end()
