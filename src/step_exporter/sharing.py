"""One writer per process and database: a second exporter on the same URL attaches to the first.

Two would only wait for each other, and each would have to read what the other wrote.
"""

from __future__ import annotations

import logging
import math
import os
import threading
import time
from collections import Counter
from pathlib import Path

from sqlalchemy import Engine
from sqlalchemy.exc import ProgrammingError

from step_exporter.errors import ConfigurationError
from step_exporter.keeper import Keeper, Retention
from step_exporter.store.encryption import Cipher, cipher_of, make_cipher
from step_exporter.store.engine import (
    DatabaseURL,
    create_sync_engine,
    display_url,
    impatient,
    sqlite_path,
    sync_url,
)
from step_exporter.store.failures import cause
from step_exporter.store.ingest import Writer
from step_exporter.store.postgresql import ANSWER_S
from step_exporter.store.privileges import check_may_write
from step_exporter.store.processes import HEARTBEAT_S, Account, find_abandoned, heartbeat, register
from step_exporter.store.schema import ensure_schema

_log = logging.getLogger(__name__)


class SharedWriter:
    """A writer, its engine, and how many use it."""

    def __init__(self, key: str, engine: Engine, place: str, path: Path | None = None) -> None:
        self.key = key
        self.engine = engine
        self.place = place
        """The URL for people to read, passwords masked."""
        self.writer = Writer(engine)
        self.users = 0
        self.is_ready = False
        self.lock = threading.Lock()
        self._process_id: str | None = None
        self._beaten_at = -math.inf
        self._path = path
        self._inode: tuple[int, int] | None = None
        """Of the SQLite file: one that is deleted or replaced could be written to without an error."""
        self._accounts: dict[int, Account] = {}
        self._told: frozenset[str] = frozenset()
        """The reasons for drops that are in ``processes``."""
        self._keeper: Keeper | None = None

    def make_ready(self) -> Writer:
        """Connect, make the tables, and look for what processes that are gone left open, once. Raises
        ``DatabaseError``."""
        with self.lock:
            if self.is_ready and self._inode is not None and _inode(self._path) != self._inode:
                _log.warning("step_exporter: %s was deleted or replaced; it is made anew", self.place)
                self.engine.dispose()
                self.writer.forget()
                self.is_ready, self._process_id = False, None
            if not self.is_ready:
                ensure_schema(self.engine)
                check_may_write(self.engine)
                self._inode = _inode(self._path)
                try:
                    find_abandoned(self.engine, self.writer)
                except Exception as error:  # the next one that looks may have more luck
                    _log.warning("step_exporter could not look for abandoned spans: %s", cause(error))
                self.is_ready = True
            if self._keeper is not None:
                self._keeper.start()
        return self.writer

    def retain(self, retention: Retention) -> None:
        """Prune the database on a schedule, by the strictest of what is asked for."""
        with self.lock:
            if self._keeper is None:
                self._keeper = Keeper(self.engine, self.place, retention)
            self._keeper.retention = retention.stricter(self._keeper.retention)

    def process(self) -> str:
        """The id of this process in ``processes``, put down at the first call."""
        with self.lock:
            if self._process_id is None:
                self._process_id = register(self.engine)
                self._beaten_at = time.monotonic()
            return self._process_id

    def beat(self, user: int, account: Account) -> None:
        """Say that this process lives and what became of its spans, if there is anything to say and it is time to:
        every ten seconds, and when spans are dropped for a new reason.

        ``user`` tells the accounts of several exporters apart.
        """
        with self.lock:
            self._accounts[user] = account
            total = self._account()
            if self._process_id is None and total.is_empty:
                return
            now = time.monotonic()
            if now - self._beaten_at < HEARTBEAT_S and total.dropped.keys() <= self._told:
                return
            self._beaten_at = now
            try:
                self._tell(self.engine, total)
            except ProgrammingError as error:  # a role that may write traces only: that costs no span
                _log.warning("step_exporter cannot keep account of this process's spans: %s", cause(error))
                self._beaten_at = math.inf

    def _tell(self, engine: Engine, account: Account, *, ended: bool = False) -> None:
        if self._process_id is None:
            self._process_id = register(engine, account, ended=ended)
        else:
            heartbeat(engine, self._process_id, account, ended=ended)
        self._told = frozenset(account.dropped)

    def _account(self) -> Account:
        dropped = Counter[str]()
        for account in self._accounts.values():
            dropped.update(account.dropped)
        seen, committed, spooled = (sum(numbers) for numbers in list(zip(*self._accounts.values(), strict=True))[:3])
        return Account(seen, committed, spooled, dict(dropped))

    def after_fork(self) -> None:
        """Begin anew in a forked child, which is another process."""
        self.lock = threading.Lock()
        self._process_id = None
        self._beaten_at = -math.inf
        self._accounts, self._told = {}, frozenset()
        self.writer.after_fork()

    def release(self, user: int, account: Account, *, is_reachable: bool = True) -> None:
        """One user less; the last one says what became of the process's spans, and closes the connections. If the
        database could not be reached just now, that is tried only where it takes no time: with a file."""
        self._accounts[user] = account
        with _lock:
            self.users -= 1
            if self.users:
                return
            _shared.pop(self.key, None)
        if self._keeper is not None:
            self._keeper.stop()
        try:
            self._take_leave(is_reachable)
        except Exception as error:  # whoever looks will find the process gone
            _log.debug("step_exporter could not say that it ends: %s", cause(error))
        self.engine.dispose()

    def _take_leave(self, is_reachable: bool) -> None:
        account = self._account()
        if (self._process_id is None and account.is_empty) or not (is_reachable or self._path is not None):
            return
        if self._path is not None and not self._path.exists():  # what is gone, or was never made, is not made for this
            return
        engine = self.engine if is_reachable else impatient(self.engine)
        if not self.is_ready:
            ensure_schema(engine)
        self._tell(engine, account, ended=True)


def _inode(path: Path | None) -> tuple[int, int] | None:
    try:
        found = None if path is None else path.stat()
    except OSError:
        return None
    return None if found is None else (found.st_dev, found.st_ino)


_lock = threading.Lock()
_shared: dict[str, SharedWriter] = {}


def acquire(url: DatabaseURL, encryption_key: str | None = None) -> SharedWriter:
    """The writer for a database; ``release`` it in the end. Connects to nothing. Raises ``ConfigurationError``."""
    cipher = make_cipher(encryption_key)
    path = sqlite_path(url)
    key = str(path) if path is not None else sync_url(url).render_as_string(hide_password=False)
    with _lock:
        shared = _shared.get(key)
        if shared is None:
            engine = create_sync_engine(url, encryption_key=encryption_key, answer_s=ANSWER_S, foreign_keys=False)
            shared = _shared[key] = SharedWriter(key, engine, display_url(url), path)
        elif _key_ids(cipher) != _key_ids(cipher_of(shared.engine)):
            raise ConfigurationError(f"This process writes to {shared.place} with another encryption key already.")
        shared.users += 1
        return shared


def _key_ids(cipher: Cipher | None) -> tuple[str, ...]:
    return () if cipher is None else cipher.key_ids


def _after_fork_in_child() -> None:
    """Locks may be held by threads that are not here; connections are the parent's (``store.engine`` sees to them)."""
    global _lock
    _lock = threading.Lock()
    for shared in _shared.values():
        shared.after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
