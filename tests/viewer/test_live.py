"""The streams that tell an open page to ask for itself again."""

from __future__ import annotations

import http.client
import re
from html import unescape
from typing import Any

import pytest
from viewer_server import KEY, Server
from viewer_spans import agent_run


def first_event(server: Server, path: str) -> str:
    """The first event of a stream after its greeting."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    connection.request("GET", path, headers={"Authorization": f"Bearer {KEY}"})
    response = connection.getresponse()
    try:
        while not (line := response.readline().decode()).startswith(("event:", ":")):
            assert line, "the stream ended"
        return line.strip()
    finally:
        response.close()
        connection.close()


@pytest.mark.parametrize(
    ("path", "later"),
    [("/", agent_run(2)), (f"/traces/{0xA1:032x}", agent_run(error="slow down"))],
    ids=["runs", "trace"],
)
def test_what_comes_between_the_page_and_its_stream_is_a_change(server: Server, path: str, later: Any) -> None:
    server.send(agent_run())
    found = re.search(r'data-events="([^"]+)"', server.get(path).text)
    assert found
    server.send(later)
    assert first_event(server, unescape(found[1])) == "event: change"
