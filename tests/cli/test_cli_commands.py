"""What each command shows, in tables and in JSON."""

from __future__ import annotations

import contextlib
import json
import re
import sqlite3
from pathlib import Path

import pytest
from cli_seeds import MS, START, TRAVEL, WEATHER, Cli, Result
from sqlalchemy import make_url


class TestRuns:
    def test_newest_first(self, imported: Cli) -> None:
        items = imported("runs", "--json").json["items"]
        assert [(run["agent_name"], run["status"], run["trace_id"]) for run in items] == [
            ("travel", "failed", TRAVEL),
            ("weather", "completed", WEATHER),
        ]
        assert items[1]["total_duration_ns"] == 400 * MS
        assert items[1]["start_ns"] == START

    def test_a_table(self, imported: Cli) -> None:
        head, travel, weather = [" ".join(line.split()) for line in imported("runs").out.splitlines()]
        assert head == "started agent status steps tokens time trace error"
        assert travel.endswith(f"travel failed 1 0 → 0 60.0 ms {TRAVEL[:8]} RateLimitError")
        assert weather.endswith(f"weather completed 2 302 → 84 400 ms {WEATHER[:8]}")

    @pytest.mark.parametrize(
        ("options", "agents"),
        [
            (["--agent", "weather"], ["weather"]),
            (["--status", "failed"], ["travel"]),
            (["--conversation", "talk-weather"], ["weather"]),
            (["--service", "another"], []),
            (["--top"], ["travel", "weather"]),
            (["--oldest"], ["weather", "travel"]),
            (["--limit", "1"], ["travel"]),
            (["--since", "2026-11-22T18:00:00+00:00"], ["travel"]),
            (["--until", "2026-11-22T18:00:00+00:00"], ["weather"]),
        ],
    )
    def test_filters(self, imported: Cli, options: list[str], agents: list[str]) -> None:
        assert [run["agent_name"] for run in imported("runs", "--json", *options).json["items"]] == agents

    def test_the_next_page(self, imported: Cli) -> None:
        first = imported("runs", "-n", "1")
        cursor = first.out.splitlines()[-1].removeprefix("more: add --after ")
        second = imported("runs", "-n", "1", "--after", cursor)
        assert "weather" in second.out
        assert "--after" not in second.out

    def test_none(self, imported: Cli) -> None:
        assert imported("runs", "--agent", "nobody") == (0, "no runs\n", "")


class TestSteps:
    def test_newest_first(self, imported: Cli) -> None:
        items = imported("steps", "--json").json["items"]
        assert [(s["agent_name"], s["model"], s["prompt_tokens"]) for s in items] == [
            ("travel", "claude-5", 0),
            ("weather", "gpt-5-mini", 201),
            ("weather", "gpt-5-mini", 101),
        ]
        assert items[2]["metrics"]["tool_execution_ns"] == 100 * MS

    @pytest.mark.parametrize(
        ("options", "count"),
        [
            (["--trace", WEATHER[:6].upper()], 2),
            (["--model", "claude-5"], 1),
            (["--provider", "openai"], 2),
            (["--status", "failed"], 1),
            (["--error", "RateLimitError"], 1),
            (["--conversation", "talk-weather"], 2),
            (["--tag", "nothing"], 0),
            (["--feedback", "negative"], 0),
        ],
    )
    def test_filters(self, imported: Cli, options: list[str], count: int) -> None:
        assert len(imported("steps", "--json", *options).json["items"]) == count

    def test_a_table_whose_ids_name_the_steps(self, imported: Cli) -> None:
        row = imported("steps", "--agent", "weather", "-n", "1").out.splitlines()[1].split()
        shown = imported("step", row[2], "--trace", row[-1]).out
        assert "gpt-5-mini" in shown


class TestTrace:
    def test_a_waterfall(self, imported: Cli) -> None:
        result = imported("trace", WEATHER[:4])
        assert result.code == 0
        labels = [re.split(r"(?<=\w)  ", line)[0].rstrip() for line in result.out.splitlines()]
        assert labels[0] == f"trace {WEATHER}"
        assert labels[3:11] == [
            "weather",
            "├─ step 1",
            "│  ├─ chat gpt-5-mini",
            "│  └─ execute_tool look",
            "│        ✗ TimeoutError: no answer",
            "└─ step 2",
            "   └─ chat gpt-5-mini",
            "",
        ]

    def test_json(self, imported: Cli) -> None:
        trace = imported("trace", WEATHER, "--json").json
        assert trace["trace_id"] == WEATHER
        assert [len(trace[part]) for part in ("runs", "steps", "spans")] == [1, 2, 4]

    def test_no_colours_where_there_is_no_terminal(self, imported: Cli) -> None:
        for command in (
            ["trace", WEATHER],
            ["runs"],
            ["steps"],
            ["messages", WEATHER],
            ["messages", WEATHER, "--json"],
        ):
            assert "\x1b" not in imported(*command).out


class TestStepAndMessages:
    def test_a_run_without_messages_is_there_all_the_same(self, imported: Cli) -> None:
        run_id = imported("runs", "--json", "--agent", "weather").json["items"][0]["id"]
        assert imported("messages", TRAVEL, "--run", run_id).code == 1
        _execute("DELETE FROM messages")
        assert imported("messages", WEATHER, "--run", run_id).code == 0

    def test_a_step_in_full(self, imported: Cli) -> None:
        step_id = imported("steps", "--json", "--status", "failed").json["items"][0]["id"]
        shown = imported("step", step_id).out
        assert f"step {step_id}  failed" in shown
        assert "✗ RateLimitError: slow down" in shown
        assert "Plan a day." in shown
        assert re.search(r"llm_request_ns +50\.0 ms +50000000", shown)

    def test_a_step_in_json_has_its_messages(self, imported: Cli) -> None:
        step_id = imported("steps", "--json", "--oldest").json["items"][0]["id"]
        step = imported("step", step_id, "--json").json
        assert step["id"] == step_id
        assert [message["role"] for message in step["messages"]] == ["user", "assistant"]

    def test_the_messages_of_a_trace(self, imported: Cli) -> None:
        lines = imported("messages", WEATHER[:8]).out.splitlines()
        assert lines == [
            "user",
            r"  Is it \x1b[31mred\x1b[0m in Lisbon?",
            "assistant",
            '  → look({"at":1})',
            "tool look",
            "  no answer",
            "assistant",
            "  I cannot tell.",
        ]

    def test_the_messages_of_a_run_in_json(self, imported: Cli) -> None:
        run_id = imported("runs", "--json", "--agent", "weather").json["items"][0]["id"]
        roles = [message["role"] for message in imported("messages", "--run", run_id, "--json").json]
        assert roles == ["user", "assistant", "tool", "assistant"]


class TestImport:
    def test_the_same_again_changes_nothing(self, imported: Cli) -> None:
        before = imported("trace", WEATHER, "--json").out
        assert imported("import", "spans.json").out == "imported 6 spans of 2 traces from 1 file\n"
        assert imported("trace", WEATHER, "--json").out == before

    def test_truth_files_are_skipped(self, imported: Cli, tmp_path: Path) -> None:
        (tmp_path / "a.truth.json").write_text("not spans")
        result = imported("import", "spans.json", "a.truth.json", "--json")
        assert (result.code, result.err) == (0, "")
        assert result.json == {
            "files": 1,
            "skipped": 1,
            "spans": 6,
            "records": 0,
            "annotations": 0,
            "deletions": 0,
            "traces": 2,
            "quarantined": 0,
            "problems": [],
        }

    def test_a_broken_file_fails_after_the_others_are_in(self, cli: Cli, imported: Cli, tmp_path: Path) -> None:
        (tmp_path / "broken.json").write_text('{"resourceSpans": [')
        good = (tmp_path / "spans.json").read_text()
        (tmp_path / "lines.jsonl").write_text(f"{good}\nbroken\n")
        result = imported("import", "broken.json", "missing.json", "lines.jsonl", "spans.json")
        assert result.code == 1
        errors = result.err.splitlines()
        assert [error.rpartition(": ")[0].split(":")[1].strip() for error in errors] == [
            "broken.json",
            "missing.json",
            "lines.jsonl",
        ]
        assert "lines.jsonl:2" in errors[2]
        assert result.out == "imported 12 spans of 2 traces from 4 files (3 problems)\n"

    def test_files_that_cannot_be_read_make_no_database(self, cli: Cli, tmp_path: Path) -> None:
        assert cli("import", "none.json", "--db", "none.db").code == 1
        assert list(tmp_path.iterdir()) == []

    def test_into_either_database(self, cli: Cli, imported: Cli, database_url: str) -> None:
        assert cli("import", "spans.json", "--db", database_url).out == "imported 6 spans of 2 traces from 1 file\n"
        here, there = cli("trace", WEATHER), cli("trace", WEATHER, "--db", database_url)
        assert there.out == here.out

    def test_a_database_that_cannot_be_used(self, imported: Cli) -> None:
        result = imported("import", "spans.json", "--db", "postgresql://user:secret@127.0.0.1:1/steps")
        assert result.code == 1
        assert len(result.err.splitlines()) == 1
        assert "secret" not in result.err

    def test_spans_that_are_no_steps_are_kept(self, cli: Cli, tmp_path: Path) -> None:
        span = {"traceId": WEATHER, "spanId": "1" * 16, "name": "GET /health"}
        (tmp_path / "a.json").write_text(json.dumps({"resourceSpans": [{"scopeSpans": [{"spans": [span]}]}]}))
        assert cli("import", "a.json").code == 0
        assert "GET /health" in cli("trace", WEATHER).out


def _execute(statement: str) -> None:
    """In the database of the directory that the command line is called in."""
    with contextlib.closing(sqlite3.connect("steps.db")) as connection, connection:
        connection.execute(statement)


class TestDemo:
    """What to do next, as one can paste it."""

    def next(self, result: Result) -> list[str]:
        assert result.code == 0, result
        return [line for line in result.out.splitlines() if line.startswith("  step-exporter ")]

    def test_paths_are_quoted_for_the_shell(self, cli: Cli) -> None:
        assert self.next(cli("demo", "--db", "a b&.db"))[0] == "  step-exporter runs --db 'a b&.db'"
        assert self.next(cli("demo"))[0] == "  step-exporter runs"

    def test_a_database_of_the_environment_is_not_repeated(self, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("OTEL_EXPORTER_STEPS_URL", "sqlite:///other.db")
        assert self.next(cli("demo"))[0] == "  step-exporter runs"
        assert self.next(cli("demo", "--db", "sqlite:///steps.db"))[0].endswith(" --db sqlite:///steps.db")

    def test_g11_passwords_are_not_shown(self, cli: Cli, postgres_url: str) -> None:
        url = make_url(postgres_url).set(password="hunter2")
        result = cli("demo", "--db", url.render_as_string(hide_password=False))
        assert "hunter2" not in result.out
        assert ":***@" in self.next(result)[0]
