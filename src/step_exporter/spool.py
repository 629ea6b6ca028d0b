"""Where facts wait while the database is away: a SQLite file per exporter, in the user's state directory.

Whoever can reach the database brings them in: copy, commit, then delete. The exporter that made a spool does so
itself; when its process is gone, any process that writes to the same database adopts the file. Who owns it is said by
a POSIX record lock on a file beside it, which a dead process cannot hold and a forked child does not inherit (a flock
would stay held by the child). The lock is not on the SQLite file: closing that would give SQLite's own locks up.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import uuid
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError

from step_exporter.errors import DatabaseError
from step_exporter.facts import RawSpan
from step_exporter.store.codec import canonical, from_canonical
from step_exporter.store.engine import DatabaseURL, create_sync_engine, sqlite_path, sync_url
from step_exporter.store.failures import cause
from step_exporter.store.prepare import UNSTORABLE, Prepared, Rejected
from step_exporter.store.safety import made_safe

try:
    import fcntl
except ImportError:  # Windows: nothing tells an orphaned file from one in use, so there is no spool
    fcntl = None

_log = logging.getLogger(__name__)

DEFAULT_MAX_BYTES = 256 << 20
"""What one spool holds at most."""
CHUNK = 500
"""Facts that are brought in by one transaction."""

_TABLE = """CREATE TABLE IF NOT EXISTS waiting (
    id INTEGER PRIMARY KEY, trace_id TEXT, span_id TEXT, reason TEXT, detail TEXT, body BLOB NOT NULL)"""
_INSERT = "INSERT INTO waiting (trace_id, span_id, reason, detail, body) VALUES (?, ?, ?, ?, ?)"
_TAKE = "SELECT id, trace_id, span_id, reason, detail, body FROM waiting ORDER BY id LIMIT ?"
_SPOOLED = ""
"""The reason of a row that is a span; others were rejected, and their reason goes with them to the quarantine."""

Write = Callable[[Sequence[RawSpan], Sequence[Rejected]], None]
"""Commits facts to the database, or raises."""


class SpoolFile(NamedTuple):
    """A spool as ``doctor`` shows it."""

    path: Path
    facts: int | None
    """How many wait in it; None if the file cannot be read."""
    in_use: bool
    """Whether the process that owns it lives."""


def spool_directory(url: DatabaseURL, home: str | os.PathLike[str] | None = None) -> Path | None:
    """Where the spools of a database are; None for a database in memory, and where files cannot be locked.

    ``home`` replaces ``$XDG_STATE_HOME/step_exporter``. The name is a hash of driver, host, port and database.
    """
    parsed, path = sync_url(url), sqlite_path(url)
    if fcntl is None or (path is None and parsed.get_backend_name() == "sqlite"):
        return None
    if path is not None:
        place = f"sqlite {os.path.realpath(path)}"
    else:
        host = parsed.host or parsed.query.get("host") or ""
        place = f"{parsed.get_backend_name()} {host} {parsed.port or ''} {parsed.database or ''}"
    if home is None:
        home = Path(os.environ.get("XDG_STATE_HOME") or Path("~/.local/state").expanduser()) / "step_exporter"
    return Path(home).absolute() / hashlib.sha256(place.encode()).hexdigest()[:16]


def spooled(raw: RawSpan) -> Rejected:
    """A span as a row of a spool."""
    try:
        body = canonical(raw)
    except (TypeError, ValueError):
        body = canonical(made_safe(raw))
    return Rejected(raw.trace_id, raw.span_id, _SPOOLED, "", body)


def spooled_all(prepared: Sequence[Prepared], rejected: Sequence[Rejected]) -> list[Rejected]:
    """The rows for what could not be committed. Open spans are not among them: they are put down anew."""
    return [*rejected, *(spooled(item.encoded.raw) for item in prepared if item.encoded.raw.ended)]


class Spool:
    """One exporter's spool. The file is made by the first ``put`` and goes when it is empty. Not thread-safe."""

    def __init__(self, directory: Path, max_bytes: int = DEFAULT_MAX_BYTES) -> None:
        self.directory = directory
        self._max_bytes = max_bytes
        self._file: _File | None = None
        self._bytes = 0
        self.waiting = 0
        """How many facts are in it."""

    @property
    def path(self) -> Path | None:
        """The file, while there is one."""
        return None if self._file is None else self._file.path

    def put(self, rows: Sequence[Rejected]) -> int:
        """Append rows and commit; how many of them (the first ones) there was room for. Raises ``DatabaseError``."""
        size = count = 0
        for row in rows:
            if self._bytes + size + len(row.body) > self._max_bytes:
                break
            size += len(row.body)
            count += 1
        if count:
            with _as_database_error():
                if self._file is None:
                    self._file = _File.create(self.directory)
                self._file.insert(rows[:count])
            self._bytes += size
            self.waiting += count
        return count

    def bring_in(self, write: Write, limit: int) -> int:
        """Hand up to so many facts to ``write`` and delete them; how many. What ``write`` raises passes through."""
        if self._file is None:
            return 0
        done = 0
        while done < limit and (moved := self._file.move(write)):
            done += moved
            self.waiting -= moved
        if not self.waiting:
            self._remove()
        return done

    def close(self) -> None:
        """Leave what waits to the next process."""
        if self._file is not None and not self.waiting:
            self._remove()
        elif self._file is not None:
            self._file.close()
        self._file = None

    def _remove(self) -> None:
        if self._file is not None:
            self._file.remove()
        self._file, self._bytes, self.waiting = None, 0, 0


def adopt(directory: Path, write: Write, limit: int = 10_000) -> int:
    """Bring in what processes that are gone left behind; how many facts. What ``write`` raises passes through."""
    done = 0
    for path in _files(directory):
        if done >= limit:
            break
        file = _File.adopt(path)
        if file is None:
            continue
        try:
            while done < limit and (moved := file.move(write)):
                done += moved
            if file.is_empty():
                file.remove()
        except _BrokenError as error:
            if path in _broken:
                continue
            _broken.add(path)
            _log.warning("step_exporter cannot read the spool %s: %s. It is left as it is.", path, cause(error))
        finally:
            file.close()
    return done


def spool_files(directory: Path) -> Iterator[SpoolFile]:
    """The spools of a database."""
    for path in _files(directory):
        file = _File.adopt(path)
        if file is None:
            yield SpoolFile(path, _count(path), in_use=True)
            continue
        try:
            yield SpoolFile(path, _count(path), in_use=False)
        finally:
            file.close()


class _File:
    """A spool's file, locked by this process."""

    def __init__(self, path: Path, lock: int) -> None:
        self.path = path
        self._lock = lock
        self._engine: Engine = create_sync_engine(path)
        _mine.add(path)

    @classmethod
    def create(cls, directory: Path) -> _File:
        """A new file that only this user may read."""
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = directory / f"{os.getpid()}-{uuid.uuid4().hex[:12]}.db"
        lock = os.open(_lock_path(path), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            _try_lock(lock)
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
            file = cls(path, lock)
        except BaseException:
            os.close(lock)
            _lock_path(path).unlink(missing_ok=True)
            raise
        with file._engine.begin() as conn:
            conn.exec_driver_sql(_TABLE)
        return file

    @classmethod
    def adopt(cls, path: Path) -> _File | None:
        """The file, if nobody has it."""
        if path in _mine:  # this process' own: its record lock would be granted, and closing would give it up
            return None
        try:
            lock = os.open(_lock_path(path), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError:
            return None
        if _try_lock(lock) and path.exists():
            return cls(path, lock)
        if not path.exists():  # another process was faster, and is done with it
            _lock_path(path).unlink(missing_ok=True)
        os.close(lock)
        return None

    def insert(self, rows: Sequence[Rejected]) -> None:
        """Append rows and commit."""
        with self._engine.begin() as conn:
            conn.exec_driver_sql(_INSERT, [tuple(row) for row in rows])

    def move(self, write: Write) -> int:
        """Write the first facts to the database, then delete them here; how many. Twice written is stored once."""
        with _as_broken(), self._engine.begin() as conn:
            conn.exec_driver_sql(_TABLE)  # its maker may have died before the first commit
            rows = conn.exec_driver_sql(_TAKE, (CHUNK,)).fetchall()
        if not rows:
            return 0
        raws: list[RawSpan] = []
        rejected: list[Rejected] = []
        for _, trace_id, span_id, reason, detail, body in rows:
            if reason != _SPOOLED:
                rejected.append(Rejected(trace_id, span_id, reason, detail, body))
                continue
            try:
                raws.append(from_canonical(body))
            except Exception as error:
                rejected.append(Rejected(trace_id, span_id, UNSTORABLE, f"in the spool: {cause(error)}", body))
        write(raws, rejected)
        with _as_broken(), self._engine.begin() as conn:
            conn.exec_driver_sql("DELETE FROM waiting WHERE id <= ?", (rows[-1][0],))
        return len(rows)

    def is_empty(self) -> bool:
        """Whether no fact waits."""
        with _as_broken(), self._engine.begin() as conn:
            return conn.exec_driver_sql("SELECT 1 FROM waiting LIMIT 1").first() is None

    def close(self) -> None:
        """Give the file up."""
        self._engine.dispose()
        if self.path in _mine:
            _mine.discard(self.path)
            os.close(self._lock)

    def remove(self) -> None:
        """Delete the file, the lock last."""
        self._engine.dispose()
        for suffix in ("", "-wal", "-shm"):
            self.path.with_name(self.path.name + suffix).unlink(missing_ok=True)
        _lock_path(self.path).unlink(missing_ok=True)
        self.close()


_mine = set[Path]()
"""The files that this process has locked: its own record locks do not keep it out."""
_broken = set[Path]()


def _after_fork_in_child() -> None:
    _mine.clear()  # a record lock is not inherited


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)


def _try_lock(descriptor: int) -> bool:
    if fcntl is None:
        return False
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _files(directory: Path) -> list[Path]:
    return sorted(directory.glob("*.db"))


def _lock_path(path: Path) -> Path:
    return path.with_suffix(".lock")


def _count(path: Path) -> int | None:
    engine = create_sync_engine(path, read_only=True)
    try:
        with engine.connect() as conn:
            return conn.exec_driver_sql("SELECT count(*) FROM waiting").scalar_one()
    except (DBAPIError, DatabaseError):
        return None
    finally:
        engine.dispose()


class _BrokenError(DatabaseError):
    """A spool cannot be read."""


@contextlib.contextmanager
def _as_broken() -> Generator[None]:
    try:
        yield
    except (DBAPIError, DatabaseError) as error:
        raise _BrokenError(cause(error)) from error


@contextlib.contextmanager
def _as_database_error() -> Generator[None]:
    try:
        yield
    except (DBAPIError, OSError) as error:
        raise DatabaseError(f"nothing can be spooled: {cause(error)}") from error
