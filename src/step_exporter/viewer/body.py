"""Request bodies, read with a limit on what they are and on what they unpack to."""

from __future__ import annotations

import zlib
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, contextmanager

import anyio
from starlette.requests import ClientDisconnect, Request

MAX_BODY = 64 * 1024 * 1024
"""Bytes of one body, as sent and unpacked; what the Collector's HTTP receivers allow by default is 20 MiB."""
MAX_HELD = 4 * MAX_BODY
"""Bytes of all bodies that are held at one moment."""
BODY_TIMEOUT_S = 30


class BodyError(Exception):
    """A body that is not taken, with the status to answer."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Bodies:
    """Reads bodies, and knows how many bytes of them are held."""

    def __init__(self, max_body: int = MAX_BODY, max_held: int = MAX_HELD, timeout_s: float = BODY_TIMEOUT_S) -> None:
        self.max_body = max_body
        self._max_held = max_held
        self._timeout_s = timeout_s
        self._held = 0

    @asynccontextmanager
    async def read(self, request: Request) -> AsyncGenerator[bytes]:
        """The body, unpacked; its bytes count as held until the block ends.

        Raises ``BodyError``: 400 undecodable or left off, 408 too slow, 413 too large, 415 another encoding, 503 too
        much at once.
        """
        encoding = request.headers.get("content-encoding", "identity").strip().lower()
        if encoding not in ("identity", "gzip", ""):
            raise BodyError(415, f"Content-Encoding {encoding!r:.40} is not taken; send gzip or none.")
        length = request.headers.get("content-length", "")
        if length.isascii() and length.isdigit() and int(length[:20]) > self.max_body:
            raise self._too_large()
        with self._holding() as hold:
            unpack = _Gunzip(self.max_body) if encoding == "gzip" else None
            parts: list[bytes] = []
            sent = size = 0
            try:
                with anyio.fail_after(self._timeout_s):
                    async for chunk in request.stream():
                        sent += len(chunk)
                        part = unpack.feed(chunk) if unpack else chunk
                        size += len(part)
                        if sent > self.max_body or size > self.max_body:
                            raise self._too_large()
                        hold(len(part))
                        parts.append(part)
            except TimeoutError:
                raise BodyError(408, f"The body did not come within {self._timeout_s:g} s.") from None
            except ClientDisconnect:
                raise BodyError(400, "The connection ended within the body.") from None
            if unpack and not unpack.is_complete:
                raise BodyError(400, "The gzip body ends too early.")
            yield b"".join(parts)

    def _too_large(self) -> BodyError:
        return BodyError(413, f"The body is larger than {self.max_body:,} bytes unpacked; send smaller batches.")

    @contextmanager
    def _holding(self) -> Generator[_Hold]:
        hold = _Hold(self)
        try:
            yield hold
        finally:
            self._held -= hold.size

    def add(self, size: int) -> None:
        """Count bytes as held. Raises ``BodyError`` 503 beyond the limit."""
        if self._held + size > self._max_held:
            raise BodyError(503, "Too much is being received at once; send it again in a moment.")
        self._held += size


class _Hold:
    """The bytes that one request holds."""

    def __init__(self, bodies: Bodies) -> None:
        self._bodies = bodies
        self.size = 0

    def __call__(self, size: int) -> None:
        self._bodies.add(size)
        self.size += size


class _Gunzip:
    """gzip, unpacked as it comes, never by more than the limit."""

    def __init__(self, limit: int) -> None:
        self._left = limit + 1
        self._member = zlib.decompressobj(31)  # 31: a gzip header is required
        self._started = False

    @property
    def is_complete(self) -> bool:
        return self._started and self._member.eof

    def feed(self, data: bytes) -> bytes:
        """What the bytes unpack to. One byte beyond the limit says that there is more; the rest is not unpacked."""
        parts: list[bytes] = []
        try:
            while data and self._left:
                if self._member.eof:  # a file may have several members, one after the other
                    self._member = zlib.decompressobj(31)
                self._started = True
                part = self._member.decompress(data, self._left)
                self._left -= len(part)
                parts.append(part)
                data = self._member.unused_data
        except zlib.error as error:
            raise BodyError(400, f"The body is not gzip: {error}") from None
        return b"".join(parts)
