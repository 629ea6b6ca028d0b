"""``step-exporter serve``, as people start it."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from step_exporter.cli import main

RUN = [sys.executable, "-c", "import sys; from step_exporter.cli import main; sys.exit(main())", "serve"]


def command_and_port(tmp_path: Path) -> tuple[list[str], int]:
    """A server on a free port."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    return [*RUN, "--db", str(tmp_path / "steps.db"), "--port", str(port)], port


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
