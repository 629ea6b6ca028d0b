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
import sqlite3
import stat
import tempfile
import threading
import uuid
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, cast

import orjson
from msgspec.structs import asdict, replace
from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError

from step_exporter.errors import DatabaseError, EncryptionError
from step_exporter.facts import Event, Link, RawSpan, Resource, Scope
from step_exporter.store import values
from step_exporter.store.encryption import Cipher, is_sealed
from step_exporter.store.engine import DatabaseURL, create_sync_engine, replace_connections, sqlite_path, sync_url
from step_exporter.store.failures import cause
from step_exporter.store.prepare import UNSTORABLE, Prepared, Rejected
from step_exporter.store.safety import is_safe, made_safe, safe_source

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
_REDACTED = "redacted"
"""The detail of such a row whose texts ``redact`` has seen."""

Write = Callable[[Sequence[RawSpan], Sequence[Rejected]], None]
"""Commits facts to the database, or raises."""


class Rules(Protocol):
    """What whoever adopts a spool lets into the database, whatever its maker did."""

    def span(self, raw: RawSpan, is_redacted: bool) -> RawSpan:
        """The span as it may be stored. ``is_redacted``: its maker's ``redact`` has seen it."""
        ...

    def rejected(self, row: Rejected) -> Rejected:
        """The same for what goes to the quarantine."""
        ...


class SpoolFile(NamedTuple):
    """A spool as ``doctor`` shows it."""

    path: Path
    facts: int | None
    """How many wait in it; None if the file cannot be read."""
    in_use: bool
    """Whether the process that owns it lives."""


def spool_home(given: str | os.PathLike[str] | bool | None) -> str | os.PathLike[str] | Literal[False] | None:
    """Where spools are to be kept, as the setting says it: a directory, None for the user's, False for nowhere."""
    if isinstance(given, str) and (word := given.strip().lower()) in ("on", "off", "true", "false"):
        given = word in ("on", "true")
    return None if given is True else given


def spool_directory(url: DatabaseURL, home: str | os.PathLike[str] | None = None) -> Path | None:
    """Where the spools of a database are; None for a database in memory, where files cannot be locked, and where the
    user has no directory for them. Raises ``ConfigurationError`` for what is no database URL.

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
    try:
        kept_in = (_user_home() if home is None else Path(home)).absolute()
    except OSError as error:
        if str(error) not in _said:
            _said.add(str(error))
            _log.warning("step_exporter cannot spool, so it keeps nothing while the database is away: %s", cause(error))
        return None
    return kept_in / hashlib.sha256(place.encode()).hexdigest()[:16]


def _user_home() -> Path:
    """Where the user's spools are, if nothing else is asked for. The temporary directory takes the place of a home
    that there is none of, or that is somebody else's: a container's user often has none. Raises ``OSError``."""
    given = os.environ.get("XDG_STATE_HOME")
    if given:
        return Path(given) / "step_exporter"
    with contextlib.suppress(RuntimeError):  # neither HOME is set nor is the user known
        home = Path("~/.local/state/step_exporter").expanduser()
        if os.access(next(place for place in (home, *home.parents) if os.path.exists(place)), os.W_OK | os.X_OK):  # noqa: PTH110  Path's raises where it may not look
            return home
    home = Path(tempfile.gettempdir()) / f"step_exporter-{os.getuid()}"
    with contextlib.suppress(FileNotFoundError):
        found = home.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o022:
            raise PermissionError(f"{home} is not this user's alone")
    return home


def spooled(raw: RawSpan, is_redacted: bool = False) -> Rejected:
    """A span as a row of a spool: JSON of what differs from a span's defaults. Without nulls it is written by one call
    of orjson, in a fifth of the time (7 µs)."""
    safe = raw if is_safe(raw) else made_safe(raw)
    try:
        body = _encoded(safe)
    except Exception:  # what a resource holds is not looked at before, as thousands of spans share it
        resource, scope = safe_source(raw.resource), safe_source(raw.scope)
        body = _encoded(replace(safe, resource=cast(Resource, resource), scope=cast(Scope, scope)))
    return Rejected(None, None, _SPOOLED, _REDACTED if is_redacted else "", body)


def _encoded(raw: RawSpan) -> bytes:
    fact = {key: value for key, value in asdict(raw).items() if value != _USUAL.get(key)}
    fact["resource"], fact["scope"] = asdict(raw.resource), asdict(raw.scope)
    if raw.events:
        fact["events"] = tuple(map(asdict, raw.events))
    if raw.links:
        fact["links"] = tuple(map(asdict, raw.links))
    return values.encode_value(fact).encode()


_NEEDED = {"trace_id", "span_id", "name"}
_USUAL = {key: value for key, value in asdict(RawSpan("", "", None, "")).items() if key not in _NEEDED}


def _decoded(body: bytes) -> RawSpan:
    """The span of a row. Raises ``ValueError``, ``TypeError``, ``KeyError`` if it is none."""
    fact = cast("dict[str, Any]", values.restore_value(orjson.loads(body)))
    fact.setdefault("parent_span_id", None)
    fact["resource"], fact["scope"] = Resource(**fact["resource"]), Scope(**fact["scope"])
    fact["events"] = tuple(Event(**event) for event in fact.get("events", ()))
    fact["links"] = tuple(Link(**link) for link in fact.get("links", ()))
    return RawSpan(**fact)


def _sealed(cipher: Cipher, row: Rejected) -> Rejected:
    detail = cipher.seal(row.detail, "waiting.detail") if row.detail else ""
    return row._replace(detail=detail, body=cipher.seal(row.body, "waiting.body").encode())


def _opened(cipher: Cipher | None, row: Rejected) -> Rejected:
    """Raises ``EncryptionError``."""
    if not is_sealed(row.body):
        return row
    if cipher is None:
        raise EncryptionError("it is encrypted, and no key is given")
    detail = cipher.open(row.detail, "waiting.detail").decode() if row.detail else ""
    return row._replace(detail=detail, body=cipher.open(row.body.decode(), "waiting.body"))


def spooled_all(
    prepared: Sequence[Prepared], rejected: Sequence[Rejected], is_redacted: bool = False
) -> list[Rejected]:
    """The rows for what could not be committed. Open spans are not among them: they are put down anew."""
    return [*rejected, *(spooled(item.encoded.raw, is_redacted) for item in prepared if item.encoded.raw.ended)]


class Spool:
    """One exporter's spool. The file is made by the first ``put`` and goes when it is empty. Thread-safe: a ``put``
    never waits for the database that a ``bring_in`` writes to."""

    def __init__(self, directory: Path, max_bytes: int = DEFAULT_MAX_BYTES, cipher: Cipher | None = None) -> None:
        self.directory = directory
        self._cipher = cipher
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._file: _File | None = None
        self._bytes = 0
        self.waiting = 0
        """How many facts are in it."""
        self._lost = 0

    @property
    def path(self) -> Path | None:
        """The file, while there is one."""
        file = self._file
        return None if file is None else file.path

    def put(self, rows: Sequence[Rejected]) -> int:
        """Append rows and commit; how many of them (the first ones) there was room for. Raises ``DatabaseError``."""
        if (cipher := self._cipher) is not None:
            rows = [_sealed(cipher, row) for row in rows]
        with self._lock:
            size = count = 0
            for row in rows:
                if self._bytes + size + len(row.body) > self._max_bytes:
                    break
                size += len(row.body)
                count += 1
            if count:
                with _as_database_error():
                    self._append(rows[:count])
                self._bytes += size
                self.waiting += count
            return count

    def bring_in(self, write: Write) -> int:
        """Hand the first facts to ``write`` and delete them; how many. What ``write`` raises passes through."""
        with self._lock:
            file = self._file
            try:
                chunk = file.first() if file is not None else None
            except _BrokenError as error:
                if file is not None and (error.is_for_good or not file.is_there()):
                    self._give_up(error)
                raise
            if chunk is None and self.waiting:  # it was deleted under us, and opened anew
                self._give_up(_BrokenError("it is empty; somebody has deleted it"))
        if file is None or chunk is None:
            return 0
        write(chunk.raws, chunk.rejected)
        with self._lock:
            if self._file is file:  # not closed meanwhile: whoever adopts it writes these again, to no effect
                file.delete(chunk)
                self._bytes -= chunk.size
                self.waiting -= chunk.facts
                if not self.waiting:
                    self._remove()
        return chunk.facts

    def recover(self) -> int:
        """After an exception that may have come at any point: count what waits anew, over a new connection. How many
        more it is, or less. Raises ``DatabaseError``."""
        with self._lock:
            if self._file is None:
                return 0
            before = self.waiting
            self.waiting, self._bytes = self._file.measure()
            more = self.waiting - before
            if not self.waiting:
                self._remove()
            return more

    def take_lost(self) -> int:
        """How many facts can never be read again, since the last call: their file is damaged, or gone."""
        with self._lock:
            lost, self._lost = self._lost, 0
            return lost

    def _append(self, rows: Sequence[Rejected]) -> None:
        if self._file is not None:
            try:
                self._file.insert(rows)
            except _BrokenError as error:
                if self._file.is_there() and not error.is_for_good:
                    raise
                self._give_up(error)
            else:
                return
        self._file = _File.create(self.directory, self._cipher)
        self._file.insert(rows)

    def _give_up(self, error: _BrokenError) -> None:
        """Leave a damaged file as it is, for people to look at; what comes next goes to a new one."""
        self._lost += self.waiting
        if self._file is not None:
            _say_broken(self._file.path, error)
            self._file.close()
        self._file, self._bytes, self.waiting = None, 0, 0

    def close(self) -> None:
        """Leave what waits to the next process."""
        with self._lock:
            if self._file is not None and not self.waiting:
                self._remove()
            elif self._file is not None:
                self._file.close()
            self._file, self._bytes, self.waiting = None, 0, 0

    def _remove(self) -> None:
        if self._file is not None:
            self._file.remove()
        self._file, self._bytes, self.waiting = None, 0, 0


def adopt(directory: Path, write: Write, limit: int, cipher: Cipher | None = None, rules: Rules | None = None) -> int:
    """Bring in up to about so many facts of processes that are gone; how many. What ``write`` raises passes
    through."""
    done = 0
    for path in _files(directory):
        if done >= limit:
            break
        file = _File.adopt(path, cipher)
        if file is None:
            continue
        try:
            while (chunk := file.first()) is not None:
                if done >= limit:
                    return done
                write(*(chunk.under(rules) if rules is not None else (chunk.raws, chunk.rejected)))
                file.delete(chunk)
                done += chunk.facts
            file.remove()
        except (_BrokenError, EncryptionError, OSError) as error:
            _say_broken(path, error)
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


class _Chunk(NamedTuple):
    """Facts out of a spool that go into the database together. Twice written is stored once."""

    raws: list[RawSpan]
    rejected: list[Rejected]
    last: int
    """The id of the last row."""
    size: int
    """Bytes of the rows."""
    redacted: list[bool]
    """Whether each of the spans is."""

    def under(self, rules: Rules) -> tuple[list[RawSpan], list[Rejected]]:
        """The facts as they may be stored."""
        raws = [rules.span(raw, is_redacted) for raw, is_redacted in zip(self.raws, self.redacted, strict=True)]
        return raws, [rules.rejected(row) for row in self.rejected]

    @property
    def facts(self) -> int:
        """How many."""
        return len(self.raws) + len(self.rejected)


class _File:
    """A spool's file, locked by this process."""

    def __init__(self, path: Path, lock: int, cipher: Cipher | None) -> None:
        self.path = path
        self._lock = lock
        self._cipher = cipher
        self._engine: Engine = create_sync_engine(path, encryption_key="")  # rows of a spool are sealed here
        _mine.add(path)

    @classmethod
    def create(cls, directory: Path, cipher: Cipher | None) -> _File:
        """A new file that only this user may read."""
        for place in (directory.parent, directory):
            place.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = directory / f"{os.getpid()}-{uuid.uuid4().hex[:12]}.db"
        lock = os.open(_lock_path(path), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            _try_lock(lock)
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
            file = cls(path, lock, cipher)
        except BaseException:
            os.close(lock)
            _lock_path(path).unlink(missing_ok=True)
            raise
        with file._engine.begin() as conn:
            conn.exec_driver_sql(_TABLE)
        return file

    @classmethod
    def adopt(cls, path: Path, cipher: Cipher | None = None) -> _File | None:
        """The file, if nobody has it."""
        if path in _mine:  # this process' own: its record lock would be granted, and closing would give it up
            return None
        try:
            lock = os.open(_lock_path(path), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError:
            return None
        if _try_lock(lock) and path.exists():
            return cls(path, lock, cipher)
        if not path.exists():  # another process was faster, and is done with it
            _lock_path(path).unlink(missing_ok=True)
        os.close(lock)
        return None

    def insert(self, rows: Sequence[Rejected]) -> None:
        """Append rows and commit."""
        with _as_broken(), self._engine.begin() as conn:
            conn.exec_driver_sql(_INSERT, [tuple(row) for row in rows])

    def first(self) -> _Chunk | None:
        """The first facts; None if there are none."""
        with _as_broken(), self._engine.begin() as conn:
            conn.exec_driver_sql(_TABLE)  # its maker may have died before the first commit
            rows = conn.exec_driver_sql(_TAKE, (CHUNK,)).fetchall()
        if not rows:
            return None
        raws: list[RawSpan] = []
        redacted: list[bool] = []
        rejected: list[Rejected] = []
        for _, *row in rows:
            trace_id, span_id, reason, detail, body = _opened(self._cipher, Rejected(*row))
            if reason != _SPOOLED:
                rejected.append(Rejected(trace_id, span_id, reason, detail, body))
                continue
            try:
                raws.append(_decoded(body))
                redacted.append(detail == _REDACTED)
            except Exception as error:
                rejected.append(Rejected(trace_id, span_id, UNSTORABLE, f"in the spool: {cause(error)}", body))
        return _Chunk(raws, rejected, rows[-1][0], sum(len(row[-1]) for row in rows), redacted)

    def delete(self, chunk: _Chunk) -> None:
        """Delete what has been written."""
        with _as_broken(), self._engine.begin() as conn:
            conn.exec_driver_sql("DELETE FROM waiting WHERE id <= ?", (chunk.last,))

    def measure(self) -> tuple[int, int]:
        """How many facts are in it, and their bytes, over a new connection."""
        replace_connections(self._engine)
        with _as_broken(), self._engine.begin() as conn:
            conn.exec_driver_sql(_TABLE)
            count, size = conn.exec_driver_sql("SELECT count(*), coalesce(sum(length(body)), 0) FROM waiting").one()
        return count, size

    def is_there(self) -> bool:
        """Whether nobody has deleted it."""
        return os.path.exists(self.path)  # noqa: PTH110  Path's raises where it may not look

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
_said = set[str]()


def _after_fork_in_child() -> None:
    _mine.clear()  # a record lock is not inherited


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)


def _say_broken(path: Path, error: Exception) -> None:
    if path not in _broken:
        _broken.add(path)
        _log.warning("step_exporter cannot read the spool %s: %s. It is left as it is.", path, cause(error))


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
    engine = create_sync_engine(path, read_only=True, encryption_key="")
    try:
        with engine.connect() as conn:
            return conn.exec_driver_sql("SELECT count(*) FROM waiting").scalar_one()
    except (DBAPIError, DatabaseError):
        return None
    finally:
        engine.dispose()


class _BrokenError(DatabaseError):
    """A spool cannot be used."""

    is_for_good = False
    """Whether it never can be again."""


@contextlib.contextmanager
def _as_broken() -> Generator[None]:
    try:
        yield
    except (DBAPIError, DatabaseError) as error:
        broken = _BrokenError(cause(error))
        origin = error.orig if isinstance(error, DBAPIError) else error.__cause__
        # Malformed or not a database, which has no class of its own; or deleted, and made anew by being opened.
        broken.is_for_good = type(origin) is sqlite3.DatabaseError or "no such table" in str(origin)
        raise broken from error


@contextlib.contextmanager
def _as_database_error() -> Generator[None]:
    try:
        yield
    except (DBAPIError, _BrokenError, OSError) as error:
        raise DatabaseError(f"nothing can be spooled: {cause(error)}") from error
