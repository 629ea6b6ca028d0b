"""``step-exporter serve``: the pages, the API and the OTLP receiver."""

from __future__ import annotations

import contextlib
import errno
import gc
import logging
import os
import socket
import sys
from collections.abc import Sequence
from typing import Any

from step_exporter.errors import ConfigurationError, DatabaseError, SchemaError, StepExporterError
from step_exporter.keeper import Retention

TOKEN_VARIABLE = "STEP_EXPORTER_TOKEN"
_SHUTDOWN_S = 5
_LACKING = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)
"""What an address of localhost gives where a machine has no IPv6."""


def serve(
    url: str,
    host: str,
    port: int,
    *,
    names: Sequence[str],
    unsafe_no_token: bool,
    organization_id: str | None,
    content: bool,
) -> None:
    """Serve until interrupted. Where to go is said on stderr. ``content``: whether that of spans is stored. Old traces
    are deleted as the environment says.

    Raises ``ConfigurationError`` before it listens, if others could read without a key, packages are missing, a
    setting cannot be used or the host is none; ``StepExporterError`` if it cannot listen there; ``SchemaError`` for a
    database that is not ours.
    """
    try:
        import uvicorn

        from step_exporter.viewer.app import create_app
        from step_exporter.viewer.security import Sessions, make_access
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("step_exporter"):
            raise
        raise ConfigurationError(f"serve needs {error.name}: pip install 'step_exporter[viewer]'") from None
    chosen = os.environ.get(TOKEN_VARIABLE) or None
    access = make_access(host, port, key=chosen, names=names, unsafe_no_token=unsafe_no_token)
    sessions = Sessions(access.key)
    retention = Retention.of(None)
    sockets = _listen(host, port)  # first, so that nothing is said or made where that fails
    _make_tables(url)
    _say(f"Spans:  http://{_place(host, port)}  (OTEL_EXPORTER_OTLP_ENDPOINT, http/protobuf or http/json)")
    if access.key is None:
        _say(f"Pages:  http://{_place(host, port)}/  (no key is asked for)")
    else:
        _say(f"Pages:  http://{_place(host, port)}/login?code={sessions.new_code()}  (works once)")
        _say(f"Key:    {access.key if chosen is None else f'the value of {TOKEN_VARIABLE}'}")
    config: dict[str, Any] = {"log_level": "warning", "access_log": False, "server_header": False}
    logging.basicConfig(format="%(levelname)s: %(message)s")
    app = create_app(url, access, sessions, organization_id=organization_id, content=content, retention=retention)
    gc.freeze()  # what was imported stays: looking through it cost the first look at 50,000 spans a fifth of its time
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            proxy_headers=False,
            timeout_graceful_shutdown=_SHUTDOWN_S,
            h11_max_incomplete_event_size=64 * 1024,
            **config,
        )
    )
    with contextlib.suppress(KeyboardInterrupt):  # which uvicorn raises again once it has shut down
        server.run(sockets)


def _listen(host: str, port: int) -> list[socket.socket]:
    """Sockets that listen on every address of the host that this machine has."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:  # the latter for what cannot be a name
        why = getattr(error, "strerror", None) or "not a name"
        raise ConfigurationError(f"cannot listen on {host!r:.100}: {why}. Give another --host.") from None
    sockets: list[socket.socket] = []
    why = ""
    for family, address in dict.fromkeys((family, address) for family, _, _, _, address in found):
        try:
            sockets.append(socket.create_server(address, family=family))
        except OSError as error:
            why = os.strerror(error.errno) if error.errno else str(error)
            if error.errno not in _LACKING:
                break
    else:
        if sockets:
            return sockets
    for sock in sockets:
        sock.close()
    raise StepExporterError(f"cannot listen on {host} port {port}: {why}. Give another --port or --host.")


def _make_tables(url: str) -> None:
    """Make the tables, or say that it will be tried again with the first spans."""
    from step_exporter.store.engine import create_sync_engine
    from step_exporter.store.schema import ensure_schema

    engine = create_sync_engine(url)
    try:
        ensure_schema(engine)
    except SchemaError:
        raise
    except DatabaseError as error:
        _say(f"warning: {error} Senders are told to try again until it answers.")
    finally:
        engine.dispose()


def _place(host: str, port: int) -> str:
    shown = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
    return f"{shown}:{port}"


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
