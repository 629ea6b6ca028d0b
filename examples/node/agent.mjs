// An agent with one LLM request and one tool, offline, in OpenTelemetry's GenAI conventions. Spans go by OTLP/JSON to
// OTEL_EXPORTER_OTLP_ENDPOINT, else to http://localhost:4318.
import { trace } from "@opentelemetry/api";
import { OTLPTraceExporter } from "@opentelemetry/exporter-trace-otlp-http";
import { BatchSpanProcessor, NodeTracerProvider } from "@opentelemetry/sdk-trace-node";

const provider = new NodeTracerProvider({ spanProcessors: [new BatchSpanProcessor(new OTLPTraceExporter())] });
provider.register();
const tracer = trace.getTracer("example");
const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

async function within(name, attributes, work) {
  return tracer.startActiveSpan(name, { attributes }, async (span) => {
    try {
      return await work(span);
    } finally {
      span.end();
    }
  });
}

await within("invoke_agent weather", { "gen_ai.operation.name": "invoke_agent", "gen_ai.agent.name": "weather" }, async (run) => {
  await within("chat gpt-5-mini", { "gen_ai.operation.name": "chat", "gen_ai.provider.name": "openai", "gen_ai.request.model": "gpt-5-mini" }, async (span) => {
    await sleep(50);
    span.setAttributes({ "gen_ai.usage.input_tokens": 120, "gen_ai.usage.output_tokens": 16 });
  });
  await within("execute_tool get_weather", { "gen_ai.operation.name": "execute_tool", "gen_ai.tool.name": "get_weather" }, () => sleep(20));
  console.log(run.spanContext().traceId);
});
await provider.shutdown();
