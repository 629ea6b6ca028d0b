"""The JSON API."""

from __future__ import annotations

from viewer_server import Server
from viewer_spans import START, agent_run

TRACE = f"{0xA1:032x}"
JSON = {"Content-Type": "application/json"}


def test_steps_have_lettas_names_and_their_nanoseconds_as_text_as_well(server: Server) -> None:
    server.send(agent_run())
    page = server.get("/api/steps?model=gpt-5&order=asc").json
    first, second = page["items"]
    assert page["next"] is None
    assert (first["model"], first["prompt_tokens"], first["status"]) == ("gpt-5", 100, "success")
    assert first["metrics"]["step_start_ns_text"] == str(START)
    assert server.get(f"/api/steps/{second['id']}").json["position"] == 2
    assert server.get(f"/api/steps/{second['id']}/metrics").json["llm_request_ns"] == 2 * 10**9
    (message,) = server.get(f"/api/steps/{first['id']}/messages?trace_id={TRACE}").json["items"]
    assert message["role"] == "user"


def test_runs_traces_messages_and_statistics(server: Server) -> None:
    server.send(agent_run())
    (run,) = server.get(f"/api/runs?trace_ids={TRACE}&top_level=true").json["items"]
    assert run["agent_name"] == "helper"
    assert len(server.get(f"/api/traces/{TRACE}").json["spans"]) == 4
    assert len(server.get(f"/api/traces/{TRACE}/messages").json["items"]) == 1
    (group,) = server.get("/api/stats?by=model&by=agent").json["items"]
    assert (group["group"], group["count"]) == ({"model": "gpt-5", "agent": "helper"}, 2)


def test_feedback_is_set_and_found(server: Server) -> None:
    server.send(agent_run())
    step = server.get("/api/steps").json["items"][0]
    path = f"/api/steps/{step['id']}/feedback"
    assert server.ask("POST", path, b'{"feedback": "negative"}', JSON).json["feedback"] == "negative"
    (found,) = server.get("/api/steps?feedback=negative").json["items"]
    assert found["id"] == step["id"]
    for body in (b"", b"[]", b'{"feedback": "fine"}', b'{"feedback": {}}', b"{}"):
        assert server.ask("POST", path, body, JSON).status == 400


def test_wrong_questions_are_answered_with_a_reason(server: Server) -> None:
    server.send(agent_run())
    for path in ("/api/steps?limit=0", "/api/steps?limit=x", "/api/steps?order=up", "/api/steps?colour=red",
                 "/api/steps?start_date=soon", "/api/runs?top_level=1", "/api/steps?after=x", "/api/traces/x",
                 "/api/stats?by=colour", "/api/steps?trace_ids=12"):  # fmt: skip
        answer = server.get(path)
        assert answer.status == 400, path
        assert answer.json["error"]
    assert server.get("/api/steps/step-none").status == 404
    assert server.get("/api/nothing").json["error"]


def test_the_document_describes_every_operation(server: Server) -> None:
    document = server.get("/api/openapi.json").json
    server.send(agent_run())
    step = server.get("/api/steps").json["items"][0]
    for path, operations in document["paths"].items():
        if "get" in operations:
            answer = server.get(path.format(step_id=step["id"], trace_id=TRACE))
            assert answer.status == 200, path
    assert set(document["components"]["schemas"]["Step"]["properties"]) == set(step)
