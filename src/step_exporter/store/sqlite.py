"""How a SQLite file is set up for a writer and many readers, and what is said where it cannot be."""

from __future__ import annotations

import logging
import os
import re
import sqlite3
import time
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

from sqlalchemy import Connection
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.engine.interfaces import DBAPIConnection

from step_exporter.errors import DatabaseError

_log = logging.getLogger(__name__)

OLDEST = (3, 35, 0)
"""The first one with ``RETURNING``."""
WAL_LIMIT = 64 << 20
"""Bytes that the write-ahead log keeps on disk between checkpoints. A reader that stays in one transaction lets it grow
beyond that; it is cut down again afterwards."""
_PAGE = 8192
"""Bytes of a page. With 4096, SQLite's own default, the log takes twice the system calls: a fifth more CPU for all SQL,
in an empty file as in one of 400 MB. With 16384 it would be a tenth less (a third less where spans carry 20 KiB), but
a batch changes a page of each index for nearly every trace, and all of these are written whole."""
NETWORK_FILESYSTEMS = frozenset(
    {"nfs", "nfs4", "cifs", "smb3", "smbfs", "afs", "ceph", "lustre", "gpfs", "beegfs"}
    | {"fuse.ceph", "fuse.glusterfs", "fuse.sshfs", "fuse.s3fs", "fuse.rclone", "fuse.gcsfuse"}
)
"""As Linux names them. The write-ahead log needs memory that all its users share: one host (sqlite.org/wal.html)."""

_POLL_MS = 10
"""SQLite looks for a lock after 1, 2, 5 ms, and then less and less often, up to every 100, so that those who came later
get it first: of four busy writers one waited 2.4 s. Ours wait so long, and then begin to wait anew."""
_MOUNTINFO = Path("/proc/self/mountinfo")
_warned = set[Path]()


def set_up_reader(connection: DBAPIConnection) -> None:
    """Let a connection read only."""
    with closing(connection.cursor()) as cursor:
        cursor.execute("PRAGMA query_only = ON")
        cursor.execute("SELECT 1 FROM sqlite_master LIMIT 1")  # reads the file, so that it is found out what it is


def set_up_writer(
    connection: DBAPIConnection, path: Path | None, synchronous: str, timeout_s: float, foreign_keys: bool
) -> None:
    """Let a connection write beside readers. ``path`` is None for a database that is no file."""
    kind = None if path is None else filesystem(path, _mountinfo())
    with closing(connection.cursor()) as cursor:  # an open one keeps the file open after the connection is closed
        cursor.execute("PRAGMA page_count")
        row = cursor.fetchone()
        if row is not None and row[0] == 0:  # they count only before the first table, and wait for all other writers
            cursor.execute(f"PRAGMA page_size = {_PAGE}")
            cursor.execute("PRAGMA auto_vacuum = INCREMENTAL")
        if path is not None and kind in NETWORK_FILESYSTEMS:
            _warn_of_network(path, kind)
            _journal(cursor, "DELETE", timeout_s)
            synchronous = "FULL"  # NORMAL would leave the file to chance, and not only its last commits
        else:
            _journal(cursor, "WAL", timeout_s)
            cursor.execute(f"PRAGMA journal_size_limit = {WAL_LIMIT}")
            cursor.execute(f"PRAGMA busy_timeout = {_POLL_MS}")  # nothing but BEGIN waits for others then
        cursor.execute(f"PRAGMA synchronous = {synchronous}")
        if synchronous == "FULL":
            # What is in the log counts as committed, also what an fsync has failed for: it has to be synced now.
            cursor.execute("PRAGMA wal_checkpoint(PASSIVE)")
            cursor.fetchall()
        cursor.execute(f"PRAGMA foreign_keys = {'ON' if foreign_keys else 'OFF'}")


def begin_reading(connection: Connection) -> None:
    """``BEGIN``: what is read from then on is one snapshot. By the driver: 3 µs, by SQLAlchemy 20."""
    with closing(connection.connection.cursor()) as cursor:
        cursor.execute("BEGIN")


def begin_writing(connection: Connection, timeout_s: float) -> None:
    """``BEGIN IMMEDIATE``, once no other writer is in a transaction."""
    deadline = time.monotonic() + timeout_s
    with closing(connection.connection.cursor()) as cursor:
        while time.monotonic() < deadline:
            try:
                cursor.execute("BEGIN IMMEDIATE")
                return
            except sqlite3.OperationalError as error:
                if "locked" not in str(error):
                    break
    connection.exec_driver_sql("BEGIN IMMEDIATE")  # for SQLAlchemy to make an error of it


def roll_back(connection: Any, record: object) -> None:
    """Before a connection is closed: while a statement of it is in memory, as in the traceback of a Ctrl-C, it would
    keep its transaction, and the file locked."""
    if getattr(connection, "in_transaction", False):
        with suppress(sqlite3.Error):
            connection.rollback()


def wal_bytes(path: Path) -> int:
    """The size of a file's write-ahead log."""
    try:
        return path.with_name(path.name + "-wal").stat().st_size
    except OSError:
        return 0


def why_not(path: Path, error: Exception, read_only: bool) -> str:
    """Why a file cannot be opened, for people."""
    if path.is_dir():
        return f"{path} is a directory, not a SQLite file."
    if not path.parent.is_dir():
        return f"The directory {path.parent} does not exist; make it, or choose another place for the database."
    if "not a database" in str(error):
        return f"{path} is not a SQLite database."
    if isinstance(error, UnicodeDecodeError) or "malformed" in str(error):  # the driver quotes what it found there
        return f"{path} is damaged. Move it aside, and a new one is made; sqlite.org/recovery.html says what to save."
    return _forbidden(path, read_only) or f"Cannot open {path}: {error}"


def check(path: Path | None) -> None:
    """Raise ``DatabaseError`` where SQLite is too old, or the file may not be written, or not be made. To be asked
    before the file is opened: SQLite would open it for reading, and make a write-ahead log that nobody may write, even
    when the file's mode is mended."""
    version = sqlite3.sqlite_version_info
    if version < OLDEST:
        found, needed = (".".join(map(str, numbers)) for numbers in (version, OLDEST))
        raise DatabaseError(
            f"This Python's SQLite is {found}; step_exporter needs {needed} or newer. Use a newer build of Python, or"
            " PostgreSQL."
        )
    if path is not None and path.parent.is_dir() and not path.is_dir():
        said = _forbidden(path, read_only=False)
        if said is not None:
            raise DatabaseError(said)


def _forbidden(path: Path, read_only: bool) -> str | None:
    beside = [path, *(path.with_name(path.name + end) for end in ("-wal", "-shm"))]
    for file in beside[:1] if read_only else beside:
        needed = file if file.exists() else path.parent
        if not os.access(needed, os.R_OK if read_only else os.R_OK | os.W_OK):
            return f"No permission to {'read' if read_only else 'write'} {needed}."
    return None


def on_error(context: ExceptionContext) -> None:
    """For SQLAlchemy's ``handle_error``. After an error of the disk the file is opened anew: what the connection
    remembers of it may not be there (a failed fsync throws pages away, and the next one says that all is well)."""
    said = str(context.original_exception)
    if isinstance(context.original_exception, sqlite3.OperationalError):
        if "disk I/O error" in said:
            context.is_disconnect = True
        elif re.search(r"no such (function|table): json", said):
            raise DatabaseError(
                "This Python's SQLite was built without its JSON functions, which filtering by tags needs; everything"
                " else works."
            ) from context.original_exception


def filesystem(path: Path, mountinfo: str) -> str | None:
    """The type of the file system that a path is on, such as ``ext4``; None if it is not told.

    Args:
        path: It need not exist.
        mountinfo: The text of ``/proc/self/mountinfo`` (proc_pid_mountinfo(5)).
    """
    place = Path(os.path.realpath(path))
    best, found = -1, None
    for line in mountinfo.splitlines():
        before, _, after = line.partition(" - ")
        fields = before.split(" ")
        if len(fields) < 5 or not after:
            continue
        mounted = Path(re.sub(r"\\([0-7]{3})", lambda escape: chr(int(escape[1], 8)), fields[4]))
        if len(mounted.parts) >= best and place.is_relative_to(mounted):  # a later one hides an earlier one
            best, found = len(mounted.parts), after.split(" ")[0]
    return found


def _mountinfo() -> str:
    try:
        return _MOUNTINFO.read_text(errors="surrogateescape")
    except OSError:  # not Linux
        return ""


def _warn_of_network(path: Path, kind: str) -> None:
    if path not in _warned:
        _warned.add(path)
        _log.warning(
            "step_exporter: %s is on %s, where SQLite is slow, has no write-ahead log, and is as safe as the file"
            " server's locks. Keep it on a local disk, or use PostgreSQL.",
            path,
            kind,
        )


def _journal(cursor: Any, mode: str, timeout_s: float) -> None:
    """Change how a file is journaled. SQLite does not wait by itself when two processes switch a file at once."""
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            cursor.execute(f"PRAGMA journal_mode = {mode}")
            return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(0.01)
