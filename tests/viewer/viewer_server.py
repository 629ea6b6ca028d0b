"""What tests know of a running server, and how they ask it."""

from __future__ import annotations

import http.client
import json
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from step_exporter.store.query import StepStore
from step_exporter.viewer.security import Access, Sessions

KEY = "a-key-that-is-long-enough"


class Answer(NamedTuple):
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode()

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Server(NamedTuple):
    url: str
    """The database's."""
    port: int
    access: Access
    sessions: Sessions

    @property
    def base(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def ask(
        self, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None, *, key: bool = True
    ) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        sent = {"Authorization": f"Bearer {KEY}"} if key else {}
        try:
            connection.request(method, path, body, {**sent, **(headers or {})})
            response = connection.getresponse()
            return Answer(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())
        finally:
            connection.close()

    def get(self, path: str, **headers: str) -> Answer:
        return self.ask("GET", path, headers=headers)

    def send(self, document: Any, kind: str = "application/json", **headers: str) -> Answer:
        body = document if isinstance(document, bytes) else json.dumps(document)
        return self.ask("POST", "/v1/traces", body, {"Content-Type": kind, **headers}, key=False)

    def store(self) -> StepStore:
        return StepStore(self.url)


Serve = Callable[..., Server]
