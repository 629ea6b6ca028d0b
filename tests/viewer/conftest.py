"""A real server on a free port, over a real database file."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator

import pytest
import uvicorn
from viewer_server import KEY, Serve, Server

from step_exporter.errors import DatabaseError
from step_exporter.store.engine import create_sync_engine
from step_exporter.store.schema import ensure_schema
from step_exporter.viewer.app import create_app
from step_exporter.viewer.body import Bodies
from step_exporter.viewer.security import Sessions, make_access


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Starts servers; stops them at the end."""
    running: list[tuple[uvicorn.Server, threading.Thread]] = []

    def start(
        url: str,
        *,
        bodies: Bodies | None = None,
        names: tuple[str, ...] = (),
        host: str = "127.0.0.1",
        organization_id: str | None = None,
    ) -> Server:
        engine = create_sync_engine(url)
        with contextlib.suppress(DatabaseError):  # one that is away
            ensure_schema(engine)
        engine.dispose()
        sock = socket.socket()
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
        access = make_access(host, port, key=KEY, names=names)
        sessions = Sessions(access.key)
        app = create_app(url, access, sessions, bodies=bodies, organization_id=organization_id)
        config = uvicorn.Config(app, log_config=None, access_log=False, timeout_graceful_shutdown=1)
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [sock]}, daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.01)
        running.append((server, thread))
        return Server(url, port, access, sessions)

    yield start
    for server, thread in running:
        server.should_exit = True
        thread.join(10)


@pytest.fixture
def server(serve: Serve, sqlite_url: str) -> Server:
    return serve(sqlite_url)
