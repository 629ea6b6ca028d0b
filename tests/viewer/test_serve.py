"""``step-exporter serve``, as people start it."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from viewer_spans import START, attributes, document, span

from sdk_spans import SECRET, on_disk, query
from step_exporter.cli import main

RUN = [sys.executable, "-c", "import sys; from step_exporter.cli import main; sys.exit(main())", "serve"]


def command_and_port(tmp_path: Path) -> tuple[list[str], int]:
    """A server on a free port."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    return [*RUN, "--db", str(tmp_path / "steps.db"), "--port", str(port)], port


@contextlib.contextmanager
def serving(tmp_path: Path, *options: str, **env: str) -> Iterator[str]:
    """A server until it is left; its address."""
    command, port = command_and_port(tmp_path)
    with subprocess.Popen(
        [*command, *options], stderr=subprocess.PIPE, text=True, env={**os.environ, **env}
    ) as process:
        assert process.stderr is not None
        try:
            assert process.stderr.readline().startswith("Spans:")  # by then it listens
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait(20)


def post(address: str, sent: dict[str, Any]) -> None:
    request = urllib.request.Request(address, json.dumps(sent).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request) as answer:
        assert (answer.status, answer.read()) == (200, b"{}")


def test_it_prints_a_link_that_works_and_ends_when_asked(tmp_path: Path) -> None:
    command, port = command_and_port(tmp_path)
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        try:
            lines = [process.stderr.readline() for _ in range(3)]
            (link,) = re.findall(r"http://\S+/login\?code=\S+", lines[1])
            (key,) = re.findall(r"Key: +(\S{40,})", lines[2])
            while True:
                try:
                    request = urllib.request.Request(
                        f"http://127.0.0.1:{port}/api/runs", headers={"Authorization": f"Bearer {key}"}
                    )
                    with urllib.request.urlopen(request) as answer:
                        assert answer.status == 200
                    break
                except ConnectionRefusedError:
                    continue
                except urllib.error.URLError as error:
                    if not isinstance(error.reason, ConnectionRefusedError):
                        raise
            opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor())
            with opener.open(link) as page:
                assert b"No runs yet" in page.read()
        finally:
            process.terminate()
            process.wait(20)


def test_ctrl_c_ends_it_with_0(tmp_path: Path) -> None:
    command, port = command_and_port(tmp_path)
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        process.stderr.readline()
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/login") as page:
            assert page.status == 200
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0
        assert "Traceback" not in process.stderr.read()


@pytest.mark.parametrize(("host", "code", "hint"), [("127.0.0.1", 1, "--port"), ("nowhere.invalid", 2, "--host")])
def test_where_it_cannot_listen_it_says_so_and_makes_nothing(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, host: str, code: int, hint: str
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        options = ["--host", host, "--port", port, "--unsafe-no-token"]
        assert main(["serve", "--db", str(tmp_path / "steps.db"), *options]) == code
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: cannot listen on {host}" if code == 1 else f"error: cannot listen on {host!r}")
    assert hint in line
    assert not (tmp_path / "steps.db").exists()


def test_it_does_not_start_beyond_loopback_without_a_key(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("STEP_EXPORTER_TOKEN", raising=False)
    assert main(["serve", "--db", str(tmp_path / "steps.db"), "--host", "0.0.0.0"]) == 2
    assert not (tmp_path / "steps.db").exists()


@pytest.mark.parametrize(
    ("variable", "options", "is_kept"),
    [
        ({"OTEL_EXPORTER_STEPS_CONTENT": "off"}, [], False),
        ({}, ["--content", "off"], False),
        ({"OTEL_EXPORTER_STEPS_CONTENT": "off"}, ["--content", "on"], True),
        ({}, [], True),
    ],
)
def test_content_off_leaves_no_byte_of_it_on_disk(
    tmp_path: Path, variable: dict[str, str], options: list[str], is_kept: bool
) -> None:
    said = json.dumps([{"role": "user", "parts": [{"type": "text", "content": f"asked {SECRET}"}]}])
    chat = {"gen_ai.operation.name": "chat", "gen_ai.request.model": "m", "gen_ai.usage.input_tokens": 9}
    failed = {"status": {"code": 2, "message": f"failed {SECRET}"}}
    spans = document(span(1, 2, None, "chat m", 0, 1, has={**chat, "gen_ai.input.messages": said}, **failed))
    record = {
        "timeUnixNano": str(START),
        "eventName": "gen_ai.user.message",
        "traceId": f"{1:032x}",
        "spanId": f"{2:016x}",
        "attributes": attributes({"content": f"logged {SECRET}"}),
    }
    with serving(tmp_path, *options, **variable) as address:
        post(f"{address}/v1/traces", spans)
        post(f"{address}/v1/logs", {"resourceLogs": [{"scopeLogs": [{"logRecords": [record]}]}]})
        stored = on_disk(tmp_path / "steps.db")
    for text in ("asked", "failed", "logged"):
        assert (f"{text} {SECRET}".encode() in stored) == is_kept
    assert (SECRET.encode() in stored) == is_kept
    assert query(tmp_path / "steps.db", "SELECT model, status, prompt_tokens FROM steps") == [("m", "failed", 9)]
    assert query(tmp_path / "steps.db", "SELECT count(*) FROM spans") == [(2 if is_kept else 1,)]


@pytest.mark.once
def test_old_traces_go_while_it_serves(tmp_path: Path) -> None:
    has = {"gen_ai.operation.name": "chat"}
    old, new = (span(trace, 2, None, "chat", 0, 1, has=has) for trace in (1, 2))
    new |= {"startTimeUnixNano": str(time.time_ns()), "endTimeUnixNano": str(time.time_ns())}
    with serving(tmp_path, OTEL_EXPORTER_STEPS_RETENTION_DAYS="30") as address:
        post(f"{address}/v1/traces", document(old, new))
        deadline = time.monotonic() + 60
        while query(tmp_path / "steps.db", "SELECT trace_id FROM traces") != [(f"{2:032x}",)]:
            assert time.monotonic() < deadline
            time.sleep(0.1)
    assert query(tmp_path / "steps.db", "SELECT actor, action FROM audit") == [("step_exporter", "prune")]


def test_a_content_that_is_neither_on_nor_off_makes_nothing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_STEPS_CONTENT", "no")
    assert main(["serve", "--db", str(tmp_path / "steps.db")]) == 2
    assert capsys.readouterr().err == "error: OTEL_EXPORTER_STEPS_CONTENT is 'no'; it is 'on' or 'off'\n"
    assert not (tmp_path / "steps.db").exists()


def test_a_retention_that_cannot_be_makes_nothing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_STEPS_RETENTION_DAYS", "x")
    assert main(["serve", "--db", str(tmp_path / "steps.db")]) == 2
    assert "OTEL_EXPORTER_STEPS_RETENTION_DAYS is a number of days, not 'x'" in capsys.readouterr().err
    assert not (tmp_path / "steps.db").exists()
