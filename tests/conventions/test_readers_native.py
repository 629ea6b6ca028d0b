"""The package's own attributes, and Letta's steps."""

from step_exporter import attributes as names
from step_exporter.conventions import read
from step_exporter.facts import Event, RawSpan, Resource, Role


def span(name, attributes=None, **fields):
    fields.setdefault("start_ns", 1_000)
    fields.setdefault("end_ns", 9_000)
    return RawSpan("a" * 32, "b" * 16, None, name, attributes=attributes or {}, **fields)


def test_every_native_attribute_is_read():
    facts = read(
        span(
            "my step",
            {
                names.STEP_ID: "step-1",
                names.STEP_RUN_ID: "run-1",
                names.STEP_ORIGIN: "api",
                names.STEP_ORGANIZATION_ID: "org-1",
                names.STEP_ORGANIZATION_NAME: "Org",
                names.STEP_PROJECT_ID: "project-1",
                names.STEP_AGENT_ID: "agent-1",
                names.STEP_AGENT_NAME: "weather",
                names.STEP_PROVIDER_ID: "provider-1",
                names.STEP_PROVIDER_CATEGORY: "byok",
                names.STEP_MODEL_HANDLE: "openai/gpt-4o",
                names.STEP_MODEL_ENDPOINT: "https://api.example",
                names.STEP_CONTEXT_WINDOW_LIMIT: 128_000,
                names.STEP_STOP_REASON: "end_turn",
                names.STEP_TAGS: ("a", "b"),
                names.STEP_TRANSACTION_ID: "tid-1",
                names.STEP_FEEDBACK: "positive",
                names.STEP_TEMPLATE_ID: "template-1",
                names.STEP_BASE_TEMPLATE_ID: "base-1",
            },
        )
    )
    assert (facts.role, facts.convention) == (Role.STEP, "native")
    assert (facts.step_id, facts.run_id, facts.origin) == ("step-1", "run-1", "api")
    assert (facts.organization_id, facts.organization_name, facts.project_id) == ("org-1", "Org", "project-1")
    assert (facts.agent_id, facts.agent_name) == ("agent-1", "weather")
    assert (facts.provider_id, facts.provider_category) == ("provider-1", "byok")
    assert (facts.model_handle, facts.model_endpoint) == ("openai/gpt-4o", "https://api.example")
    assert (facts.context_window_limit, facts.stop_reason) == (128_000, "end_turn")
    assert (facts.tags, facts.transaction_id, facts.feedback) == (("a", "b"), "tid-1", "positive")
    assert (facts.template_id, facts.base_template_id) == ("template-1", "base-1")


def test_baggage_on_an_llm_span_leaves_its_role_and_beats_its_names():
    attributes = {names.STEP_ID: "step-1", names.STEP_AGENT_NAME: "mine", "gen_ai.operation.name": "chat"}
    facts = read(span("chat", attributes | {"gen_ai.agent.name": "theirs"}))
    assert (facts.role, facts.step_id, facts.agent_name) == (Role.LLM, "step-1", "mine")


def test_organization_and_project_come_from_the_resource_too():
    resource = Resource({names.STEP_ORGANIZATION_ID: "org-1", names.STEP_PROJECT_ID: "p-1"})
    facts = read(span("s", {names.STEP_ID: "s-1", names.STEP_PROJECT_ID: "p-2"}, resource=resource))
    assert (facts.organization_id, facts.project_id) == ("org-1", "p-2")


def test_a_context_window_that_is_no_number_is_flagged():
    facts = read(span("s", {names.STEP_ID: "s-1", names.STEP_CONTEXT_WINDOW_LIMIT: "a lot"}))
    assert (facts.context_window_limit, facts.flags) == (None, ("bad_number",))


def test_a_letta_step_tells_its_times_by_events():
    events = (
        Event("request_start_to_provider_request_start_ns", 2_000, {"duration_ns": 1}),
        Event("llm_request_ms", 5_000, {"duration_ms": 3}),
        Event("tool_execution_started", 5_100),
        Event("tool_execution_completed", 6_100, {"tool_name": "search", "duration_ms": 1, "success": True}),
        Event("tool_execution_started", 6_000),
        Event("tool_execution_completed", 7_000, {"tool_name": "search", "duration_ms": 1, "success": True}),
        Event("step_ms", 8_000, {"duration_ms": 7}),
    )
    facts = read(span("agent_step", {"step_id": "step-7", "run_id": "run-7"}, events=events))
    assert (facts.role, facts.step_id, facts.run_id) == (Role.STEP, "step-7", "run-7")
    assert (facts.llm_start_ns, facts.llm_ns) == (2_000, 3_000)
    assert (facts.tool_ns, facts.tool_call_count) == (1_900, 2)


def test_a_step_with_an_id_by_our_own_attribute_is_not_lettas_whatever_its_name():
    facts = read(span("agent_step", {"step.id": "step-7"}))
    assert (facts.role, facts.convention, facts.step_id) == (Role.STEP, "native", "step-7")


def test_step_ids_of_other_tools_are_not_ours():
    facts = read(span("dagster.op", {"step_id": "op-1", "run_id": "dagster-1"}))
    assert (facts.role, facts.step_id, facts.run_id) == (Role.OTHER, None, None)
