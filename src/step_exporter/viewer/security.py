"""Who may talk to the server: which names it answers to, which pages may ask, and who has the key.

A server on localhost is reachable by every web page that its user opens. So a request must name a host that is ours
(DNS rebinding), must not come from another origin, and needs the key; no answer allows another origin to read it.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import secrets
import time
from collections.abc import Iterable
from dataclasses import dataclass
from http.cookies import CookieError, SimpleCookie
from urllib.parse import quote

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from step_exporter.errors import ConfigurationError
from step_exporter.viewer.status import Code, media_type, status_response

COOKIE = "step_exporter_session"
SESSION_S = 7 * 24 * 3600
MIN_KEY = 16
"""Characters of a key that somebody chose."""
LOOPBACK = ("localhost", "127.0.0.1", "[::1]")

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self';"
    " connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
_SAFE = frozenset({"GET", "HEAD"})
_OTLP = "/v1/"
_OPEN = ("/login", "/static/")
"""What needs no key: it holds nothing of anybody's."""


@dataclass(frozen=True)
class Access:
    """What is checked."""

    key: str | None
    """The API key; None where none is asked for."""
    hosts: frozenset[str]
    """Exact values of ``Host``."""
    otlp_is_open: bool
    """Whether spans are taken without the key: where only this machine can send them."""

    @property
    def origins(self) -> frozenset[str]:
        """Exact values of ``Origin``."""
        return frozenset(f"{scheme}://{host}" for host in self.hosts for scheme in ("http", "https"))


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a server that listens there."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def make_access(
    host: str, port: int, *, key: str | None = None, names: Iterable[str] = (), unsafe_no_token: bool = False
) -> Access:
    """The access to a server on ``host`` and ``port``.

    Args:
        host: Where it listens.
        port: Where it listens.
        key: The API key; None makes one where it listens on loopback.
        names: Further names that it is reached by, ``name`` or ``name:port``.
        unsafe_no_token: Ask nobody for a key.

    Raises ``ConfigurationError`` for a key that is too short, for a name that is none, and for a server that others can
    reach without a key.
    """
    local = is_loopback(host)
    if key is not None and len(key) < MIN_KEY:
        raise ConfigurationError(f"The token has {len(key)} characters; give at least {MIN_KEY}, such as a random one.")
    if key is None and not local and not unsafe_no_token:
        raise ConfigurationError(
            f"{host} can be reached from other machines, and whoever reaches it reads every prompt and answer. "
            "Set STEP_EXPORTER_TOKEN to a secret, or listen on 127.0.0.1 (or add --unsafe-no-token)."
        )
    hosts = {f"{name}:{port}" for name in LOOPBACK}
    if host not in ("0.0.0.0", "::", ""):
        hosts.add(f"[{host.strip('[]')}]:{port}" if ":" in host else f"{host.lower()}:{port}")
    for name in names:
        name = name.strip().lower()
        if not name or "/" in name:
            raise ConfigurationError(f"--allow-host is a host, or host:port, as browsers send it, not {name!r:.60}.")
        hosts.add(name)
        if ":" not in name.rpartition("]")[2]:
            hosts.add(f"{name}:{port}")
    if port in (80, 443):
        hosts |= {known.removesuffix(f":{port}") for known in hosts}
    token = None if unsafe_no_token else key or secrets.token_urlsafe(32)
    return Access(token, frozenset(hosts), local or token is None)


class Sessions:
    """Browsers that have shown the key, or a link that works once.

    A session is the time of its making, signed with the key, so that every replica with the same key knows it.
    """

    def __init__(self, key: str | None) -> None:
        self._key = (key or secrets.token_urlsafe(32)).encode()
        self._codes: set[str] = set()

    def new_code(self) -> str:
        """A code for one login, in a link."""
        code = secrets.token_urlsafe(24)
        self._codes.add(code)
        return code

    def redeem(self, code: str) -> bool:
        """Whether the code was good; now it no longer is."""
        if code not in self._codes:
            return False
        self._codes.discard(code)
        return True

    def matches(self, key: str) -> bool:
        """Whether it is the key."""
        return hmac.compare_digest(key.encode("utf-8", "replace"), self._key)

    def new_session(self) -> str:
        """The value of a session cookie."""
        made = str(int(time.time()))
        return f"{made}.{self._sign(made)}"

    def is_session(self, value: str) -> bool:
        """Whether the cookie is one of ours and not too old."""
        made, _, signature = value.partition(".")
        if not (made.isascii() and made.isdigit() and len(made) < 20):
            return False
        fresh = 0 <= time.time() - int(made) <= SESSION_S
        return fresh and hmac.compare_digest(signature.encode("utf-8", "replace"), self._sign(made).encode())

    def _sign(self, made: str) -> str:
        return hmac.new(self._key, b"session " + made.encode(), hashlib.sha256).hexdigest()


class Gate:
    """The middleware in front of everything."""

    def __init__(self, app: ASGIApp, access: Access, sessions: Sessions) -> None:
        self._app = app
        self._access = access
        self._origins = access.origins
        self._sessions = sessions

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or let the app answer."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return

        async def send_safely(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers[name] = value
                headers.setdefault("Cache-Control", "no-store")
            await send(message)

        refusal = self._refusal(scope)
        await (refusal or self._app)(scope, receive, send_safely)

    def _refusal(self, scope: Scope) -> Response | None:
        headers = Headers(scope=scope)
        path, method = scope["path"], scope["method"]
        hosts = headers.getlist("host")
        if len(hosts) != 1 or hosts[0].lower() not in self._access.hosts:
            name = hosts[0] if len(hosts) == 1 else "missing, or there several times"
            return _refused(
                headers, 403, f"Host {name!r:.100} is not a name of this server; --allow-host makes it one.", path
            )
        origin = headers.get("origin")
        if origin is not None and origin not in self._origins and not _is_own_form(headers, path):
            return _refused(headers, 403, f"Requests from {origin!r:.100} are not answered.", path)
        if _is_from_another_site(headers, method):
            return _refused(headers, 403, "Requests from other sites are not answered.", path)
        if self._access.key is None or path.startswith(_OPEN):
            return None
        if path.startswith(_OTLP) and self._access.otlp_is_open:
            return None
        if self._has_key(headers):
            return None
        if self._has_session(headers):
            if method not in _SAFE and origin is None:
                return _refused(headers, 403, "A browser that changes something says its Origin.", path)
            return None
        if method in _SAFE and not path.startswith(("/api/", _OTLP)):
            query = scope["query_string"].decode("latin-1")
            return RedirectResponse(f"/login?next={quote(path + (f'?{query}' if query else ''), safe='/')}", 303)
        return _refused(headers, 401, "This needs the API key: Authorization: Bearer KEY.", path)

    def _has_key(self, headers: Headers) -> bool:
        kind, _, key = headers.get("authorization", "").partition(" ")
        if kind.lower() == "bearer" and self._sessions.matches(key.strip()):
            return True
        return self._sessions.matches(headers.get("x-api-key", ""))

    def _has_session(self, headers: Headers) -> bool:
        try:
            cookie = SimpleCookie(headers.get("cookie", "")).get(COOKIE)
        except CookieError:
            return False
        return cookie is not None and self._sessions.is_session(cookie.value)


def _is_own_form(headers: Headers, path: str) -> bool:
    """Browsers write ``Origin: null`` on the forms of pages without a referrer, as ours are. Whether it was a page of
    ours only ``Sec-Fetch-Site`` says, which they send to localhost and over TLS; a login carries the key itself."""
    own = headers.get("sec-fetch-site") == "same-origin" or path == "/login"
    return headers.get("origin") == "null" and own


def _is_from_another_site(headers: Headers, method: str) -> bool:
    """What browsers say of themselves. Following a link is fine: its answer is a page that nobody else can read."""
    if headers.get("sec-fetch-site", "none") in ("none", "same-origin"):
        return False
    return not (
        method in _SAFE
        and headers.get("sec-fetch-mode") == "navigate"
        and headers.get("sec-fetch-dest", "document") == "document"
    )


def _refused(headers: Headers, status: int, message: str, path: str) -> Response:
    if path.startswith(_OTLP):
        code = Code.UNAUTHENTICATED if status == 401 else Code.PERMISSION_DENIED
        return status_response(media_type(headers.get("content-type", "")), status, code, message)
    challenge = {"WWW-Authenticate": "Bearer"} if status == 401 else None
    return JSONResponse({"error": message}, status, challenge)
