"""``step-exporter serve``, as people start it."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from step_exporter.cli import main

RUN = [sys.executable, "-c", "import sys; from step_exporter.cli import main; sys.exit(main())", "serve"]


def test_it_prints_a_link_that_works_and_ends_when_asked(tmp_path: Path) -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    command = [*RUN, "--db", str(tmp_path / "steps.db"), "--port", str(port)]
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


def test_it_does_not_start_beyond_loopback_without_a_key(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("STEP_EXPORTER_TOKEN", raising=False)
    assert main(["serve", "--db", str(tmp_path / "steps.db"), "--host", "0.0.0.0"]) == 2
    assert not (tmp_path / "steps.db").exists()
