"""Whatever is sent to the receiver, it answers, and never with a 500. ``STEP_EXPORTER_FUZZ=10000`` sends more."""

from __future__ import annotations

import gzip
import json
import os
import random

import psutil
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from viewer_server import Server
from viewer_spans import agent_run

from step_exporter.otlp import decode_json

REQUESTS = int(os.environ.get("STEP_EXPORTER_FUZZ", "300"))
MAX_GROWTH = 200 * 1024 * 1024


def _protobuf() -> bytes:
    request = ExportTraceServiceRequest()
    group = request.resource_spans.add().scope_spans.add()
    for raw in decode_json(agent_run()):
        made = group.spans.add()
        made.trace_id, made.span_id = bytes.fromhex(raw.trace_id), bytes.fromhex(raw.span_id)
        made.name, made.start_time_unix_nano = raw.name, raw.start_ns or 0
        made.attributes.add(key="gen_ai.operation.name").value.string_value = "chat"
    return request.SerializeToString()


def _broken(body: bytes, chance: random.Random) -> bytes:
    changed = bytearray(body)
    for _ in range(chance.randint(1, 8)):
        at = chance.randrange(len(changed))
        match chance.randrange(4):
            case 0:
                changed[at] = chance.randrange(256)
            case 1:
                del changed[at : at + chance.randint(1, 20)]
            case 2:
                changed[at:at] = chance.randbytes(chance.randint(1, 20))
            case _:
                changed[at:at] = changed[: chance.randint(1, 200)]
        if not changed:
            changed = bytearray(b"{")
    return bytes(changed)


def test_no_request_breaks_the_receiver(server: Server) -> None:
    chance = random.Random(20)
    texts, messages = json.dumps(agent_run()).encode(), _protobuf()
    kinds = {"application/json": texts, "application/x-protobuf": messages}
    process = psutil.Process()
    before = None
    for number in range(REQUESTS):
        kind = chance.choice(list(kinds))
        body = _broken(kinds[kind], chance)
        headers = {}
        if chance.random() < 0.3:
            headers["Content-Encoding"] = chance.choice(["gzip", "deflate", "identity", "\xff"])
            body = gzip.compress(body) if chance.random() < 0.7 else body
            body = _broken(body, chance) if chance.random() < 0.3 else body
        answer = server.send(body, kind, **headers)
        assert answer.status in (200, 400, 413, 415), (answer, body)
        if number == REQUESTS // 5:
            before = process.memory_info().rss
    assert before is not None
    assert process.memory_info().rss - before < MAX_GROWTH
    assert server.send(agent_run()).status == 200
    assert server.get("/").status == 200
