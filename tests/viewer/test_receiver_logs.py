"""Log events that carry message content become messages of their span, whichever comes first."""

from __future__ import annotations

import io
import json
import random
from pathlib import Path
from typing import Any

import pytest
from opentelemetry._logs import LogRecord
from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest, ExportLogsServiceResponse
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import SimpleLogRecordProcessor
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from otlp_protobuf import to_protobuf
from rich.console import Console
from viewer_server import Answer, Serve, Server
from viewer_spans import START, attributes, document, span

from dumps import DERIVED, Dump, clear, dump, opened
from step_exporter.cli.imports import import_files
from step_exporter.store.rebuild import rebuild, verify

pytestmark = pytest.mark.once

TRACE = 0xB1
CHAT = {"gen_ai.operation.name": "chat", "gen_ai.request.model": "m", "gen_ai.usage.input_tokens": 9}
SPANS = [
    span(TRACE, 1, None, "invoke_agent a", 0, 9, has={"gen_ai.operation.name": "invoke_agent"}),
    span(TRACE, 2, 1, "chat m", 1, 1, has=CHAT),
    span(TRACE, 3, 1, "execute_tool look", 2, 1, has={"gen_ai.operation.name": "execute_tool"}),
    span(TRACE, 4, 1, "chat m", 4, 1, has=CHAT),
]
CALL = {"id": "call-1", "type": "function", "function": {"name": "look", "arguments": '{"at": "it"}'}}


def value(of: Any) -> dict[str, Any]:
    if isinstance(of, dict):
        return {"kvlistValue": {"values": [{"key": key, "value": value(item)} for key, item in of.items()]}}
    if isinstance(of, list):
        return {"arrayValue": {"values": [value(item) for item in of]}}
    return {"intValue": str(of)} if isinstance(of, int) else {"stringValue": of}


def record(about: int, at: int, name: str, body: Any = None, **fields: Any) -> dict[str, Any]:
    made = {
        "timeUnixNano": str(START + at * 10**9),
        "eventName": name,
        "traceId": f"{TRACE:032x}",
        "spanId": f"{about:016x}",
        "attributes": attributes({"gen_ai.system": "openai"}),
        **fields,
    }
    return made if body is None else {**made, "body": value(body)}


RECORDS = [
    record(2, 1, "gen_ai.system.message", {"content": "Be brief."}),
    record(2, 2, "gen_ai.user.message", {"content": "What is it?"}),
    record(2, 3, "gen_ai.choice", {"index": 0, "finish_reason": "tool_calls", "message": {"tool_calls": [CALL]}}),
    record(4, 4, "gen_ai.system.message", {"content": "Be brief."}),
    record(4, 5, "gen_ai.user.message", {"content": "What is it?"}),
    record(4, 6, "gen_ai.assistant.message", {"tool_calls": [CALL]}),
    record(4, 7, "gen_ai.tool.message", {"id": "call-1", "content": "a cat"}),
    record(4, 8, "gen_ai.choice", {"index": 0, "finish_reason": "stop", "message": {"content": "A cat."}}),
]
SAID = [
    ("system", "Be brief."),
    ("user", "What is it?"),
    ("assistant", "look"),
    ("tool", "a cat"),
    ("assistant", {"content": "A cat."}),
]


def logs(*records: dict[str, Any]) -> dict[str, Any]:
    scope = {"scope": {"name": "opentelemetry.instrumentation.openai_v2"}, "logRecords": list(records)}
    return {"resourceLogs": [{"resource": {"attributes": attributes({"service.name": "shop"})}, "scopeLogs": [scope]}]}


def send_logs(server: Server, sent: dict[str, Any], *, protobuf: bool = False) -> Answer:
    if protobuf:
        return server.ask("POST", "/v1/logs", to_protobuf(sent), {"Content-Type": "application/x-protobuf"}, key=False)
    return server.ask("POST", "/v1/logs", json.dumps(sent), {"Content-Type": "application/json"}, key=False)


def said(server: Server) -> list[tuple[str, Any]]:
    with server.store() as store:
        return [
            (each.role, each.tool_calls[0]["name"] if each.tool_calls else each.content)
            for each in store.messages(f"{TRACE:032x}")
        ]


def test_the_sdks_log_exporter_says_what_the_span_does_not(server: Server) -> None:
    tracing, logging = TracerProvider(), LoggerProvider()
    tracing.add_span_processor(SimpleSpanProcessor(OTLPSpanExporter(f"{server.base}/v1/traces")))
    logging.add_log_record_processor(SimpleLogRecordProcessor(OTLPLogExporter(f"{server.base}/v1/logs")))
    logger = logging.get_logger("app")
    with tracing.get_tracer("app").start_as_current_span("chat m", attributes=CHAT) as sent:
        logger.emit(LogRecord(event_name="gen_ai.user.message", body={"content": "What is it?"}))
        logger.emit(LogRecord(body="of the app itself"))
        choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "A cat."}}
        logger.emit(LogRecord(event_name="gen_ai.choice", body=choice))
    for provider in (logging, tracing):
        provider.shutdown()
    with server.store() as store:
        (step,) = store.steps()
        found = store.messages(f"{sent.get_span_context().trace_id:032x}")
    assert [(each.role, each.step_id) for each in found] == [("user", step.id), ("assistant", step.id)]
    assert found[0].content == "What is it?"


def _rows(url: str) -> Dump:
    with opened(url) as engine:
        return dump(engine, *DERIVED, "spans", "contents")


def test_any_order_and_duplicates_leave_the_same_rows(serve: Serve, database_url: str) -> None:
    server = serve(database_url)
    server.send(document(*SPANS))
    assert send_logs(server, logs(*RECORDS)).json == {}
    assert said(server) == SAID
    expected = _rows(server.url)
    assert len(expected["spans"]) == len(SPANS) + len(RECORDS)
    for seed in range(5):
        with opened(server.url) as engine:
            clear(engine)
        chance = random.Random(seed)
        sent = [*SPANS, *RECORDS, *chance.sample([*SPANS, *RECORDS], 4)]
        chance.shuffle(sent)
        for each in sent:
            if "eventName" in each:
                assert send_logs(server, logs(each), protobuf=chance.random() < 0.5).status == 200
            else:
                assert server.send(document(each)).status == 200
        assert _rows(server.url) == expected
        with opened(server.url) as engine:
            assert list(verify(engine)) == []


def test_a_record_that_completes_a_request_leaves_its_step_and_numbers(server: Server) -> None:
    server.send(document(*SPANS))
    before = _rows(server.url)
    send_logs(server, logs(*RECORDS))
    after = _rows(server.url)
    for table in ("runs", "step_metrics", "steps"):
        assert after[table] == before[table]


def test_rebuild_and_a_round_trip_by_file_give_the_same_rows(server: Server, tmp_path: Path) -> None:
    send_logs(server, logs(*RECORDS))
    server.send(document(*SPANS))
    expected = _rows(server.url)
    with opened(server.url) as engine:
        rebuild(engine)
    assert _rows(server.url) == expected
    file, url = tmp_path / "traces.jsonl", f"sqlite:///{tmp_path / 'again.db'}"
    with server.store() as store:
        store.export(file, "otlp")
    assert import_files([file], url, Console(stderr=True)).problems == []
    assert _rows(url) == expected


def test_a_file_with_records_gives_the_same_rows(server: Server, tmp_path: Path) -> None:
    server.send(document(*SPANS))
    send_logs(server, logs(*RECORDS))
    other = record(2, 1, "app.started", {"content": "x"})
    wrong = record(2, 1, "gen_ai.user.message", {"content": "x"}, traceId="xyz")
    both = {**document(*SPANS[2:]), **logs(*RECORDS[4:])}
    file, url = tmp_path / "all.jsonl", f"sqlite:///{tmp_path / 'again.db'}"
    lines = [logs(*RECORDS[:2]), document(*SPANS[:2]), logs(other, wrong, *RECORDS[2:4]), {"resourceMetrics": []}, both]
    file.write_text("\n".join(map(json.dumps, lines)))
    for _ in range(2):
        summary = import_files([file], url, Console(file=io.StringIO()))
        assert (summary.spans, summary.records, len(summary.traces)) == (len(SPANS), len(RECORDS), 1)
        [problem] = summary.problems
        assert problem.startswith(f"{file}:3: span 'gen_ai.user.message': trace id 'xyz'")
        assert str(summary) == "imported 4 spans and 8 log records of 1 trace from 1 file (1 problem)"
        assert _rows(url) == _rows(server.url)


def test_late_records_do_not_bring_a_deleted_trace_back(server: Server) -> None:
    server.send(document(*SPANS))
    send_logs(server, logs(*RECORDS[:3]))
    with server.store() as store:
        assert store.delete(trace_id=f"{TRACE:032x}") == 1
    assert send_logs(server, logs(*RECORDS)).status == 200
    assert [rows for table, rows in _rows(server.url).items() if table in DERIVED and rows] == []


def test_one_event_may_carry_all_of_a_request(server: Server) -> None:
    messages = {
        "gen_ai.system_instructions": [{"type": "text", "content": "Be brief."}],
        "gen_ai.input.messages": [{"role": "user", "parts": [{"type": "text", "content": "What is it?"}]}],
        "gen_ai.output.messages": [{"role": "assistant", "parts": [{"type": "text", "content": "A cat."}]}],
    }
    given = [{"key": key, "value": value(item)} for key, item in messages.items()]
    name = "gen_ai.client.inference.operation.details"
    assert send_logs(server, logs(record(2, 1, name, attributes=given)), protobuf=True).body == b""
    server.send(document(*SPANS))
    with server.store() as store:
        assert [each.role for each in store.messages(f"{TRACE:032x}")] == ["system", "user", "assistant"]


def test_what_names_the_event_may_be_an_attribute_and_its_time_the_observed_one(server: Server) -> None:
    old = record(2, 1, "", {"content": "Hi"}, attributes=attributes({"event.name": "gen_ai.user.message"}))
    old |= {"timeUnixNano": "0", "observedTimeUnixNano": str(START)}
    assert send_logs(server, logs(old)).json == {}
    assert send_logs(server, logs(old), protobuf=True).body == b""
    with server.store() as store:
        (found,) = store.trace(f"{TRACE:032x}").spans
    assert (found.name, found.start_ns, found.parent_span_id) == ("gen_ai.user.message", START, f"{2:016x}")


def test_other_records_are_let_go(server: Server) -> None:
    others = [
        record(2, 1, "app.started", {"content": "x"}),
        record(2, 1, "gen_ai.user.message", {"role": "user"}),  # its content was not recorded
        record(2, 1, "gen_ai.user.message", {"content": "x"}, traceId=""),
        record(2, 1, "gen_ai.user.message", {"content": "x"}, spanId=""),
        {"body": {"stringValue": "a line"}},
    ]
    for protobuf in (False, True):
        assert send_logs(server, logs(*others), protobuf=protobuf).status == 200
    with opened(server.url) as engine:
        assert dump(engine, "spans", "traces") == {"spans": [], "traces": []}


def test_a_record_with_a_wrong_id_is_rejected_and_its_neighbour_stored(server: Server) -> None:
    wrong = record(2, 1, "gen_ai.user.message", {"content": "x"}, traceId="xyz")
    partial = send_logs(server, logs(wrong, RECORDS[0])).json["partialSuccess"]
    assert (partial["rejectedLogRecords"], "xyz" in partial["errorMessage"]) == ("1", True)
    body = ExportLogsServiceRequest.FromString(to_protobuf(logs(RECORDS[0])))
    body.resource_logs[0].scope_logs[0].log_records[0].trace_id = b"short"
    sent = body.SerializeToString()
    answer = server.ask("POST", "/v1/logs", sent, {"Content-Type": "application/x-protobuf"}, key=False)
    assert ExportLogsServiceResponse.FromString(answer.body).partial_success.rejected_log_records == 1


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b'{"resourceSpans": []}'])
def test_what_is_no_otlp_is_a_400(server: Server, body: bytes) -> None:
    assert server.ask("POST", "/v1/logs", body, {"Content-Type": "application/json"}, key=False).status == 400
