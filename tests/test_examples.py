"""Each example runs, offline, and leaves the steps that it promises."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from step_exporter.store.query import StepStore
from step_exporter.store.records import RunRecord, StepRecord

EXAMPLES = Path(__file__).parent.parent / "examples"


def run(directory: Path, *command: str, **environment: str) -> str:
    env = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")} | environment
    done = subprocess.run(
        command, cwd=directory, env=env, capture_output=True, encoding="utf-8", timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def python(directory: Path, example: str) -> str:
    return run(directory, sys.executable, str(EXAMPLES / example))


def stored(directory: Path) -> tuple[list[RunRecord], list[StepRecord]]:
    """Runs and steps, oldest first."""
    with StepStore(directory / "steps.db") as store:
        return list(store.runs(order="oldest")), list(store.steps(order="oldest"))


def instrument() -> str:
    program = shutil.which("opentelemetry-instrument", path=Path(sys.executable).parent)
    assert program
    return program


def test_native(tmp_path: Path) -> None:
    assert python(tmp_path, "native.py") == "It is sunny.\n"
    [run_], steps = stored(tmp_path)
    assert (run_.id, run_.agent_id, run_.step_count) == ("run-weather", "agent-7", 2)
    assert [(step.id, step.stop_reason, step.tags) for step in steps] == [
        ("step-1", "tool_call", ["example", "weather"]),
        ("step-2", "end_turn", ["example", "weather"]),
    ]
    assert steps[0].model_handle == "openai/gpt-5-mini"
    assert steps[0].context_window_limit == 400_000
    assert steps[0].metrics is not None
    assert steps[0].metrics.tool_call_count == 1


def test_pydantic_ai(tmp_path: Path) -> None:
    assert python(tmp_path, "pydantic_ai_agent.py") == "Lisbon: sunny. Porto: sunny.\n"
    [run_], steps = stored(tmp_path)
    assert (run_.agent_name, run_.status, run_.step_count) == ("weather", "completed", 2)
    assert [step.model for step in steps] == ["scripted-1", "scripted-1"]
    assert [step.metrics and step.metrics.tool_call_count for step in steps] == [2, 0]


def test_openai_agents(tmp_path: Path) -> None:
    assert python(tmp_path, "openai_agents.py") == "It is sunny in Lisbon.\n"
    [run_], steps = stored(tmp_path)
    assert (run_.agent_name, run_.status) == ("weather", "completed")
    assert [(step.model, step.prompt_tokens) for step in steps] == [("scripted-1", 130), ("scripted-1", 150)]
    assert [step.metrics and step.metrics.tool_call_count for step in steps] == [1, 0]


def test_zero_code_by_environment(tmp_path: Path) -> None:
    run(
        tmp_path,
        instrument(),
        sys.executable,
        str(EXAMPLES / "zero_code" / "app.py"),
        OTEL_TRACES_EXPORTER="steps",
        OTEL_METRICS_EXPORTER="none",
        OTEL_LOGS_EXPORTER="none",
    )
    [run_], [step] = stored(tmp_path)
    assert (run_.agent_name, step.model, step.prompt_tokens) == ("weather", "gpt-5-mini", 120)


def test_zero_code_by_file(tmp_path: Path) -> None:
    config = str(EXAMPLES / "zero_code" / "otel.yaml")
    app = str(EXAMPLES / "zero_code" / "app.py")
    run(tmp_path, instrument(), sys.executable, app, OTEL_CONFIG_FILE=config)
    [run_], [step] = stored(tmp_path)
    assert (run_.agent_name, run_.service_name, step.model) == ("weather", "zero-code-example", "gpt-5-mini")


def test_query(tmp_path: Path) -> None:
    python(tmp_path, "native.py")
    lines = python(tmp_path, "query.py").splitlines()
    assert [line.split(":")[0] for line in lines] == [
        "sql",
        "sql",
        "models",
        "models",
        "store",
        "store",
        "trace",
        "async",
    ]
    assert lines[-1].split() == ["async:", "0", "failed", "steps"]
