"""Tests of an agent: run them with pytest. The fixture ``steps`` comes from ``step_exporter.testing``."""

from __future__ import annotations

import pytest
from agent import weather_agent

from step_exporter.testing import Steps


def test_it_asks_twice_and_looks_once(steps: Steps) -> None:
    assert weather_agent("Lisbon", steps.provider) == "Lisbon: sunny"
    steps.assert_no_errors()
    assert steps.tools == ["get_weather"]
    assert steps.last_run().step_count == 2
    assert steps.total_tokens <= 250
    assert [run.agent_name for run in steps.trace().runs] == ["weather"]


def test_it_says_so_where_there_is_no_such_city(steps: Steps) -> None:
    with pytest.raises(LookupError):
        weather_agent("Atlantis", steps.provider)
    assert steps.last_run().status == "failed"
