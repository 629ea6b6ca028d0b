"""Encryption at rest of what was said and what went wrong, with keys that are not in the database.

Values are sealed by AES-256-SIV (RFC 5297), which needs no nonce: the same value in the same place under the same key
is the same text, so that rows stay a function of their facts. The place (column, trace, row) is authenticated: a value
that is moved to another one does not open. A sealed value is the JSON string ``"$encrypted:<key id>:<base64>"``, in
columns of JSON and of text alike.

The ids of contents and messages are hashes of what was said, and a short text could be guessed from its hash. In an
encrypted database they are hashed once more, with a random key that is kept there, sealed. It outlives rotations.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import os
import secrets
from collections.abc import Collection, Iterable, Iterator, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from msgspec.structs import replace
from sqlalchemy import Connection, Engine, insert, select, text

from step_exporter.derive.rows import MessageRow
from step_exporter.environment import OTEL_EXPORTER_STEPS_ENCRYPTION_KEY
from step_exporter.errors import ConfigurationError, EncryptionError
from step_exporter.facts import Content
from step_exporter.models import Base

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESSIV

OPTION = "step_exporter_cipher"
"""The execution option of an engine that holds its ``Cipher``."""
HIDDEN = "<encrypted>"
"""Shown in the place of a text that there is no key for, where the rest can be shown."""
SEALED = {
    "contents": ("body",),
    "spans": ("status_message", "attributes", "events", "links"),
    "steps": ("error_data",),
    "messages": ("tool_calls",),
    "quarantine": ("detail", "body"),
}
"""The columns that are encrypted, by table."""
_HASHED = {
    "contents": ("hash", "parent_hash"),
    "messages": ("id", "parent_id", "content_hash"),
}
_KEY_BYTES = 64
_MARK = '"$encrypted:'
_MARK_BYTES = _MARK.encode()
_ASK = f"Set {OTEL_EXPORTER_STEPS_ENCRYPTION_KEY}, or pass encryption_key."
_LOCK_KEY = 0x73746570_6B657973  # "stepkeys"

KEYS, _TRACES, _QUARANTINE = (Base.metadata.tables[name] for name in ("encryption_keys", "traces", "quarantine"))


def generate_key() -> str:
    """A new random key: the base64 of 64 bytes."""
    return base64.b64encode(secrets.token_bytes(_KEY_BYTES)).decode()


def make_cipher(keys: str | None = None) -> Cipher | None:
    """The cipher of keys, separated by commas: the first one encrypts, all decrypt. None without any.

    Default: those of ``OTEL_EXPORTER_STEPS_ENCRYPTION_KEY``; an empty text is no key. Raises ``ConfigurationError``,
    which holds no part of a key.
    """
    given = keys if keys is not None else os.environ.get(OTEL_EXPORTER_STEPS_ENCRYPTION_KEY, "")
    if not given.strip():
        return None
    return Cipher([_parsed(part.strip()) for part in given.split(",")])


def _parsed(key: str) -> bytes:
    try:
        data = base64.b64decode(key, validate=True)
    except (binascii.Error, ValueError):
        data = b""
    if len(data) != _KEY_BYTES:
        raise ConfigurationError(
            f"An encryption key (encryption_key, {OTEL_EXPORTER_STEPS_ENCRYPTION_KEY}) is the base64 of 64 bytes;"
            " several are separated by commas. Make one: step-exporter generate-key"
        )
    return data


class Cipher:
    """The keys of one engine. Thread-safe."""

    def __init__(self, keys: Sequence[bytes]) -> None:
        try:  # imported here: an extra
            from cryptography.exceptions import InvalidTag
            from cryptography.hazmat.primitives.ciphers.aead import AESSIV
        except ModuleNotFoundError as error:
            raise ConfigurationError(
                "Encryption needs one more package: pip install 'step_exporter[encryption]'"
            ) from error
        self._keys: dict[str, AESSIV] = {_key_id(key): AESSIV(key) for key in keys}
        self.key_ids = tuple(self._keys)
        """Eight hexadecimal digits each, which tell nothing of the keys."""
        self._refusals = (InvalidTag, ValueError)
        self._hash_key: bytes | None = None

    def seal(self, value: str | bytes, *place: str) -> str:
        """The value, encrypted for its place, by the first key."""
        data = value if isinstance(value, bytes) else value.encode()
        # One byte before it: some versions of cryptography refuse to encrypt nothing.
        sealed = self._keys[self.key_ids[0]].encrypt(b"\0" + data, [_bytes(place)])
        return f'{_MARK}{self.key_ids[0]}:{base64.b64encode(sealed).decode()}"'

    def open(self, sealed: str, *place: str) -> bytes:
        """What ``seal`` was given. Raises ``EncryptionError``."""
        key_id, _, body = sealed[len(_MARK) : -1].partition(":")
        key = self._keys.get(key_id)
        if key is None:
            given = ", ".join(self.key_ids)
            raise EncryptionError(f"{place[0]} is encrypted by key {key_id:.8}; given: {given}. {_ASK}")
        try:
            return key.decrypt(base64.b64decode(body), [_bytes(place)])[1:]
        except self._refusals as error:
            where = " ".join(place)
            raise EncryptionError(f"{where} was changed or moved: its key, {key_id}, does not decrypt it.") from error

    def hashed(self, conn: Connection, id_: str | None) -> str | None:
        """The id under which a content or message is stored."""
        if id_ is None:
            return None
        if self._hash_key is None:
            self.load(conn)
        assert self._hash_key is not None
        digest = hashlib.blake2b(id_.encode(), key=self._hash_key, digest_size=16).hexdigest()
        kind, dash, _ = id_.partition("-")
        return f"{kind}-{digest}" if dash else digest

    def load(self, conn: Connection) -> None:
        """Read the key of hashes. Raises ``EncryptionError`` if the database is not encrypted, or by other keys."""
        known = {row.id: row.hash_key for row in conn.execute(select(KEYS.c.id, KEYS.c.hash_key))}
        if not known:
            raise EncryptionError(_PLAIN)
        for key_id in self.key_ids:
            if key_id in known:
                self._hash_key = self.open(known[key_id], "encryption_keys.hash_key", key_id)
                return
        raise EncryptionError(_other_keys(known, self.key_ids))

    def add_to(self, conn: Connection, *, is_converting: bool = False) -> None:
        """Put the first key down in the database; the first one of all comes with a new key of hashes."""
        key_id = self.key_ids[0]
        if conn.scalar(select(KEYS.c.id).limit(1)) is None:
            self._hash_key = secrets.token_bytes(32)
        else:
            self.load(conn)
        assert self._hash_key is not None
        hash_key = self.seal(self._hash_key, "encryption_keys.hash_key", key_id)
        conn.execute(insert(KEYS).values(id=key_id, hash_key=hash_key, is_converting=is_converting))

    def sealed_rows(
        self, conn: Connection, table: str, columns: Sequence[str], rows: Collection[Sequence[Any]]
    ) -> Collection[Sequence[Any]]:
        """Rows as they are stored. The first two columns of a row name its place. Raises ``EncryptionError`` if the
        database is not encrypted."""
        plan = _plan(table, tuple(columns))
        if not plan.hashed and not plan.sealed:
            return rows
        if self._hash_key is None:
            self.load(conn)
        return [self._sealed_row(conn, plan, row) for row in rows]

    def _sealed_row(self, conn: Connection, plan: _Plan, row: Sequence[Any]) -> Sequence[Any]:
        values = list(row)
        for at in plan.hashed:
            values[at] = self.hashed(conn, values[at])
        for at, column in plan.sealed:
            value = values[at]
            if value is None:
                continue
            if column == "contents.body":  # with the hashes that it had
                value = f"{row[1]}\n{row[2] or ''}\n{value}"
            sealed = self.seal(value, column, values[0] or "", values[1] or "")
            values[at] = sealed.encode() if isinstance(value, bytes) else sealed
        return values


_PLAIN = "The database was written without a key so far. Encrypt what is there first: step-exporter rotate-key"


def cipher_of(bind: Connection | Engine) -> Cipher | None:
    """The cipher of an engine or connection."""
    return cast("Cipher | None", bind.get_execution_options().get(OPTION))


def is_sealed(value: object) -> bool:
    """Whether a stored value (text or bytes) is encrypted."""
    return (isinstance(value, str) and value.startswith(_MARK)) or (
        isinstance(value, bytes) and value.startswith(_MARK_BYTES)
    )


def sealed_by(key_id: str) -> str:
    """How the values begin that a key has sealed."""
    return f"{_MARK}{key_id}:"


def opened_spans(conn: Connection, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> Iterator[Sequence[Any]]:
    """Rows of ``spans``, decrypted, JSON columns as text. The first two columns are the key. Raises
    ``EncryptionError``."""
    sealed = _plan("spans", tuple(columns)).sealed
    attributes = columns.index("attributes")
    for row in rows:
        if row[attributes].startswith(_MARK):  # they are an object: no plain row looks so
            values = list(row)
            for at, column in sealed:
                values[at] = open_value(conn, values[at], column, values[0], values[1])
            yield values
        else:
            yield row


def opened_contents(conn: Connection, trace_id: str, rows: Iterable[Sequence[Any]]) -> Iterator[Content]:
    """Rows of ``contents`` (hash, parent_hash, body), decrypted, with the hashes that tell what was said."""
    cipher = cipher_of(conn)
    for hash_, parent_hash, body in rows:
        if cipher is not None and is_sealed(body):
            whole = cipher.open(body, "contents.body", trace_id, hash_).decode()
            hash_, parent_hash, body = whole.split("\n", 2)
        yield Content(hash_, parent_hash or None, body)


def stored_hashes(conn: Connection, hashes: Collection[str]) -> Collection[str]:
    """The hashes under which contents may be stored."""
    cipher = cipher_of(conn)
    if cipher is None or not _known(conn):
        return hashes
    return {*hashes, *(str(cipher.hashed(conn, hash_)) for hash_ in hashes)}  # plain, until everything is encrypted


def stored_messages(conn: Connection, rows: Iterable[MessageRow]) -> Sequence[MessageRow]:
    """Derived messages with the ids that they are stored under."""
    cipher = cipher_of(conn)
    if cipher is None or not _known(conn):
        return tuple(rows)
    columns = _HASHED["messages"]
    return [replace(row, **{name: cipher.hashed(conn, getattr(row, name)) for name in columns}) for row in rows]


def open_value(conn: Connection, value: Any, *place: str) -> Any:
    """One stored value, decrypted if it is sealed: text as text, bytes as bytes. Raises ``EncryptionError``."""
    if not is_sealed(value):
        return value
    cipher = cipher_of(conn)
    if cipher is None:
        raise EncryptionError(f"The database is encrypted ({place[0]}), and no key is given. {_ASK}")
    if isinstance(value, bytes):
        return cipher.open(value.decode("ascii", "replace"), *place)
    return cipher.open(value, *place).decode()


def shown(conn: Connection, value: str, hidden: Any, *place: str) -> Any:
    """An encrypted value of a JSON column, as SQLAlchemy gives it; ``hidden`` without any key."""
    if cipher_of(conn) is None:
        return hidden
    return json.loads(open_value(conn, f'"{value}"', *place))


def shown_body(conn: Connection, body: str, trace_id: str, hash_: str) -> str:
    """An encrypted body of a content; ``HIDDEN`` without any key."""
    if cipher_of(conn) is None:
        return HIDDEN
    return next(opened_contents(conn, trace_id, [(hash_, None, body)])).body


def ensure_keys(conn: Connection) -> None:
    """Look, before anything is written, whether the keys at hand are those of the database; an empty database takes
    the first of them. Raises ``EncryptionError``: no plain text goes to an encrypted database, nor the reverse."""
    cipher = cipher_of(conn)
    known = _known(conn)
    if cipher is None:
        if known:
            raise EncryptionError(f"The database is encrypted, and no key is given. {_ASK}")
        return
    if cipher.key_ids[0] not in known and conn.dialect.name == "postgresql":  # SQLite: the transaction is IMMEDIATE
        conn.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK_KEY})
        known = _known(conn)
    if not known and any(conn.scalar(select(table).limit(1)) is not None for table in (_TRACES, _QUARANTINE)):
        raise EncryptionError(_PLAIN)
    check_keys(cipher, known)
    if any(known.values()):
        raise EncryptionError(
            "Plain text of the database is being encrypted. Run step-exporter rotate-key to its end, then write."
        )
    if cipher.key_ids[0] not in known:
        cipher.add_to(conn)
    cipher.load(conn)


def check_keys(cipher: Cipher, known: Iterable[str]) -> None:
    """Raise ``EncryptionError`` if the database has values under keys that are not at hand."""
    if missing := sorted(set(known) - set(cipher.key_ids)):
        raise EncryptionError(_other_keys(missing, cipher.key_ids))


def _known(conn: Connection) -> dict[str, bool]:
    """The keys of the database, and whether plain text is being encrypted."""
    return {row.id: row.is_converting for row in conn.execute(select(KEYS.c.id, KEYS.c.is_converting))}


def _other_keys(missing: Iterable[str], given: Iterable[str]) -> str:
    return f"The database is encrypted by key {', '.join(sorted(missing))}; given: {', '.join(given)}. {_ASK}"


class _Plan(NamedTuple):
    """What is done with the values of a row."""

    hashed: tuple[int, ...]
    sealed: tuple[tuple[int, str], ...]
    """Indexes, and the names of the columns in places."""


@lru_cache(maxsize=64)
def _plan(table: str, columns: tuple[str, ...]) -> _Plan:
    hashed, sealed = _HASHED.get(table, ()), SEALED.get(table, ())
    return _Plan(
        tuple(at for at, name in enumerate(columns) if name in hashed),
        tuple((at, f"{table}.{name}") for at, name in enumerate(columns) if name in sealed),
    )


def _key_id(key: bytes) -> str:
    return hashlib.blake2b(key, digest_size=4, person=b"step_exporter id").hexdigest()


def _bytes(place: Sequence[str]) -> bytes:
    return "\0".join(place).encode()
