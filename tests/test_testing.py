"""The pytest plugin, as a project that uses it sees it: its tests, and some that fail, in one run."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parent.parent / "examples" / "tested_agent"

FURTHER = """
import pytest
from agent import weather_agent


def test_errors(steps):
    with pytest.raises(LookupError):
        weather_agent("Atlantis", steps.provider)
    steps.assert_no_errors()


def test_other_tools(steps):
    weather_agent("Lisbon", steps.provider)
    assert steps.tools == ["get_rain"]


def test_nothing(steps):
    steps.assert_no_errors()
    assert (steps.total_tokens, steps.tools, steps.all(), steps.runs()) == (0, [], [], [])


def test_no_last_run(steps):
    steps.last_run()
"""


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> str:
    directory = tmp_path_factory.mktemp("project")
    for name in ("conftest.py", "agent.py", "test_agent.py"):
        shutil.copy(EXAMPLE / name, directory)
    (directory / "test_further.py").write_text(FURTHER)
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-rA"]
    done = subprocess.run(command, cwd=directory, capture_output=True, encoding="utf-8", timeout=120, check=False)
    return done.stdout


def report(output: str, test: str) -> str:
    """What is said of a failed test."""
    found = re.search(rf"^_+ {test} _+$(.*?)^(?:_{{5}}|=====)", output, re.MULTILINE | re.DOTALL)
    assert found, output
    return found[1]


def test_the_tests_of_the_example_project_pass(output: str) -> None:
    assert "PASSED test_agent.py::test_it_asks_twice_and_looks_once" in output
    assert "PASSED test_agent.py::test_it_says_so_where_there_is_no_such_city" in output


def test_assert_no_errors_fails_with_the_waterfall(output: str) -> None:
    said = report(output, "test_errors")
    assert "tool execute_tool get_weather: LookupError: no such city" in said
    assert "run run-" in said
    assert "invoke_agent weather" in said or "weather" in said
    assert "▒" in said or "█" in said


def test_any_failing_test_shows_the_waterfall(output: str) -> None:
    said = report(output, "test_other_tools")
    assert "- steps -" in said
    assert "get_weather" in said


def test_before_an_agent_ran_there_is_nothing(output: str) -> None:
    assert "PASSED test_further.py::test_nothing" in output
    assert "no agent ran" in report(output, "test_no_last_run")
