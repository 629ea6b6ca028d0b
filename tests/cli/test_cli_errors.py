"""What goes wrong is one line on stderr and an exit code: 1 for nothing there, 2 for asked wrongly."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from cli_seeds import TRAVEL, WEATHER, Cli

PROGRAM = [sys.executable, "-c", "import sys; from step_exporter.cli import main; sys.exit(main())"]


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["trace", "abcd"], 1, "no trace abcd"),
        (["step", "step-unknown"], 1, "no step"),
        (["trace", "xyz!"], 2, "hexadecimal"),
        (["trace", "ab"], 2, "hexadecimal"),
        (["runs", "--since", "soon"], 2, "--since"),
        (["runs", "--limit", "0"], 2, "--limit"),
        (["runs", "--after", "nonsense"], 2, "cursor"),
        (["runs", "--colour"], 2, "--colour"),
        (["steps", "--feedback", "so-so"], 2, "--feedback"),
        (["runs", "--status", "bad"], 2, "completed"),
        (["steps", "--status", "completed"], 2, "success"),
        (["audit", "--action", "zz"], 2, "rotate_key"),
        (["messages", "--run", "nope"], 1, "no run 'nope'"),
        (["frobnicate"], 2, "frobnicate"),
        (["trace"], 2, "TRACE_ID"),
        (["messages"], 2, "--run"),
        (["runs", "--db", "mysql://localhost/x"], 2, "mysql"),
        (["runs", "--db", "sqlite:///not-there.db"], 1, "not-there.db"),
    ],
)
def test_one_line_and_an_exit_code(imported: Cli, arguments: list[str], code: int, said: str) -> None:
    result = imported(*arguments)
    assert result.code == code
    assert result.out == ""
    [line] = result.err.splitlines()
    assert line.startswith("error: ")
    assert said in line


def test_no_command_shows_the_help(cli: Cli) -> None:
    result = cli()
    assert (result.code, result.err) == (2, "")
    assert "import" in result.out


def test_the_version(cli: Cli) -> None:
    assert cli("--version") == (0, f"{version('step_exporter')}\n", "")


def test_a_beginning_of_several_ids_lists_them(imported: Cli, tmp_path: Path) -> None:
    text = (tmp_path / "spans.json").read_text().replace(TRAVEL, WEATHER[:-1] + "0")
    (tmp_path / "more.json").write_text(text)
    imported("import", "more.json")
    result = imported("trace", WEATHER[:8])
    assert result.code == 1
    assert WEATHER in result.err
    assert WEATHER[:-1] + "0" in result.err


def test_a_file_that_is_no_database(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "notes.db").write_text("not a database, but long enough to be read as the header of one" * 9)
    result = cli("runs", "--db", "notes.db")
    assert result.code == 1
    assert len(result.err.splitlines()) == 1
    assert "notes.db" in result.err


def test_no_database_yet_says_what_to_do(cli: Cli) -> None:
    result = cli("runs")
    assert result.code == 1
    assert "steps.db" in result.err


def test_the_database_of_the_environment(imported: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "steps.db").rename(tmp_path / "other.db")
    monkeypatch.setenv("OTEL_EXPORTER_STEPS_URL", f"sqlite:///{tmp_path / 'other.db'}")
    assert len(imported("runs", "--json").json["items"]) == 2


class TestAsAProcess:
    def run(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        env = {**os.environ, **environment}
        return subprocess.run(
            [*PROGRAM, *arguments], env=env, capture_output=True, encoding="utf-8", timeout=60, check=False
        )

    def test_a_reader_that_leaves_early_is_no_error(self, imported: Cli) -> None:
        with subprocess.Popen(
            [*PROGRAM, "trace", WEATHER, "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
        ) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            process.stdout.close()
            assert process.stderr.read() == b""

    def test_an_error_is_no_traceback(self, imported: Cli) -> None:
        done = self.run("trace", "abcd")
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr.startswith("error: there is no trace abcd")

    def test_a_terminal_without_unicode_gets_escapes(self, imported: Cli) -> None:
        done = self.run("trace", WEATHER, PYTHONIOENCODING="ascii")
        assert done.returncode == 0
        assert done.stderr == ""

    def test_ctrl_c_is_quiet(self, tmp_path: Path) -> None:
        pipe = tmp_path / "pipe.json"
        os.mkfifo(pipe)
        with (
            subprocess.Popen(
                [*PROGRAM, "import", str(pipe), "--db", str(tmp_path / "steps.db")],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            ) as process,
            pipe.open("wb"),
        ):  # opens when the import does, which then waits for its first line
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=60)
        assert (process.returncode, out, err) == (130, b"", b"")

    @pytest.mark.parametrize("command", ["steps", "steps --json", "export", "--help", "tail --seconds 0"])
    @pytest.mark.parametrize(("to", "why"), [("/dev/full", "No space left on device"), ("&-", "Bad file descriptor")])
    def test_output_that_cannot_be_written_is_one_line(self, imported: Cli, command: str, to: str, why: str) -> None:
        shell = ["sh", "-c", f'exec "$@" {command} >{to}', "sh", *PROGRAM]
        done = subprocess.run(shell, capture_output=True, encoding="utf-8", timeout=60, check=False)
        assert (done.returncode, done.stderr) == (1, f"error: cannot write the output: {why}\n")

    @pytest.mark.parametrize("pack", ["cat", "gzip -c"])
    def test_an_export_goes_through_a_pipe_into_an_import(self, imported: Cli, pack: str) -> None:
        line = f'"$@" export --format otlp | {pack} | "$@" import - --db again.db'
        done = subprocess.run(
            ["sh", "-c", line, "sh", *PROGRAM], capture_output=True, encoding="utf-8", timeout=60, check=False
        )
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout == "imported 6 spans of 2 traces from 1 file\n"
        assert imported("messages", WEATHER, "--db", "again.db").out == imported("messages", WEATHER).out

    @pytest.mark.parametrize(
        ("given", "said"), [("</dev/null", ""), ("<&-", "error: standard input: cannot be read: it is closed\n")]
    )
    def test_an_import_of_nothing(self, tmp_path: Path, given: str, said: str) -> None:
        shell = ["sh", "-c", f'exec "$@" import - {given}', "sh", *PROGRAM]
        done = subprocess.run(shell, cwd=tmp_path, capture_output=True, encoding="utf-8", timeout=60, check=False)
        assert (done.returncode, done.stderr) == (1 if said else 0, said)
        assert list(tmp_path.iterdir()) == []

    def test_what_is_broken_on_standard_input_is_named_by_its_line(self, tmp_path: Path) -> None:
        done = subprocess.run(
            [*PROGRAM, "import", "-"],
            cwd=tmp_path,
            input='{"resourceSpans": []}\nbroken\n',
            capture_output=True,
            encoding="utf-8",
            timeout=60,
            check=False,
        )
        assert done.returncode == 1
        assert done.stderr.startswith("error: standard input:2: not JSON")

    def test_a_command_that_prints_nothing_needs_no_output(self, tmp_path: Path) -> None:
        shell = ["sh", "-c", 'exec "$@" tail --seconds 0 -n 0 >&-', "sh", *PROGRAM]
        self.run("demo", "--db", str(tmp_path / "steps.db"))
        done = subprocess.run(shell, cwd=tmp_path, capture_output=True, encoding="utf-8", timeout=60, check=False)
        assert (done.returncode, done.stderr) == (0, "")

    def test_ctrl_c_while_it_starts_is_quiet(self) -> None:
        code = """if True:
            import sys
            class Interrupts:
                def find_spec(self, name, *_):
                    if name == "typer":
                        raise KeyboardInterrupt
            sys.meta_path.insert(0, Interrupts())
            from step_exporter.cli import main
            sys.exit(main(["runs"]))"""
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, encoding="utf-8", check=False)
        assert (done.returncode, done.stdout, done.stderr) == (130, "", "")

    def test_without_typer_one_line_says_what_to_install(self) -> None:
        code = "import sys; sys.modules['typer'] = None; from step_exporter.cli import main; sys.exit(main(['runs']))"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, encoding="utf-8", check=False)
        assert done.returncode == 1
        assert done.stderr == "error: the command line needs more packages: pip install 'step_exporter[cli]'\n"

    def test_importing_the_package_imports_no_command_line(self) -> None:
        code = "import sys, step_exporter, step_exporter.cli; print(sorted({'typer', 'rich'} & {*sys.modules}))"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, encoding="utf-8", check=True)
        assert done.stdout == "[]\n"
