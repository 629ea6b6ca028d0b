"""A pytest plugin for tests of agents: the fixture ``steps`` records what the agent under test did.

    pytest_plugins = ["step_exporter.testing"]  # in the conftest.py of the project

    def test_the_weather_agent(steps):
        answer = weather_agent("Is it sunny in Lisbon?", tracer_provider=steps.provider)
        steps.assert_no_errors()
        assert steps.tools == ["get_weather"]
        assert steps.total_tokens < 2_000
        assert steps.last_run().step_count == 2

Each test has a tracer provider and a database of its own; hand ``steps.provider`` to the instrumentation. A failing
test that used the fixture shows the waterfall of its traces.
"""

from __future__ import annotations

import io
from collections.abc import Generator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from step_exporter.errors import NotFoundError, SchemaError

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

    from step_exporter.store.records import RunRecord, StepRecord, TraceRecord

_WIDTH = 110
_STEPS: pytest.StashKey[Steps] = pytest.StashKey()


class Steps:
    """What the agent of a test did so far. Every question reads the spans that have ended by then."""

    def __init__(self, directory: Path) -> None:
        # Imported here, as only tests that ask for the fixture pay for it.
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import SimpleSpanProcessor
        from opentelemetry.sdk.trace.sampling import ALWAYS_ON

        from step_exporter.exporter import StepSpanExporter
        from step_exporter.store.query import StepStore

        path = directory / "steps.db"
        self.provider: TracerProvider = TracerProvider(sampler=ALWAYS_ON)
        """Give it to the instrumentation of the agent under test."""
        self.provider.add_span_processor(SimpleSpanProcessor(StepSpanExporter(path, record="all")))
        self.store: StepStore = StepStore(path)
        """For every other question."""

    def all(self) -> list[StepRecord]:
        """The steps, oldest first."""
        return list(self._found())

    def runs(self) -> list[RunRecord]:
        """The runs, oldest first."""
        try:
            return list(self.store.runs(order="oldest", limit=1000))
        except (NotFoundError, SchemaError):  # no span has ended
            return []

    def last_run(self) -> RunRecord:
        """The run that began last and that no other run started. Fails the test if there is none."""
        top = [run for run in self.runs() if run.parent_run_id is None]
        if not top:
            pytest.fail("no agent ran: no span of an agent, an LLM request or a step has ended", pytrace=False)
        return top[-1]

    @property
    def total_tokens(self) -> int:
        """Prompt and completion tokens of all steps."""
        return sum(step.total_tokens for step in self._found())

    @property
    def tools(self) -> list[str]:
        """The names of the tools that were called, in the order of their starts; a nested span of a call is not
        another one."""
        found: list[tuple[int, str]] = []
        for trace in self._traces():
            of_tools = {span.span_id: span for span in trace.spans if span.role == "tool"}
            for span in of_tools.values():
                if span.parent_span_id not in of_tools:
                    name = span.attributes.get("gen_ai.tool.name") or span.attributes.get("tool.name")
                    found.append((span.start_ns or 0, str(name or span.name.removeprefix("execute_tool "))))
        return [name for _, name in sorted(found)]

    def trace(self) -> TraceRecord:
        """The only trace. Fails the test if there are none or several; ``store.trace`` reads those."""
        traces = self._traces()
        if len(traces) != 1:
            pytest.fail(f"there are {len(traces)} traces, not one", pytrace=False)
        return traces[0]

    def assert_no_errors(self) -> None:
        """Fail the test, showing the waterfall, if a step, a run or a tool failed."""
        __tracebackhide__ = True
        failed = [f"step {step.id}: {step.error_type or step.status}" for step in self._found() if _is_bad(step.status)]
        failed += [f"run {run.id}: {run.error_type or run.status}" for run in self.runs() if _is_bad(run.status)]
        for trace in self._traces():
            tools = [span for span in trace.spans if span.role == "tool" and span.status_code == "error"]
            failed += [f"tool {span.name}: {span.status_message or 'error'}" for span in tools]
        if failed:
            pytest.fail("\n".join([*failed, "", self.waterfall()]), pytrace=False)

    def waterfall(self) -> str:
        """Every trace as text: its runs, steps, LLM requests and tools. Needs the extra ``cli``."""
        try:
            from rich.console import Console

            from step_exporter.cli.waterfall import waterfall
        except ModuleNotFoundError:
            return "(pip install 'step_exporter[cli]' shows the waterfall here)"
        text = io.StringIO()
        console = Console(file=text, width=_WIDTH, highlight=False, soft_wrap=True, no_color=True)
        for trace in self._traces():
            for line in waterfall(trace, _WIDTH):
                console.print(line)
        return text.getvalue().rstrip() or "(no span has ended)"

    def close(self) -> None:
        """Shut the provider and the store down."""
        self.provider.shutdown()
        self.store.close()

    def _found(self) -> list[StepRecord]:
        try:
            return list(self.store.steps(order="oldest", limit=1000))
        except (NotFoundError, SchemaError):
            return []

    def _traces(self) -> list[TraceRecord]:
        ids = dict.fromkeys(row.trace_id for row in (*self.runs(), *self._found()))
        return [self.store.trace(trace_id) for trace_id in ids]


def _is_bad(status: str) -> bool:
    return status in ("failed", "cancelled", "abandoned")


@pytest.fixture
def steps(request: pytest.FixtureRequest, tmp_path: Path) -> Generator[Steps]:
    """What the agent of this test does: a tracer provider and a store of its own."""
    recorded = Steps(tmp_path)
    request.node.stash[_STEPS] = recorded
    yield recorded
    recorded.close()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[Any]) -> Generator[None, Any, Any]:
    """Show the waterfall of a failed test that used the fixture."""
    report = yield
    recorded = item.stash.get(_STEPS, None)
    if recorded is not None and report.when == "call" and report.failed:
        report.sections.append(("steps", recorded.waterfall()))
    return report
