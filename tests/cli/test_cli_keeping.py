"""The commands that sum up, follow, compare, change and keep."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path

import pytest
from cli_seeds import MS, START, TRAVEL, WEATHER, Cli, span, travel_run

from sdk_spans import on_disk
from step_exporter.conventions import logs
from step_exporter.facts import Event, RawSpan
from step_exporter.otlp import encode_json

pytestmark = pytest.mark.once


class TestStats:
    def test_by_model_in_json(self, imported: Cli) -> None:
        gpt, claude = imported("stats", "--json").json
        assert (gpt["group"], gpt["count"], gpt["prompt_tokens"]) == ({"model": "gpt-5-mini"}, 2, 302)
        assert gpt["llm_request_ns"] == {"count": 2, "p50": 100 * MS, "p95": 200 * MS, "p99": 200 * MS}
        assert (claude["group"], claude["error_rate"]) == ({"model": "claude-5"}, 1.0)

    def test_a_table(self, imported: Cli) -> None:
        head, weather, travel = [" ".join(line.split()) for line in imported("stats", "--by", "agent").out.splitlines()]
        assert head.startswith("agent steps failed step p50/p95/p99 LLM p50/p95")
        assert weather.startswith("weather 2 0.0% 200 ms / 200 ms / 200 ms 100 ms / 200 ms 100 ms / 100 ms – 302 → 84")
        assert travel.startswith("travel 1 100.0%")

    def test_hours_and_days_say_that_they_are_utc(self, imported: Cli) -> None:
        for group in ("hour", "day"):
            assert imported("stats", "--by", group).out.startswith(f"{group} (UTC) ")
        assert "hour (UTC), day (UTC)" in " ".join(imported("stats", "--help").out.replace("│", " ").split())

    def test_groups_combine_and_filters_hold(self, imported: Cli) -> None:
        found = imported("stats", "--by", "day", "--by", "provider", "--agent", "weather", "--json").json
        assert [record["group"] for record in found] == [{"day": "2026-11-22", "provider": "openai"}]
        assert imported("stats", "--model", "none").out == "no steps\n"
        assert imported("stats", "--by", "colour").code == 2

    @pytest.mark.parametrize("group", ["run", "day", "hour"])
    @pytest.mark.parametrize("columns", ["", "60", "80", "140"])
    def test_groups_are_never_cut(
        self, imported: Cli, monkeypatch: pytest.MonkeyPatch, group: str, columns: str
    ) -> None:
        if columns:
            monkeypatch.setenv("COLUMNS", columns)
        names = {record["group"][group] for record in imported("stats", "--by", group, "--json").json}
        lines = imported("stats", "--by", group).out.splitlines()
        assert names == {line.split()[0] for line in lines[1 : 1 + len(names)]}

    def test_what_a_narrow_terminal_goes_without_is_said(self, imported: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
        full = imported("stats", "--by", "run", "--by", "model").out
        assert "tok/s" in full.splitlines()[0]
        assert "too narrow" not in full
        monkeypatch.setenv("COLUMNS", "80")
        head, *_, said = imported("stats", "--by", "day").out.splitlines()
        assert head.split()[:4] == ["day", "(UTC)", "steps", "failed"]
        assert len(head) <= 80
        assert said == "too narrow for LLM p50/p95, tools p50/p95, ttft p50/p95, tok/s; --json has all"
        monkeypatch.setenv("COLUMNS", "40")
        assert imported("runs").out.splitlines()[0].split()[-1] == "error"

    def test_cost(self, imported: Cli) -> None:
        pytest.importorskip("genai_prices")
        result = imported("stats", "--cost")
        assert "US$" in result.out
        assert "US$ leaves out steps: no tokens known" in result.out


class TestTail:
    def test_begins_with_the_last_steps(self, imported: Cli) -> None:
        lines = imported("tail", "-n", "2", "--seconds", "0").out.splitlines()
        assert ["weather" in lines[0], "travel" in lines[1], len(lines)] == [True, True, 2]
        assert "RateLimitError" in lines[1]

    def test_shows_what_changes(self, imported: Cli, tmp_path: Path) -> None:
        import threading

        change = threading.Timer(0.5, lambda: _execute(tmp_path, "UPDATE steps SET updated_at = '2030-01-01 00:00:00'"))
        change.start()
        result = imported("tail", "-n", "0", "--json", "--interval", "0.1", "--seconds", "3", "--agent", "travel")
        change.join()
        assert [json.loads(line)["agent_name"] for line in result.out.splitlines()] == ["travel"]


class TestDiff:
    def test_what_differs(self, imported: Cli) -> None:
        found = imported("diff", WEATHER[:6], TRAVEL[:6], "--json").json
        assert found["traces"] == [WEATHER, TRAVEL]
        first, second = found["steps"]
        assert set(first["differ"]) >= {"model", "status", "error_type", "tools"}
        assert first["first"]["tools"] == ["look"]
        assert (second["second"], second["differ"]) == (None, ["missing"])
        shown = imported("diff", WEATHER, TRAVEL).out
        assert "- model: gpt-5-mini" in shown
        assert "+ model: claude-5" in shown
        assert shown.endswith("0 of 2 steps are alike\n")

    def test_a_trace_is_like_itself(self, imported: Cli) -> None:
        assert imported("diff", WEATHER, WEATHER).out.endswith("2 of 2 steps are alike\n")


class TestFeedback:
    def test_set_and_taken_back(self, imported: Cli) -> None:
        step = imported("steps", "--agent", "travel", "--json").json["items"][0]["id"]
        assert imported("feedback", step, "negative", "--tag", "slow", "--by", "ann").out == (
            f"step {step}: feedback negative, tags slow\n"
        )
        assert imported("feedback", step, "none", "--json").json["feedback"] is None
        assert imported("feedback", step, "so-so").code == 2
        assert imported("feedback", "step-x", "positive").code == 1

    def test_tags_stay_until_they_are_taken_away(self, imported: Cli) -> None:
        step = imported("steps", "--agent", "travel", "--json").json["items"][0]["id"]
        imported("feedback", step, "negative", "--tag", "slow", "--tag", "wrong")
        assert imported("feedback", step, "none").out == f"step {step}: feedback none, tags slow, wrong\n"
        refused = imported("feedback", step, "none", "--tag", "")
        assert (refused.code, "--no-tags" in refused.err) == (2, True)
        assert imported("feedback", step, "none", "--tag", "new", "--no-tags").code == 2
        assert imported("feedback", step, "positive", "--no-tags").out == (
            f"step {step}: feedback positive, tags none\n"
        )
        assert imported("step", step, "--json").json["tags"] is None


class TestExport:
    def test_to_standard_output_and_to_a_file(self, imported: Cli, tmp_path: Path) -> None:
        assert imported("export", "--format", "csv", "--output", "steps.csv").out == "3 steps written to steps.csv\n"
        assert len((tmp_path / "steps.csv").read_text().splitlines()) == 4
        assert imported("export", "--format", "xml", "-o", "x").code == 2
        assert imported("export", "--format", "parquet").code == 2

    def test_what_cannot_be_written_failed_and_a_wrong_path_was_asked_wrongly(self, imported: Cli) -> None:
        for form in ("jsonl", "otlp"):
            full = imported("export", "--format", form, "-o", "/dev/full")
            assert full == (1, "", "error: cannot write /dev/full: No space left on device\n")
        assert imported("export", "-o", "no/steps.jsonl") == (
            2,
            "",
            "error: cannot write no/steps.jsonl: No such file or directory\n",
        )

    def test_otlp_can_be_imported(self, imported: Cli) -> None:
        assert imported("export", "--format", "otlp", "-o", "all.jsonl").out == "2 traces written to all.jsonl\n"
        assert imported("import", "all.jsonl", "--db", "again.db", "--json").json["spans"] == 6
        again = imported("steps", "--db", "again.db", "--json").json["items"]
        for step, other in zip(imported("steps", "--json").json["items"], again, strict=True):
            assert step | {"updated_at": ""} == other | {"updated_at": ""}

    def test_what_people_said_comes_along(self, imported: Cli) -> None:
        step = imported("steps", "--agent", "travel", "--json").json["items"][0]["id"]
        imported("feedback", step, "negative", "--tag", "slow", "--by", "ann")
        assert imported("export", "--format", "otlp", "-o", "all.jsonl").out == "2 traces written to all.jsonl\n"
        said = "imported 6 spans and 2 annotations of 2 traces from 1 file\n"
        assert imported("import", "all.jsonl", "--db", "again.db").out == said
        moved = imported("step", step, "--db", "again.db", "--json").json
        assert (moved["feedback"], moved["tags"]) == ("negative", ["slow"])
        [entry] = imported("audit", "--action", "import", "--db", "again.db", "--json").json["items"]
        assert entry["details"] == {"annotations": 2, "deletions": 0}


class TestImport:
    @pytest.mark.parametrize(
        ("variable", "options", "is_kept"),
        [("off", [], False), ("on", ["--content", "off"], False), ("off", ["--content", "on"], True), ("", [], True)],
    )
    def test_content_off_leaves_no_byte_of_it_on_disk(
        self,
        cli: Cli,
        monkeypatch: pytest.MonkeyPatch,
        tmp_path: Path,
        variable: str,
        options: list[str],
        is_kept: bool,
    ) -> None:
        (tmp_path / "spans.json").write_bytes(encode_json([*travel_run(), logged("A log said it.")]))
        monkeypatch.setenv("OTEL_EXPORTER_STEPS_CONTENT", variable)
        records = " and 1 log record" if is_kept else ""
        assert cli("import", "spans.json", *options).out.startswith(f"imported 2 spans{records} of 1 trace ")
        stored = on_disk(tmp_path / "steps.db")
        for text in (b"Plan a day.", b"slow down", b"A log said it."):
            assert (text in stored) == is_kept
        [step] = cli("steps", "--json").json["items"]
        assert (step["model"], step["status"], step["error_type"]) == ("claude-5", "failed", "RateLimitError")

    def test_a_content_that_is_neither_on_nor_off_imports_nothing(self, cli: Cli, tmp_path: Path) -> None:
        (tmp_path / "spans.json").write_bytes(encode_json(travel_run()))
        result = cli("import", "spans.json", "--content", "no")
        assert (result.code, result.err) == (2, "error: --content is 'no'; it is 'on' or 'off'\n")
        assert not (tmp_path / "steps.db").exists()


class TestKeeping:
    def test_prune(self, imported: Cli) -> None:
        assert imported("prune").code == 2
        assert imported("prune", "--max-bytes", "much").code == 2
        assert imported("prune", "--older-than", "2020-01-01").out.startswith("0 traces deleted")
        assert imported("prune", "--older-than", "2100-01-01", "--json").json["traces"] == 2
        assert imported("steps").out == "no steps\n"
        assert imported("prune", "--max-bytes", "2GB", "--json").json["traces"] == 0

    def test_verify_and_rebuild(self, imported: Cli, tmp_path: Path) -> None:
        assert imported("verify") == (0, "0 differences\n", "")
        _execute(tmp_path, "UPDATE steps SET model = 'x' WHERE agent_name = 'travel'")
        result = imported("verify")
        assert result.code == 1
        assert "differs in model" in result.out
        assert result.out.endswith("1 difference; step-exporter rebuild mends them\n")
        [difference] = imported("verify", "--json", "--trace", TRAVEL[:5]).json
        assert (difference["stored"], difference["derived"]) == ({"model": "x"}, {"model": "claude-5"})
        assert imported("verify", "--trace", WEATHER).code == 0
        assert imported("rebuild").out == "2 traces derived again\n"
        assert imported("verify", "--json").json == []

    def test_migrate(self, cli: Cli, tmp_path: Path) -> None:
        assert cli("migrate", "--db", "new.db").out.startswith("schema version 0001 in ")
        assert cli("migrate", "--db", "new.db", "--json").json == {"version": "0001", "partitions": 0}
        assert cli("steps", "--db", "new.db").out == "no steps\n"

    def test_migrate_to_partitions(self, cli: Cli, postgres_url: str) -> None:
        made = cli("migrate", "--db", postgres_url, "--partitions", "3")
        assert made.out == "schema version 0001, 3 partitions\n"
        assert cli("migrate", "--db", "new.db", "--partitions", "3").code == 2


def logged(text: str) -> RawSpan:
    """A log record that tells the first request's prompt, as the receiver keeps it."""
    name = "gen_ai.user.message"
    about = span(TRAVEL, 2, 0, name, 0, 0, events=(Event(name, START, {"content": text}),))
    found = logs.as_span(about)
    assert found is not None
    return found


def _execute(directory: Path, statement: str) -> None:
    connection = sqlite3.connect(directory / "steps.db")
    with connection:
        connection.execute(statement)
    connection.close()
