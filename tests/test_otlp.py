"""OTLP in and out: what an emitter wrote is what a RawSpan holds, and the other way round."""

from __future__ import annotations

import base64
import gzip
import json
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.proto.trace.v1.trace_pb2 import TracesData

from step_exporter.errors import InputError
from step_exporter.facts import Event, Link, RawSpan, Resource, Scope
from step_exporter.otlp import Problem, decode_json, decode_protobuf, encode_json, read_file, read_stream

TRACE = "0af7651916cd43dd8448eb211c80319c"
SPAN = "b7ad6b7169203331"
START = 1_795_368_468_304_276_312


def document(*spans: Any, **resource_spans: Any) -> dict[str, Any]:
    return {"resourceSpans": [{"scopeSpans": [{"spans": list(spans)}], **resource_spans}]}


def span(**fields: Any) -> dict[str, Any]:
    return {"traceId": TRACE, "spanId": SPAN, "name": "chat", **fields}


def decode_one(**fields: Any) -> RawSpan:
    [item] = decode_json(document(span(**fields)))
    assert isinstance(item, RawSpan), item
    return item


def attribute(value: Any) -> Any:
    return decode_one(attributes=[{"key": "k", "value": value}]).attributes["k"]


class TestFields:
    def test_a_whole_span(self) -> None:
        fields = span(
            parentSpanId="00F067AA0BA902B7",
            traceState="a=1",
            kind=3,
            startTimeUnixNano=str(START),
            endTimeUnixNano=START + 5,
            attributes=[{"key": "gen_ai.usage.input_tokens", "value": {"intValue": "101"}}],
            events=[{"name": "first", "timeUnixNano": str(START + 1), "droppedAttributesCount": 2}],
            links=[{"traceId": TRACE.upper(), "spanId": SPAN, "traceState": "b=2", "flags": 256}],
            status={"code": 2, "message": "boom"},
            flags=0x303,
            droppedAttributesCount=1,
            droppedEventsCount=2,
            droppedLinksCount=3,
        )
        body = {
            "resourceSpans": [
                {
                    "resource": {"attributes": [{"key": "service.name", "value": {"stringValue": "app"}}]},
                    "schemaUrl": "https://r",
                    "scopeSpans": [
                        {"scope": {"name": "lib", "version": "1"}, "schemaUrl": "https://s", "spans": [fields]}
                    ],
                }
            ]
        }
        assert list(decode_json(json.dumps(body))) == [
            RawSpan(
                trace_id=TRACE,
                span_id=SPAN,
                parent_span_id="00f067aa0ba902b7",
                name="chat",
                kind="client",
                start_ns=START,
                end_ns=START + 5,
                status_code="error",
                status_message="boom",
                attributes={"gen_ai.usage.input_tokens": 101},
                events=(Event("first", START + 1, {}, 2),),
                links=(Link(TRACE, SPAN, "b=2", {}, 0, 256),),
                resource=Resource({"service.name": "app"}, "https://r"),
                scope=Scope("lib", "1", {}, "https://s"),
                trace_flags=3,
                trace_state="a=1",
                parent_is_remote=True,
                dropped_attributes=1,
                dropped_events=2,
                dropped_links=3,
            )
        ]

    @pytest.mark.parametrize(
        ("value", "expected"),
        [
            ({"stringValue": "x"}, "x"),
            ({"stringValue": ""}, ""),
            ({"intValue": "9007199254740993"}, 9007199254740993),
            ({"intValue": -3}, -3),
            ({"intValue": "many"}, "many"),
            ({"doubleValue": 1}, 1.0),
            ({"doubleValue": "Infinity"}, float("inf")),
            ({"boolValue": False}, False),
            ({"bytesValue": base64.b64encode(b"\x00\xff").decode()}, b"\x00\xff"),
            ({"arrayValue": {"values": [{"intValue": 1}, {"stringValue": "b"}]}}, (1, "b")),
            ({"arrayValue": {}}, ()),
            ({"kvlistValue": {"values": [{"key": "a", "value": {"arrayValue": {"values": [{}]}}}]}}, {"a": (None,)}),
            ({}, None),
            (None, None),
        ],
    )
    def test_values_of_every_kind(self, value: Any, expected: Any) -> None:
        found = attribute(value)
        assert found == expected
        assert type(found) is type(expected)

    def test_nan(self) -> None:
        assert attribute({"doubleValue": "NaN"}) != attribute({"doubleValue": "NaN"})

    def test_a_number_that_javascript_wrote_as_null_is_none_and_costs_the_span_nothing(self) -> None:
        assert attribute({"doubleValue": None}) is None

    @pytest.mark.parametrize(("kind", "expected"), [(0, "internal"), ("SPAN_KIND_SERVER", "server"), (17, "internal")])
    def test_kinds_by_number_and_name(self, kind: Any, expected: str) -> None:
        assert decode_one(kind=kind).kind == expected

    def test_status_by_name(self) -> None:
        assert decode_one(status={"code": "STATUS_CODE_OK"}).status_code == "ok"

    @pytest.mark.parametrize("end", [{}, {"endTimeUnixNano": 0}, {"endTimeUnixNano": "0"}])
    def test_a_span_without_an_end_has_ended_at_an_unknown_time(self, end: dict[str, Any]) -> None:
        item = decode_one(**end)
        assert item.ended
        assert item.end_ns is None

    def test_a_time_beyond_63_bits_is_passed_on(self) -> None:
        assert decode_one(startTimeUnixNano=str(2**64 - 1)).start_ns == 2**64 - 1

    @pytest.mark.parametrize(("flags", "remote"), [(0, None), (1, None), (0x100, False), (0x300, True), (0x200, None)])
    def test_whether_the_parent_was_remote(self, flags: int, remote: bool | None) -> None:
        assert decode_one(flags=flags).parent_is_remote is remote

    def test_ids_in_base64_as_protobuf_writes_them(self) -> None:
        trace_id = base64.b64encode(bytes.fromhex(TRACE)).decode()
        span_id = base64.b64encode(bytes.fromhex(SPAN)).decode()
        item = decode_one(traceId=trace_id, spanId=span_id)
        assert (item.trace_id, item.span_id) == (TRACE, SPAN)

    @pytest.mark.parametrize("parent", ["", None, "0" * 16])
    def test_no_parent(self, parent: Any) -> None:
        item = decode_one(parentSpanId=parent)
        assert (item.parent_span_id, item.flags) == (None, ())

    def test_a_parent_that_is_no_id_is_flagged(self) -> None:
        item = decode_one(parentSpanId="my parent")
        assert (item.parent_span_id, item.flags) == (None, ("unsafe_value",))


class TestBrokenInput:
    @pytest.mark.parametrize(
        "broken",
        [
            None,
            "text",
            [],
            {},
            {"traceId": TRACE},
            {"traceId": "0" * 32, "spanId": SPAN},
            {"traceId": TRACE[:-1], "spanId": SPAN},
            {"traceId": "z" * 32, "spanId": SPAN},
            {"traceId": 7, "spanId": SPAN},
            span(attributes=7),
            span(attributes=[7]),
            span(events={"name": "x"}),
            span(status="bad"),
            span(attributes=[{"key": "k", "value": {"doubleValue": "much"}}]),
            span(attributes=[{"key": "k", "value": {"bytesValue": "é"}}]),
        ],
    )
    def test_a_broken_span_costs_its_neighbours_nothing(self, broken: Any) -> None:
        before, problem, after = decode_json(document(span(name="before"), broken, span(name="after")))
        assert isinstance(before, RawSpan)
        assert isinstance(problem, Problem)
        assert isinstance(after, RawSpan)

    @pytest.mark.parametrize("broken", [7, None, {"scopeSpans": 7}, {"scopeSpans": [7]}, {"resource": 7}])
    def test_a_broken_group_costs_its_neighbours_nothing(self, broken: Any) -> None:
        body = {"resourceSpans": [broken, *document(span())["resourceSpans"]]}
        *problems, good = decode_json(body)
        assert isinstance(good, RawSpan)
        assert len(problems) == 1

    def test_a_value_nested_beyond_reason(self) -> None:
        value: Any = {"stringValue": "deep"}
        for _ in range(5000):
            value = {"arrayValue": {"values": [value]}}
        problem, good = decode_json(document(span(attributes=[{"key": "k", "value": value}]), span()))
        assert isinstance(problem, Problem)
        assert isinstance(good, RawSpan)

    @pytest.mark.parametrize("body", [b"", b"{", b"[]", b"7", b'{"name": "package.json"}', b"\xff\xfe", b"[" * 100_000])
    def test_what_is_not_otlp_is_refused_at_once(self, body: bytes) -> None:
        with pytest.raises(InputError):
            decode_json(body)

    @pytest.mark.parametrize("body", [b"{}", b'{"resourceSpans": []}', b'{"resourceMetrics": [{}]}'])
    def test_a_document_without_spans_is_fine(self, body: bytes) -> None:
        assert list(decode_json(body)) == []


names = st.text(st.characters(), max_size=8)
times = st.none() | st.integers(1, 2**64 - 1)
counts = st.integers(0, 2**32 - 1)
values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False)
    | st.text(st.characters(exclude_categories=()), max_size=8)
    | st.binary(max_size=8),
    lambda inner: st.lists(inner, max_size=3).map(tuple) | st.dictionaries(names, inner, max_size=3),
    max_leaves=8,
)
attributes = st.dictionaries(names, values, max_size=4)
trace_ids = st.integers(1, 2**128 - 1).map(lambda number: f"{number:032x}")
span_ids = st.integers(1, 2**64 - 1).map(lambda number: f"{number:016x}")
USUAL = RawSpan("", "", None, "")
raw_spans = st.builds(
    RawSpan,
    trace_id=trace_ids,
    span_id=span_ids,
    parent_span_id=st.none() | span_ids,
    name=names,
    kind=st.sampled_from(["internal", "server", "client", "producer", "consumer"]),
    start_ns=times,
    end_ns=times,
    status_code=st.sampled_from(["unset", "ok", "error"]),
    status_message=st.none() | st.text(min_size=1, max_size=8),
    attributes=attributes,
    events=st.lists(st.builds(Event, names, times, attributes, counts), max_size=2).map(tuple),
    links=st.lists(st.builds(Link, trace_ids, span_ids, names, attributes, counts, counts), max_size=2).map(tuple),
    resource=st.builds(Resource, attributes, names),
    scope=st.builds(Scope, names, names, attributes, names),
    trace_flags=st.integers(0, 255),
    trace_state=names,
    parent_is_remote=st.none() | st.booleans(),
    dropped_attributes=counts,
    dropped_events=counts,
    dropped_links=counts,
    **{field: st.just(getattr(USUAL, field)) for field in ("ended", "process_id", "abandoned_ns")},
    **{field: st.just(getattr(USUAL, field)) for field in ("flags", "collisions")},
)


class TestRoundTrip:
    @settings(max_examples=100, deadline=None)
    @given(st.lists(raw_spans, max_size=3))
    def test_what_is_written_is_read_back(self, spans: list[RawSpan]) -> None:
        assert list(decode_json(encode_json(spans))) == spans

    def test_an_integer_beyond_64_bits_is_written_as_text(self) -> None:
        [item] = decode_json(encode_json([RawSpan(TRACE, SPAN, None, "x", attributes={"n": 2**63})]))
        assert isinstance(item, RawSpan)
        assert item.attributes == {"n": str(2**63)}


class TestProtobuf:
    def test_a_span_says_the_same_as_in_json(self) -> None:
        data = TracesData()
        group = data.resource_spans.add(schema_url="https://r")
        group.resource.attributes.add(key="service.name").value.string_value = "app"
        scopes = group.scope_spans.add(schema_url="https://s")
        scopes.scope.name, scopes.scope.version = "lib", "1"
        message = scopes.spans.add(
            trace_id=bytes.fromhex(TRACE),
            span_id=bytes.fromhex(SPAN),
            parent_span_id=bytes.fromhex(SPAN[::-1]),
            name="chat",
            kind=3,
            start_time_unix_nano=START,
            end_time_unix_nano=2**64 - 1,
            flags=0x301,
            trace_state="a=1",
            dropped_events_count=4,
        )
        message.status.code, message.status.message = 2, "boom"
        message.attributes.add(key="none")
        message.attributes.add(key="int").value.int_value = -(2**63)
        message.attributes.add(key="double").value.double_value = 0.5
        message.attributes.add(key="bool").value.bool_value = True
        message.attributes.add(key="bytes").value.bytes_value = b"\x00"
        message.attributes.add(key="list").value.array_value.values.add().string_value = "a"
        message.attributes.add(key="map").value.kvlist_value.values.add(key="b").value.int_value = 2
        message.events.add(name="first", time_unix_nano=START + 1)
        message.links.add(trace_id=bytes.fromhex(TRACE), span_id=bytes.fromhex(SPAN), flags=0x100)

        [item] = decode_protobuf(data.SerializeToString())

        assert isinstance(item, RawSpan)
        assert [item] == list(decode_json(encode_json([item])))
        assert item.attributes == {
            "none": None,
            "int": -(2**63),
            "double": 0.5,
            "bool": True,
            "bytes": b"\x00",
            "list": ("a",),
            "map": {"b": 2},
        }
        assert (item.kind, item.status_code, item.parent_is_remote, item.trace_flags) == ("client", "error", True, 1)

    def test_a_span_without_ids_costs_its_neighbours_nothing(self) -> None:
        data = TracesData()
        spans = data.resource_spans.add().scope_spans.add().spans
        spans.add(name="broken", span_id=bytes.fromhex(SPAN))
        spans.add(trace_id=bytes.fromhex(TRACE), span_id=bytes.fromhex(SPAN))
        problem, good = decode_protobuf(data.SerializeToString())
        assert isinstance(problem, Problem)
        assert isinstance(good, RawSpan)

    def test_what_is_not_protobuf_is_refused_at_once(self) -> None:
        with pytest.raises(InputError):
            decode_protobuf(b"\xff\xff\xff")


def names_in(path: Path) -> list[str]:
    return [item.name if isinstance(item, RawSpan) else str(item) for item in read_file(path)]


class TestFiles:
    def line(self, name: str) -> bytes:
        return json.dumps(document(span(name=name))).encode()

    def test_one_document(self, tmp_path: Path) -> None:
        (tmp_path / "a.json").write_bytes(self.line("one"))
        assert names_in(tmp_path / "a.json") == ["one"]

    def test_a_pretty_printed_document_with_a_byte_order_mark(self, tmp_path: Path) -> None:
        text = json.dumps(document(span(name="one"), span(name="two")), indent=2).replace("\n", "\r\n")
        (tmp_path / "a.json").write_bytes(b"\xef\xbb\xbf" + text.encode())
        assert names_in(tmp_path / "a.json") == ["one", "two"]

    def test_a_document_a_line_among_other_signals(self, tmp_path: Path) -> None:
        lines = [self.line("one"), b'{"resourceMetrics": []}', b"", self.line("two"), b""]
        (tmp_path / "a.jsonl").write_bytes(b"\n".join(lines))
        assert names_in(tmp_path / "a.jsonl") == ["one", "two"]

    @pytest.mark.parametrize("name", ["a.json.gz", "a.json"])
    def test_gzip_by_its_first_bytes_not_its_name(self, tmp_path: Path, name: str) -> None:
        (tmp_path / name).write_bytes(gzip.compress(self.line("one") + b"\n" + self.line("two")))
        assert names_in(tmp_path / name) == ["one", "two"]

    @pytest.mark.parametrize("pack", [bytes, gzip.compress])
    def test_a_pipe_that_gives_one_byte_at_first(self, pack: Callable[[bytes], bytes]) -> None:
        reading, writing = os.pipe()
        content = pack(self.line("one") + b"\n" + self.line("two"))
        with os.fdopen(reading, "rb") as pipe:
            os.write(writing, content[:1])
            items = read_stream(pipe, "standard input")
            later = threading.Timer(0.1, lambda: (os.write(writing, content[1:]), os.close(writing)))
            later.start()
            assert [item.name for item in items if isinstance(item, RawSpan)] == ["one", "two"]
            later.join()

    def test_a_broken_line_is_reported_with_its_number_and_the_others_are_read(self, tmp_path: Path) -> None:
        path = tmp_path / "a.jsonl"
        path.write_bytes(b"\n".join([b'{"resourceSp', self.line("two"), self.line("x")[:-9], self.line("four"), b"7"]))
        items = list(read_file(path))
        assert [item.name if isinstance(item, RawSpan) else item.line for item in items] == [1, "two", 3, "four", 5]
        assert str(items[0]).startswith(f"{path}:1: not JSON")

    @pytest.mark.parametrize("content", [b"not json", b"{\n  not json\n}\n", b'{"a": 1}', b"\x80abc"])
    def test_a_file_of_something_else_is_one_problem(self, tmp_path: Path, content: bytes) -> None:
        (tmp_path / "a.json").write_bytes(content)
        [problem] = read_file(tmp_path / "a.json")
        assert isinstance(problem, Problem)
        assert problem.source == str(tmp_path / "a.json")

    def test_a_cut_gzip_file_gives_what_is_readable(self, tmp_path: Path) -> None:
        lines = b"\n".join(self.line(f"{number:05}" * 20) for number in range(5000))
        (tmp_path / "a.gz").write_bytes(gzip.compress(lines)[:-2000])
        *spans, problem = read_file(tmp_path / "a.gz")
        assert isinstance(problem, Problem)
        assert len(spans) > 100

    def test_an_empty_file_has_no_spans(self, tmp_path: Path) -> None:
        (tmp_path / "a.json").write_bytes(b"\n")
        assert names_in(tmp_path / "a.json") == []

    def test_a_missing_file_and_a_directory_are_problems(self, tmp_path: Path) -> None:
        assert names_in(tmp_path / "missing.json") == [
            f"{tmp_path / 'missing.json'}: cannot be read: No such file or directory"
        ]
        assert names_in(tmp_path) == [f"{tmp_path}: cannot be read: Is a directory"]
