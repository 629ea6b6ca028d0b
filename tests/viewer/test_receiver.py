"""OTLP/HTTP: what a sender is told, and what is stored then."""

from __future__ import annotations

import gzip
import json
import sqlite3
import threading

import pytest
from google.rpc.status_pb2 import Status
from opentelemetry.exporter.otlp.proto.http import Compression
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from sqlalchemy import create_engine, text
from viewer_server import Serve, Server
from viewer_spans import agent_run, document, span

from step_exporter.viewer import receiver
from step_exporter.viewer.body import Bodies

PROTOBUF = "application/x-protobuf"


@pytest.mark.parametrize("compression", [Compression.NoCompression, Compression.Gzip])
def test_the_sdks_exporter_sends_a_step(server: Server, compression: Compression) -> None:
    provider = TracerProvider()
    exporter = OTLPSpanExporter(f"{server.base}/v1/traces", compression=compression)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    with provider.get_tracer("app").start_as_current_span("chat m") as sent:
        sent.set_attributes({"gen_ai.operation.name": "chat", "gen_ai.request.model": "m"})
    provider.shutdown()
    with server.store() as store:
        (step,) = store.steps()
    assert step.model == "m"
    assert step.trace_id == f"{sent.get_span_context().trace_id:032x}"


def test_the_sdks_json_exporter_sends_a_step(server: Server) -> None:
    """Not among the tests' requirements: it pins other versions of its parts than the protobuf one does."""
    twin = pytest.importorskip("opentelemetry.exporter.otlp.json.http.trace_exporter")
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(twin.OTLPSpanExporter(f"{server.base}/v1/traces")))
    with provider.get_tracer("app").start_as_current_span("chat m") as sent:
        sent.set_attributes({"gen_ai.operation.name": "chat", "gen_ai.request.model": "m"})
    provider.shutdown()
    with server.store() as store:
        (step,) = store.steps()
    assert (step.model, step.trace_id) == ("m", f"{sent.get_span_context().trace_id:032x}")


def test_json_is_answered_in_json_and_stored_before_the_answer(server: Server) -> None:
    answer = server.send(agent_run())
    assert (answer.status, answer.json, answer.headers["content-type"]) == (200, {}, "application/json")
    with server.store() as store:
        assert len(store.steps()) == 2


def test_both_engines_take_spans_from_two_replicas_once(serve: Serve, database_url: str) -> None:
    one, other = serve(database_url), serve(database_url)
    bodies = [agent_run(trace) for trace in range(1, 9)]
    answers: list[int] = []

    def post(server: Server) -> None:
        answers.extend(server.send(body).status for body in bodies)

    threads = [threading.Thread(target=post, args=(server,)) for server in (one, other, one, other)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(answers) == {200}
    with one.store() as store:
        assert len(store.steps()) == 16
    engine = create_engine(database_url.replace("postgresql://", "postgresql+psycopg://"))
    with engine.connect() as conn:
        assert conn.execute(text("SELECT count(*) FROM spans")).scalar() == 32
        assert conn.execute(text("SELECT count(*) FROM quarantine")).scalar() == 0
    engine.dispose()


def test_a_span_without_an_id_is_rejected_and_its_neighbour_stored(server: Server) -> None:
    good, bad = span(1, 1, None, "good", 0, 1), {**span(1, 2, None, "bad", 0, 1), "traceId": "xyz"}
    partial = server.send(document(bad, good)).json["partialSuccess"]
    assert partial["rejectedSpans"] == "1"
    assert "xyz" in partial["errorMessage"]
    with server.store() as store:
        assert [found.name for found in store.trace(f"{1:032x}").spans] == ["good"]


def test_partial_success_in_protobuf(server: Server) -> None:
    body = bytes([0x0A, 8, 0x12, 6, 0x12, 4, 0x2A, 2]) + b"hi"  # one span, named hi, without ids
    answer = server.send(body, PROTOBUF)
    response = ExportTraceServiceResponse.FromString(answer.body)
    assert (answer.status, response.partial_success.rejected_spans) == (200, 1)


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'{"spans": 1}', b"[" * 100_000, b'{"resourceSpans":' * 5000])
def test_what_is_no_otlp_json_is_a_400_with_a_status(server: Server, body: bytes) -> None:
    answer = server.send(body)
    assert answer.status == 400
    assert answer.json["code"] == 3
    assert answer.json["message"]


@pytest.mark.parametrize("body", [b"\xff" * 10, b"\x0a\xff\xff\xff\xff\x07", b"\x0a\x02\x12\x05"])
def test_what_is_no_protobuf_is_a_400_with_a_protobuf_status(server: Server, body: bytes) -> None:
    answer = server.send(body, PROTOBUF)
    assert (answer.status, answer.headers["content-type"]) == (400, PROTOBUF)
    assert Status.FromString(answer.body).code == 3


def test_g10_deeply_nested_protobuf_is_a_400(server: Server) -> None:
    value = b""
    for _ in range(300):  # an array in an array …
        value = b"\x2a" + _length(b"\x0a" + _length(value))
    attribute = b"\x0a\x01k\x12" + _length(value)
    body = b"\x0a" + _length(b"\x12" + _length(b"\x12" + _length(b"\x4a" + _length(attribute))))
    assert server.send(body, PROTOBUF).status == 400


def _length(body: bytes) -> bytes:
    size, varint = len(body), b""
    while size > 127:
        varint += bytes([size & 127 | 128])
        size >>= 7
    return varint + bytes([size]) + body


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", ""])
def test_other_content_types_are_a_415(server: Server, kind: str) -> None:
    assert server.send(b"{}", kind).status == 415


def test_g9_a_gzip_bomb_is_a_413_and_the_next_request_is_served(serve: Serve, sqlite_url: str) -> None:
    server = serve(sqlite_url, bodies=Bodies(max_body=1_000_000))
    for bomb in (gzip.compress(bytes(200_000_000)), gzip.compress(bytes(900_000)) * 20):
        answer = server.send(bomb, **{"Content-Encoding": "gzip"})
        assert (answer.status, answer.json["code"]) == (413, 8)
    assert server.send(agent_run()).status == 200


def test_g9_a_body_that_says_or_is_too_much_is_a_413(serve: Serve, sqlite_url: str) -> None:
    server = serve(sqlite_url, bodies=Bodies(max_body=1000))
    assert server.send(b" " * 1001).status == 413
    parts = iter([b" " * 600, b" " * 600])
    chunked = {"Content-Type": "application/json"}
    assert server.ask("POST", "/v1/traces", parts, chunked, key=False).status == 413


def test_g9_a_body_that_never_ends_is_given_up(serve: Serve, sqlite_url: str) -> None:
    server = serve(sqlite_url, bodies=Bodies(timeout_s=0.2))
    headers = {"Content-Type": "application/json", "Content-Length": "100"}
    assert server.ask("POST", "/v1/traces", b"{", headers, key=False).status == 408


@pytest.mark.parametrize(
    "body",
    [b"no gzip", gzip.compress(b'{"resourceSpans":[]}')[:-9], b""],
    ids=["no gzip", "cut off", "empty"],  # gzip holds the time
)
def test_broken_gzip_is_a_400(server: Server, body: bytes) -> None:
    assert server.send(body, **{"Content-Encoding": "gzip"}).status == 400


def test_gzip_of_several_members_is_one_body(server: Server) -> None:
    sent = json.dumps(agent_run()).encode()
    body = gzip.compress(sent[:50]) + gzip.compress(sent[50:])
    assert server.send(body, **{"Content-Encoding": "gzip"}).status == 200


def test_other_encodings_are_a_415(server: Server) -> None:
    assert server.send(b"x", **{"Content-Encoding": "zstd"}).status == 415


def test_a_locked_database_is_a_503_and_the_same_spans_are_taken_later(
    serve: Serve, sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(receiver, "PATIENCE_S", 0)
    server = serve(sqlite_url)
    assert server.send(agent_run(1)).status == 200
    lock = sqlite3.connect(sqlite_url.removeprefix("sqlite:///"), isolation_level=None)
    lock.execute("BEGIN IMMEDIATE")
    answer = server.send(agent_run(2))
    assert (answer.status, answer.headers["retry-after"], answer.json["code"]) == (503, "1", 14)
    lock.execute("ROLLBACK")
    lock.close()
    assert server.send(agent_run(2)).status == 200


def test_a_database_that_is_away_is_a_503_without_its_password(serve: Serve) -> None:
    server = serve("postgresql://me:secret-word@127.0.0.1:1/none")
    answer = server.send(agent_run())
    assert answer.status == 503
    assert b"secret-word" not in answer.body + server.get("/").body + server.get("/api/steps").body


@pytest.mark.parametrize("path", ["/v1/metrics", "/v1/logs"])
def test_metrics_and_logs_without_messages_are_taken_and_let_go(server: Server, path: str) -> None:
    answer = server.ask("POST", path, b"{}", {"Content-Type": "application/json"}, key=False)
    assert (answer.status, answer.body) == (200, b"{}")
    answer = server.ask("POST", path, b"\x0a\x00", {"Content-Type": PROTOBUF}, key=False)
    assert (answer.status, answer.body) == (200, b"")


def test_other_methods_are_a_405(server: Server) -> None:
    assert server.get("/v1/traces").status == 405


def test_hostile_text_is_stored_and_shown_escaped(server: Server) -> None:
    evil = "<script>alert(1)</script>\x00\ud800\u202e"
    body = json.dumps(document(span(7, 1, None, evil, 0, 1, has={evil: evil, "n": -(2**70)}))).encode()
    assert server.send(body).json == {}
    page = server.get(f"/traces/{7:032x}?span={1:016x}")
    assert page.status == 200
    assert "<script>alert" not in page.text
    assert "&lt;script&gt;" in page.text
    assert "\u202e" not in page.text
