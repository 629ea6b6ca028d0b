"""OpenTelemetry JS from npm sends to the receiver. ``STEP_EXPORTER_NODE=1`` runs it: npm fetches 47 MB."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from viewer_server import Server

EXAMPLE = Path(__file__).parents[2] / "examples" / "node"

pytestmark = pytest.mark.skipif(
    not os.environ.get("STEP_EXPORTER_NODE") or shutil.which("npm") is None, reason="needs STEP_EXPORTER_NODE and npm"
)


@pytest.mark.parametrize("exporter", ["exporter-trace-otlp-http", "exporter-trace-otlp-proto"])
def test_the_example_leaves_its_step(server: Server, tmp_path: Path, exporter: str) -> None:
    for name in ("package.json", "agent.mjs"):
        text = (EXAMPLE / name).read_text().replace("exporter-trace-otlp-http", exporter)
        (tmp_path / name).write_text(text)
    subprocess.run(["npm", "install", "--no-audit", "--no-fund"], cwd=tmp_path, check=True)
    environment = {**os.environ, "OTEL_EXPORTER_OTLP_ENDPOINT": server.base}
    done = subprocess.run(
        ["node", "agent.mjs"], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    with server.store() as store:
        (step,) = store.steps()
        (run,) = store.runs()
    assert (step.trace_id, step.model, step.prompt_tokens) == (done.stdout.strip(), "gpt-5-mini", 120)
    assert (run.agent_name, run.status) == ("weather", "completed")
