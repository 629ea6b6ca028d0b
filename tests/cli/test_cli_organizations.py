"""The command line for one organization, and the trail of what was changed."""

from __future__ import annotations

import getpass
from pathlib import Path

import pytest
from cli_seeds import Cli, span, text_message

from step_exporter.otlp import encode_json

pytestmark = pytest.mark.once

ACME, GLOBEX = "a" * 32, "b" * 32


@pytest.fixture
def both(cli: Cli, tmp_path: Path) -> Cli:
    """A steps.db with a trace of each organization."""
    spans = [
        span(
            trace,
            1,
            0,
            f"chat of {name}",
            0,
            100,
            attributes={
                "gen_ai.operation.name": "chat",
                "gen_ai.request.model": f"model-{name}",
                "gen_ai.input.messages": str([text_message("user", name)]),
                "step.organization_id": name,
            },
        )
        for trace, name in ((ACME, "acme"), (GLOBEX, "globex"))
    ]
    (tmp_path / "spans.json").write_bytes(encode_json(spans))
    assert cli("import", "spans.json").code == 0
    return cli


READING = (
    ["runs"],
    ["steps"],
    ["stats"],
    ["export"],
    ["verify"],
    ["tail", "--seconds", "0"],
    ["trace", ACME],
    ["step", "0000000000000001"],
    ["messages", ACME],
    ["diff", ACME, ACME],
    ["audit"],
)


@pytest.mark.parametrize("command", READING, ids=lambda command: command[0])
def test_reading_commands_show_one_organization(both: Cli, command: list[str]) -> None:
    found = both(*command, "--organization", "acme")
    assert found.code == 0, found
    assert "globex" not in found.out
    assert GLOBEX[:8] not in found.out


def test_the_organization_may_be_in_the_environment(both: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STEP_EXPORTER_ORGANIZATION", "acme")
    assert "no trace" in both("trace", GLOBEX).err
    assert both("feedback", "0000000000000001", "positive").code == 0  # globex has such a span too
    assert both("rebuild", "--json").json == {"traces": 1}
    assert both("prune", "--older-than", "0d", "--json").json["traces"] == 1
    monkeypatch.delenv("STEP_EXPORTER_ORGANIZATION")
    assert [run["trace_id"] for run in both("runs", "--json").json["items"]] == [GLOBEX]


def test_the_trail_of_changes_is_listed(both: Cli) -> None:
    assert "nothing was changed" in both("audit").out
    assert (
        both("feedback", "0000000000000001", "positive", "--trace", ACME, "--tag", "a\x1b[31m", "--by", "ann").code == 0
    )
    assert both("rebuild").code == 0
    shown = both("audit").out
    assert 'feedback: null → "positive"' in shown
    assert "\x1b" not in shown
    entries = both("audit", "--json").json["items"]
    assert [(entry["actor"], entry["action"]) for entry in entries] == [
        (getpass.getuser(), "rebuild"),
        ("ann", "feedback"),
    ]
    assert len(both("audit", "--actor", "ann", "--since", "1h", "--json").json["items"]) == 1
    assert both("audit", "--trace", GLOBEX, "--json").json["items"] == []
    page = both("audit", "--limit", "1", "--oldest")
    assert page.out.splitlines()[-1].startswith("more: add --after ")
    following = both("audit", "--limit", "1", "--oldest", "--json", "--after", page.out.split()[-1]).json
    assert [entry["action"] for entry in following["items"]] == ["rebuild"]
    assert both("audit", "--trace", "zz").code == 2


def test_the_policies_are_printed(cli: Cli) -> None:
    out = cli("row-level-security").out
    assert "CREATE POLICY step_exporter ON steps FOR SELECT" in out


def test_a_shared_trace_is_not_exported_as_a_whole(both: Cli, tmp_path: Path) -> None:
    shared = "c" * 32
    spans = [
        span(
            shared,
            number,
            0,
            "chat",
            0,
            100,
            attributes={
                "gen_ai.operation.name": "chat",
                "gen_ai.request.model": "m",
                "step.organization_id": name,
            },
        )
        for number, name in ((1, "acme"), (2, "globex"))
    ]
    (tmp_path / "shared.json").write_bytes(encode_json(spans))
    assert both("import", "shared.json").code == 0
    asked = both("export", "--format", "otlp", "-o", "out", "--trace", shared, "--organization", "acme")
    assert (asked.code, asked.out) == (2, "")
    assert "does not belong to organization 'acme' alone" in asked.err
    assert not (tmp_path / "out").exists()
    assert both("export", "--format", "otlp", "-o", "out", "--organization", "acme").out == "1 trace written to out\n"
