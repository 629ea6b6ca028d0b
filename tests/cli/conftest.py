"""The command line called in this process, and a database that it has imported."""

from __future__ import annotations

from pathlib import Path

import pytest
from cli_seeds import Cli, Result, travel_run, weather_run

from step_exporter.cli import main
from step_exporter.otlp import encode_json


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Cli:
    """Run a command as a shell would, in a directory of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("OTEL_EXPORTER_STEPS_URL", raising=False)
    monkeypatch.delenv("COLUMNS", raising=False)

    def run(*arguments: str) -> Result:
        capsys.readouterr()
        code = main(arguments)
        return Result(code, *capsys.readouterr())

    return run


@pytest.fixture
def imported(cli: Cli, tmp_path: Path) -> Cli:
    """The command line in a directory whose steps.db holds two traces."""
    (tmp_path / "spans.json").write_bytes(encode_json(weather_run() + travel_run()))
    result = cli("import", "spans.json")
    assert result.code == 0, result
    return cli
