"""Where content is not stored, all else of a span says the same."""

from typing import Any

import pytest
from msgspec.structs import replace

from recordings import all_recordings
from step_exporter.conventions import read, without_content
from step_exporter.conventions.content import CONTENT_KEYS, SENSITIVE_KEYS
from step_exporter.facts import RawSpan, SpanFacts

ATTRIBUTE = "step_exporter.from_content"


def span(attributes: dict[str, Any], **fields: Any) -> RawSpan:
    return RawSpan("a" * 32, "b" * 16, None, "call", start_ns=1, end_ns=2, attributes=attributes, **fields)


def but_for_texts(facts: SpanFacts) -> SpanFacts:
    return replace(facts, input_messages=(), output_messages=(), error_message=None, error_traceback=None)


def test_of_every_recording_only_texts_are_missing() -> None:
    for recording in all_recordings():
        for raw in recording.raws():
            assert but_for_texts(read(without_content(raw))) == but_for_texts(read(raw)), recording.name


def test_ids_and_counts_that_only_the_response_held_are_kept() -> None:
    response = '{"id": "chatcmpl-1", "choices": [{"finish_reason": "length", "message": {"content": "the secret"}}]}'
    bare = without_content(span({"mlflow.spanType": '"CHAT_MODEL"', "mlflow.spanOutputs": response}))
    assert bare.attributes == {
        "mlflow.spanType": '"CHAT_MODEL"',
        ATTRIBUTE: '{"request_id":"chatcmpl-1","stop_reason":"length"}',
    }
    assert (read(bare).request_id, read(bare).stop_reason) == ("chatcmpl-1", "length")


def test_what_is_too_long_for_an_id_is_not_kept() -> None:
    response = f'{{"id": "{"the secret " * 30}", "choices": [{{"finish_reason": "length", "message": {{}}}}]}}'
    bare = without_content(span({"mlflow.spanType": '"CHAT_MODEL"', "mlflow.spanOutputs": response}))
    assert bare.attributes[ATTRIBUTE] == '{"stop_reason":"length"}'


@pytest.mark.parametrize("status", ["ValueError: the secret", "the secret: is out", "Traceback\nthe secret"])
@pytest.mark.parametrize("key", [*sorted(CONTENT_KEYS | SENSITIVE_KEYS), "gen_ai.completion.0.content"])
def test_no_content_is_taken_for_a_name(key: str, status: str) -> None:
    for kind in ("gen_ai.operation.name", "openinference.span.kind", "mlflow.spanType", "langsmith.span.kind"):
        raw = span({key: "the secret", kind: "chat"}, status_code="error", status_message=status)
        assert "the secret" not in repr(without_content(raw))


@pytest.mark.parametrize("value", ["", "nonsense", '{"usage": 5}', '{"request_id": ["a"]}', 5, b"{}", None, ("a",)])
def test_an_attribute_of_that_name_by_somebody_else_changes_nothing(value: object) -> None:
    asked = {"gen_ai.operation.name": "chat", "gen_ai.request.model": "m"}
    assert read(span({**asked, ATTRIBUTE: value})) == read(span(asked))
