"""An app that knows OpenTelemetry's API and nothing else: not a line about where its spans go."""

from opentelemetry import trace

tracer = trace.get_tracer("my.app")

with tracer.start_as_current_span(
    "invoke_agent weather", attributes={"gen_ai.operation.name": "invoke_agent", "gen_ai.agent.name": "weather"}
):
    with tracer.start_as_current_span("chat gpt-5-mini") as span:
        span.set_attributes(
            {
                "gen_ai.operation.name": "chat",
                "gen_ai.provider.name": "openai",
                "gen_ai.request.model": "gpt-5-mini",
                "gen_ai.response.finish_reasons": ["stop"],
                "gen_ai.usage.input_tokens": 120,
                "gen_ai.usage.output_tokens": 24,
            }
        )
    print("It is sunny.")
