"""Whatever is sent to the receiver, it answers, never with a 500, and holds no more memory afterwards.

``STEP_EXPORTER_FUZZ=10000 pytest -s -n 0 tests/viewer/test_fuzz.py`` sends more, and shows what was answered.
"""

from __future__ import annotations

import contextlib
import copy
import gzip
import json
import os
import random
import re
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from otlp_protobuf import to_protobuf
from viewer_spans import agent_run

pytestmark = pytest.mark.once

REQUESTS = int(os.environ.get("STEP_EXPORTER_FUZZ", "300"))
SEED = int(os.environ.get("STEP_EXPORTER_FUZZ_SEED", "20"))
MAX_GROWTH_KIB = 16 * 1024
"""Of the server's memory, from the middle to the end."""

JSON, PROTOBUF = "application/json", "application/x-protobuf"
SERVE = [sys.executable, "-c", "import sys; from step_exporter.cli import main; sys.exit(main())", "serve"]
SPANS = agent_run()
RECORDS = {
    "resourceLogs": [
        {
            "scopeLogs": [
                {
                    "logRecords": [
                        {
                            "traceId": "a" * 32,
                            "spanId": f"{number:016x}",
                            "timeUnixNano": "1700000000000000000",
                            "eventName": "gen_ai.user.message",
                            "body": {"kvlistValue": {"values": [{"key": "content", "value": {"stringValue": "Hi"}}]}},
                        }
                        for number in (1, 2)
                    ]
                }
            ]
        }
    ]
}
ODD: tuple[Any, ...] = (
    None, True, 0, -1, 2**64, 1e308, float("nan"), "", "\0\ud800", "9" * 5000, "x" * 100_000, [], {}, [[]], [None],
    {"values": 1}, {"": {}}, {"stringValue": []}, {"arrayValue": {"values": {}}}, {"bytesValue": "="},
    {"intValue": "many"}, {"kvlistValue": {"values": [{"key": 1}]}}, "=" * 22, "0" * 32, "F" * 16,
)  # fmt: skip
ENCODINGS = ("gzip", "deflate", "identity", "gzip, gzip", "\xff", "")
TYPES = ("application/json; charset=latin-1", "APPLICATION/X-PROTOBUF", "text/plain", "", "\xff", "application/json;;")
PATHS = ("/v1/traces", "/v1/traces", "/v1/traces", "/v1/metrics", "/v1/logs", "/v1/trac%65s?x=%ff")


def _with_other_bytes(body: bytes, chance: random.Random) -> bytes:
    changed = bytearray(body)
    for _ in range(chance.randint(1, 8)):
        at = chance.randrange(len(changed) or 1)
        match chance.randrange(4):
            case 0:
                changed[at : at + 1] = chance.randbytes(1)
            case 1:
                del changed[at : at + chance.randint(1, 20)]
            case 2:
                changed[at:at] = chance.randbytes(chance.randint(1, 20))
            case _:
                changed[at:at] = changed[: chance.randint(1, 200)]
    return bytes(changed)


def _with_other_values(document: Any, chance: random.Random) -> bytes:
    """JSON in which some value anywhere is another one."""
    document = copy.deepcopy(document)
    for _ in range(chance.randint(1, 3)):
        place: Any = document
        while isinstance(place, dict | list) and place:
            key = chance.choice(list(place) if isinstance(place, dict) else range(len(place)))
            if chance.random() < 0.15 or not isinstance(place[key], dict | list):
                place[key] = copy.deepcopy(chance.choice(ODD))
                break
            place = place[key]
    return json.dumps(document).encode()


def _body(document: Any, chance: random.Random) -> tuple[bytes, str]:
    """A body and its type."""
    if chance.random() < 0.5:
        return _with_other_bytes(to_protobuf(document), chance), PROTOBUF
    if chance.random() < 0.5:
        return _with_other_bytes(json.dumps(document).encode(), chance), JSON
    return _with_other_values(document, chance), JSON


def _http(port: int, body: bytes, headers: dict[str, str], path: str = "/v1/traces") -> bytes:
    given = {"Host": f"127.0.0.1:{port}", "Connection": "close", "Content-Length": str(len(body)), **headers}
    lines = [f"POST {path} HTTP/1.1", *(f"{name}: {value}" for name, value in given.items()), "", ""]
    return "\r\n".join(lines).encode("latin-1") + body


def _request(port: int, chance: random.Random) -> tuple[bytes, bool]:
    """A request, and whether it is whole as HTTP goes, so that it must be answered."""
    path = chance.choice(PATHS)
    body, kind = _body(RECORDS if path == "/v1/logs" else SPANS, chance)
    headers = {"Content-Type": kind}
    if chance.random() < 0.3:
        headers["Content-Encoding"] = chance.choice(ENCODINGS)
        body = gzip.compress(body, mtime=0) if chance.random() < 0.8 else body
        body = _with_other_bytes(body, chance) if chance.random() < 0.3 else body
    if chance.random() < 0.1:
        headers["Content-Type"] = chance.choice(TYPES)
    sent = _http(port, body, headers, path)
    match chance.randrange(20):
        case 0:
            length = chance.choice((str(len(body) + 9), "0", "-1", "1e3", "9" * 30, "", str(2**40)))
            return _http(port, body, {**headers, "Content-Length": length}, path), False
        case 1 | 2:
            head, end, rest = sent.partition(b"\r\n\r\n")
            return _with_other_bytes(head, chance) + end + rest, False
        case _:
            return sent, True


def _ask(port: int, request: bytes, *, must_answer: bool) -> list[int]:
    """The statuses of what is answered. Where the rest of a request may be waited for: what is by then."""
    answer = b""
    with socket.create_connection(("127.0.0.1", port), timeout=30 if must_answer else 0.1) as sock:
        try:
            sock.sendall(request)
            while part := sock.recv(65536):
                answer += part
        except TimeoutError:
            assert not must_answer, request
        except ConnectionError:  # refused before all of it was read
            pass
    return [int(status) for status in re.findall(rb"^HTTP/1\.1 ([0-9]{3})", answer, re.MULTILINE)]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[psutil.Process, int]]:
    """A server in a process of its own, so that its memory is nobody else's. Its log is in ``serve.log``."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with (tmp_path / "serve.log").open("wb") as log:
        command = [*SERVE, "--db", str(tmp_path / "steps.db"), "--port", str(port)]
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        while process.poll() is None:
            with contextlib.suppress(ConnectionRefusedError), socket.create_connection(("127.0.0.1", port)):
                break
            time.sleep(0.05)
        yield psutil.Process(process.pid), port
    finally:
        process.terminate()
        process.wait(20)


def test_no_request_breaks_the_receiver(server: tuple[psutil.Process, int], tmp_path: Path) -> None:
    process, port = server
    chance = random.Random(SEED)
    answered: Counter[int] = Counter()
    memory: list[int] = []
    for number in range(REQUESTS):
        request, must_answer = _request(port, chance)
        statuses = _ask(port, request, must_answer=must_answer)
        assert all(status < 500 for status in statuses), (statuses, request)
        answered.update(statuses or [0])
        if number % (REQUESTS // 10) == 0:
            memory.append(process.memory_info().rss // 1024)
    print(f"\n{REQUESTS} requests; answers {dict(sorted(answered.items()))} (0: none); resident KiB {memory}")
    assert memory[-1] - memory[len(memory) // 2] < MAX_GROWTH_KIB
    assert _ask(port, _http(port, json.dumps(SPANS).encode(), {"Content-Type": JSON}), must_answer=True) == [200]
    assert "Traceback" not in (tmp_path / "serve.log").read_text(errors="replace")
