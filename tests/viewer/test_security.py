"""Who is answered: names, origins, keys, sessions. And what a page can do to the browser that shows it."""

from __future__ import annotations

import socket
from urllib.parse import quote

import pytest
from viewer_server import KEY, Serve, Server
from viewer_spans import agent_run

from step_exporter.errors import ConfigurationError
from step_exporter.viewer.security import COOKIE, Sessions, is_loopback, make_access

EVIL = "http://evil.test"
JSON = {"Content-Type": "application/json"}


@pytest.mark.parametrize("host", ["evil.test", "evil.test:{port}", "127.0.0.1", "127.0.0.1:1", "0.0.0.0:{port}",
                                  "localhost:{port}@evil.test", "localhost.evil.test:{port}", "[::]:1"])  # fmt: skip
def test_g5_names_that_are_not_ours_are_refused(server: Server, host: str) -> None:
    for path in ("/", "/login", "/static/app.js", "/api/steps"):
        assert server.get(path, Host=host.format(port=server.port)).status == 403
    assert server.send(agent_run(), Host=host.format(port=server.port)).status == 403


@pytest.mark.parametrize("host", ["localhost:{port}", "127.0.0.1:{port}", "[::1]:{port}", "LOCALHOST:{port}"])
def test_loopback_has_three_names(server: Server, host: str) -> None:
    assert server.get("/", Host=host.format(port=server.port)).status == 200


def test_g5_a_missing_or_a_second_host_is_refused(server: Server) -> None:
    for lines in ("", f"Host: 127.0.0.1:{server.port}\r\nHost: evil.test\r\n"):
        with socket.create_connection(("127.0.0.1", server.port)) as sock:
            sock.sendall(f"GET / HTTP/1.0\r\n{lines}\r\n".encode())
            assert sock.recv(100).split()[1] in (b"400", b"403")


def test_further_names_can_be_allowed(serve: Serve, sqlite_url: str) -> None:
    server = serve(sqlite_url, names=("steps.example.com",))
    assert server.get("/", Host="steps.example.com").status == 200
    assert server.get("/", Host=f"steps.example.com:{server.port}").status == 200
    assert server.get("/", Host="example.com").status == 403


@pytest.mark.parametrize("origin", [EVIL, "null", "http://localhost", "http://localhost:1", "https://127.0.0.1"])
def test_g6_other_origins_are_refused_and_no_answer_allows_them(server: Server, origin: str) -> None:
    for method, path in (
        ("GET", "/live/runs"),
        ("GET", "/api/steps"),
        ("POST", "/v1/traces"),
        ("OPTIONS", "/v1/traces"),
    ):
        answer = server.ask(method, path, b"{}", {**JSON, "Origin": origin})
        assert answer.status == 403
        assert not any(name.startswith("access-control-") for name in answer.headers)


def test_a_page_of_another_site_cannot_load_parts_but_can_link(server: Server) -> None:
    loaded = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors", "Sec-Fetch-Dest": "script"}
    linked = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}
    assert server.ask("GET", "/", headers=loaded).status == 403
    assert server.ask("GET", "/", headers={**linked, "Sec-Fetch-Dest": "iframe"}).status == 403
    assert server.ask("GET", "/", headers=linked).status == 200


def test_g6_a_websocket_is_refused(server: Server) -> None:
    upgrade = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13"}
    upgrade |= {"Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA==", "Origin": EVIL}
    assert server.ask("GET", "/live/runs", headers=upgrade).status >= 400


def test_without_the_key_pages_ask_for_it_and_the_api_says_401(server: Server) -> None:
    answer = server.ask("GET", "/stats?since=7d", key=False)
    assert (answer.status, answer.headers["location"]) == (303, "/login?next=/stats%3Fsince%3D7d")
    assert server.ask("GET", "/api/steps", key=False).status == 401
    assert server.ask("GET", "/live/runs", key=False).status == 303
    assert server.ask("GET", "/api/steps", headers={"Authorization": "Bearer wrong"}, key=False).status == 401
    assert server.ask("GET", "/api/steps", headers={"X-Api-Key": KEY}, key=False).status == 200


def test_g8_a_link_works_once_and_leaves_no_token_in_the_address(server: Server) -> None:
    link = f"/login?code={server.sessions.new_code()}"
    answer = server.ask("GET", link, key=False)
    assert (answer.status, answer.headers["location"]) == (303, "/")
    cookie = answer.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "samesite=strict" in cookie.lower()
    assert KEY not in cookie
    assert answer.headers["referrer-policy"] == "no-referrer"
    session = {"Cookie": cookie.partition(";")[0]}
    assert server.ask("GET", "/", headers=session, key=False).status == 200
    assert server.ask("GET", link, key=False).status == 403


def test_the_key_logs_in_by_the_form(server: Server) -> None:
    form = {"Content-Type": "application/x-www-form-urlencoded", "Origin": server.base}
    assert server.ask("POST", "/login", "key=wrong", form, key=False).status == 403
    answer = server.ask("POST", "/login", f"key={KEY}&next=/stats", form, key=False)
    assert (answer.status, answer.headers["location"]) == (303, "/stats")


@pytest.mark.parametrize("path", ["https://evil.test", "//evil.test", "/\\evil.test", "javascript:alert(1)"])
def test_a_login_goes_on_to_this_server_only(server: Server, path: str) -> None:
    form = {"Content-Type": "application/x-www-form-urlencoded", "Origin": server.base}
    answer = server.ask("POST", "/login", f"key={KEY}&next={path}", form, key=False)
    assert answer.headers["location"] == "/"


@pytest.mark.parametrize("value", ["", "x", "1.2", f"{10**12}.{'0' * 64}", "9" * 40, "\u00e9.x"])
def test_made_up_sessions_are_none(server: Server, value: str) -> None:
    headers = {"Cookie": f"{COOKIE}={value}".encode("latin-1").decode("latin-1")}
    assert server.ask("GET", "/", headers=headers, key=False).status == 303


def test_a_session_is_good_on_every_replica_with_the_key_and_on_no_other() -> None:
    session = Sessions(KEY).new_session()
    assert Sessions(KEY).is_session(session)
    assert not Sessions("another-key-of-length").is_session(session)


def test_g6_with_a_session_alone_nothing_is_changed_without_an_origin(server: Server) -> None:
    session = {"Cookie": f"{COOKIE}={server.sessions.new_session()}", **JSON}
    path = "/api/steps/x/feedback"
    body = b'{"feedback": "positive"}'
    assert server.ask("POST", path, body, session, key=False).status == 403
    assert server.ask("POST", path, body, {**session, "Origin": EVIL}, key=False).status == 403
    assert server.ask("POST", path, body, {**session, "Origin": server.base}, key=False).status in (404, 503)


def test_g7_beyond_loopback_a_key_is_needed_to_start() -> None:
    for host in ("0.0.0.0", "::", "192.168.1.5", "example.com"):
        with pytest.raises(ConfigurationError, match="STEP_EXPORTER_TOKEN"):
            make_access(host, 4318)
        assert make_access(host, 4318, unsafe_no_token=True).key is None
    with pytest.raises(ConfigurationError, match="16"):
        make_access("0.0.0.0", 4318, key="short")
    assert make_access("127.0.0.1", 4318).key
    for name in ("http://steps.example", "steps.example/", " "):
        with pytest.raises(ConfigurationError, match="--allow-host is a host"):
            make_access("127.0.0.1", 4318, names=[name])


def test_beyond_loopback_spans_need_the_key(serve: Serve, sqlite_url: str) -> None:
    server = serve(sqlite_url, host="192.0.2.1")
    assert server.send(agent_run()).status == 401
    assert server.send(agent_run(), Authorization=f"Bearer {KEY}").status == 200


def test_loopback_is_told_from_the_rest() -> None:
    assert all(map(is_loopback, ("127.0.0.1", "127.9.9.9", "::1", "[::1]", "localhost")))
    assert not any(map(is_loopback, ("0.0.0.0", "::", "10.0.0.1", "localhost.evil.test", "")))


def test_every_answer_says_what_the_browser_may_do(server: Server) -> None:
    for path in ("/", "/nothing", "/static/app.js", "/api/steps", "/login", "/traces/zz"):
        headers = server.get(path).headers
        policy = headers["content-security-policy"]
        assert policy.startswith("default-src 'none'")
        assert "unsafe" not in policy
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"


@pytest.mark.parametrize("path", ["../app.py", "%2e%2e/app.py", "..%2fapp.py", "....//app.py", "%5c..%5capp.py",
                                  "/etc/passwd", "%00", "..%5c..%5capp.py"])  # fmt: skip
def test_g4_nothing_but_static_files_is_served(server: Server, path: str) -> None:
    assert server.get(f"/static/{path}").status == 404


INJECTIONS = (
    "' OR 1=1 --",
    "'; DROP TABLE steps; --",
    "%27",
    "\x00",
    "1) UNION SELECT sql FROM sqlite_master --",
    "\ud7ff",
)


@pytest.mark.parametrize("text", INJECTIONS)
def test_g1_sql_in_a_parameter_is_only_text(server: Server, text: str) -> None:
    server.send(agent_run())
    names = ("q", "agent", "service", "status", "since", "after")
    paths = [f"/?{name}={quote(text)}" for name in names] + [f"/stats?since={quote(text)}"]
    paths += [f"/traces/{quote(text, safe='')}", f"/api/steps/{quote(text, safe='')}"]
    names = ("agent_id", "model", "tags", "order", "limit", "after", "trace_ids", "start_date", "status", "feedback")
    paths += [f"/api/steps?{name}={quote(text)}" for name in names]
    for path in paths:
        answer = server.get(path)
        assert answer.status in (200, 400, 404), path
        assert b"CREATE TABLE" not in answer.body
    with server.store() as store:
        assert len(store.steps()) == 2
