"""The JSON API."""

from __future__ import annotations

from viewer_server import Server
from viewer_spans import SECOND, START, agent_run, document, span

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
    assert (group["step_ns"]["count"], group["cached_input_tokens"]) == (2, None)
    assert not any(name.endswith("_text") for name in group)


def test_statistics_of_tools(server: Server) -> None:
    tool = {"gen_ai.operation.name": "execute_tool", "gen_ai.tool.name": "look"}
    failed = {"status": {"code": 2, "message": "no"}}
    server.send(agent_run(1))
    server.send(document(span(2, 1, None, "execute_tool look", 50, 3, has=tool, **failed),
                         span(2, 2, 1, "tools/call look", 51, 1, has={"mcp.method.name": "tools/call", **tool}),
                         span(2, 3, None, "execute_tool buy", 52, 1, has=tool)))  # fmt: skip
    buy, look = sorted(server.get("/api/stats/tools").json["items"], key=lambda item: item["tool"])
    assert (look["tool"], look["count"], look["failed"], look["error_rate"]) == ("look", 2, 1, 0.5)
    assert look["duration_ns"] == {"count": 2, "p50": SECOND, "p95": 3 * SECOND, "p99": 3 * SECOND}
    assert (buy["tool"], buy["count"], buy["failed"]) == ("buy", 1, 0)
    (later,) = server.get("/api/stats/tools?start_date=2023-11-14T22:14:12Z").json["items"]
    assert later["tool"] == "buy"
    assert server.get("/api/stats/tools?end_date=2023-11-14T22:13:20Z").json["items"] == []
    assert server.get("/api/stats/tools?service_name=none").json["items"] == []


def test_feedback_is_set_and_found(server: Server) -> None:
    server.send(agent_run())
    step = server.get("/api/steps").json["items"][0]
    path = f"/api/steps/{step['id']}/feedback"
    assert server.ask("POST", path, b'{"feedback": "negative"}', JSON).json["feedback"] == "negative"
    (found,) = server.get("/api/steps?feedback=negative").json["items"]
    assert found["id"] == step["id"]
    for body in (b"", b"[]", b'{"feedback": "fine"}', b'{"feedback": {}}', b"{}"):
        assert server.ask("POST", path, body, JSON).status == 400


def test_feedback_sets_tags_where_they_are_given(server: Server) -> None:
    server.send(agent_run())
    path = f"/api/steps/{server.get('/api/steps').json['items'][0]['id']}"
    for body, tags in (
        (b'{"feedback": "positive", "tags": ["b", "a"]}', ["a", "b"]),
        (b'{"feedback": null, "tags": null}', ["a", "b"]),
        (b'{"feedback": null, "tags": []}', None),
    ):
        assert server.ask("POST", f"{path}/feedback", body, JSON).status == 200
        assert server.get(path).json["tags"] == tags
    for wrong in (b'{"feedback": null, "tag": "a"}', b'{"feedback": null, "tags": "a"}',
                  b'{"feedback": null, "tags": {"a": 1}}', b'{"feedback": null, "tags": [1]}'):  # fmt: skip
        assert server.ask("POST", f"{path}/feedback", wrong, JSON).status == 400


def test_a_thousand_tags_and_times_far_away_can_be_asked_for(server: Server) -> None:
    server.send(agent_run())
    many = "&".join(f"tags_all=t{number}" for number in range(1000))
    assert server.get(f"/api/steps?{many}").json["items"] == []
    assert server.get(f"/api/steps?{many.replace('tags_all', 'tags')}").json["items"] == []
    for path, found in (("/api/steps", 2), ("/api/stats/tools", 1)):
        assert len(server.get(f"{path}?start_date=0001-01-02&end_date=9999-12-30").json["items"]) == found
    assert server.get("/api/steps?start_date=0001-01-01T00:00:00%2B05:00").status == 400


def test_wrong_questions_are_answered_with_a_reason(server: Server) -> None:
    server.send(agent_run())
    for path in ("/api/steps?limit=0", "/api/steps?limit=x", "/api/steps?order=up", "/api/steps?colour=red",
                 "/api/steps?start_date=soon", "/api/runs?top_level=1", "/api/steps?after=x", "/api/traces/x",
                 "/api/stats?by=colour", "/api/steps?trace_ids=12", "/api/steps?status=completed",
                 "/api/runs?status=success", "/api/stats?status=bad", "/api/steps?model=a&model=b",
                 "/api/runs?limit=1&limit=2", f"/api/traces/{TRACE}?colour=red",
                 f"/api/steps/x?trace_id={TRACE}&trace_id={TRACE}"):  # fmt: skip
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
    (stats,) = server.get("/api/stats").json["items"]
    (tool,) = server.get("/api/stats/tools").json["items"]
    for name, found in (("Step", step), ("Stats", stats), ("ToolStats", tool)):
        assert set(document["components"]["schemas"][name]["properties"]) == set(found)
