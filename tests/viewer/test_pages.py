"""What the pages show, as they come from the server: they read without JavaScript."""

from __future__ import annotations

import re
import sys

import pytest
from viewer_server import Serve, Server
from viewer_spans import agent_run, document, span

from step_exporter.viewer.waterfall import CHUNK

pytestmark = pytest.mark.once

TRACE = f"{0xA1:032x}"


def test_an_empty_database_says_what_to_do_next(server: Server) -> None:
    page = server.get("/").text
    assert "No runs yet" in page
    assert f"OTEL_EXPORTER_OTLP_ENDPOINT={server.base}" in page
    assert "No steps" in server.get("/stats").text


def test_runs_are_listed_with_their_numbers(server: Server) -> None:
    server.send(agent_run(1, agent="one"))
    server.send(agent_run(2, agent="two", error="slow down"))
    page = server.get("/").text
    assert "one" in page
    assert "4.00 s" in page
    assert "200 → 40" in page
    assert "RateLimitError" in page
    assert "(1 ✗)" in page


def test_runs_are_filtered_and_searched(server: Server) -> None:
    server.send(agent_run(0x11110000, agent="one"))
    server.send(agent_run(0x22220000, agent="two", error="no"))
    assert "two" not in server.get("/?agent=one").text
    assert "one" not in re.sub("None|none", "", server.get("/?status=failed").text.partition("<tbody>")[2])
    assert "No run is like that" in server.get("/?agent=three").text
    assert "two" in server.get("/?q=two").text.partition("<tbody>")[2]
    assert server.get(f"/?q={0x11110000:032x}").headers["location"] == f"/traces/{0x11110000:032x}"
    assert server.get("/?since=1h").status == 200
    for wrong in ("/?since=1x", "/?status=bad", "/?limit=zz", "/?agent=one&agent=two", "/stats?by=foo"):
        assert server.get(wrong).status == 400, wrong


def test_runs_go_on_on_the_next_page(server: Server) -> None:
    for trace in range(1, 53):
        server.send(agent_run(trace, agent=f"agent-{trace}"))
    page = server.get("/").text
    (path,) = re.findall(r'href="([^"]+)">older', page)
    later = server.get(path.replace("&amp;", "&")).text
    assert page.count("<tr data-row") == 50
    assert later.count("<tr data-row") == 2


def test_a_trace_is_drawn_to_scale(server: Server) -> None:
    server.send(agent_run())
    page = server.get(f"/traces/{TRACE[:31]}1").text
    assert "invoke_agent helper" in page
    assert '<rect class="own" x="25.000%" width="25.000%"' in page
    assert f"step-exporter trace {TRACE}" in page


def test_a_step_that_no_span_is_has_a_line_of_its_own(server: Server) -> None:
    server.send(agent_run())
    page = server.get(f"/traces/{TRACE}?step={2:016x}").text
    lines = re.findall(r'data-key="(\w+)=0*(\d)">\s*<span class="label d(\d)">', page)
    assert lines == [("span", "1", "0"), ("step", "2", "1"), ("span", "2", "2"), ("span", "3", "2"),
                     ("step", "4", "1"), ("span", "4", "2")]  # fmt: skip
    assert "<h2>Step 1</h2>" in page
    assert re.search(r'class="row step whole chosen" href="\?step=0*2"', page)


def test_a_span_that_is_a_step_says_so_on_its_own_line(server: Server) -> None:
    explicit = {"gen_ai.operation.name": "execute_event_loop_cycle", "event_loop.cycle_id": "c"}
    server.send(document(span(7, 1, None, "execute_event_loop_cycle", 0, 2, has=explicit),
                         span(7, 2, 1, "chat m", 0, 1, has={"gen_ai.operation.name": "chat"})))  # fmt: skip
    page = server.get(f"/traces/{7:032x}").text
    assert re.findall(r'data-key="(\w+=\w+)"', page) == [f"span={1:016x}", f"span={2:016x}"]
    assert '<span class="chip step">step 1</span>' in page


def test_a_step_is_shown_in_full_beside_it(server: Server) -> None:
    server.send(agent_run(error="slow down"))
    page = server.get(f"/traces/{TRACE}?span={2:016x}").text
    assert "What is it?" in page
    assert "1,000,000,000 ns" in page
    failed = server.get(f"/traces/{TRACE}/detail?step={4:016x}").text
    assert "RateLimitError" in failed
    assert "gen_ai.request.model" in failed
    assert "2023-11-14 22:13:22.000 UTC" in failed
    assert "1700000002000000000 ns" in failed
    assert server.get(f"/traces/{TRACE}/detail?span={9:016x}").status == 404
    assert server.get(f"/traces/{TRACE}/detail").status == 400


def test_a_run_is_shown_in_full_beside_its_agent(server: Server) -> None:
    server.send(agent_run())
    detail = server.get(f"/traces/{TRACE}/detail?span={1:016x}").text
    assert "4,000,000,000 ns" in detail
    assert "200 → 40" in detail
    assert "<code>run-" in detail


def test_what_is_odd_is_said(server: Server) -> None:
    lost = span(5, 2, 99, "lost", 1, 1)
    ring = [span(5, 3, 4, "ring a", 2, 1), span(5, 4, 3, "ring b", 2, 1)]
    server.send(document(lost, *ring, span(5, 6, 2, "backwards", 3, -1)))
    page = server.get(f"/traces/{5:032x}").text
    assert "1 span is shown without a parent: 1 parent span never came." in page
    assert "The root of the trace is missing." in page
    assert "in a circle" in page
    assert "clocks differ" in page
    assert page.count("data-key=") == 4


def test_long_traces_come_in_chunks(server: Server) -> None:
    server.send(document(*(span(6, at, None if at == 1 else 1, f"s{at}", at, 1) for at in range(1, 451))))
    page = server.get(f"/traces/{6:032x}").text
    assert page.count("data-key=") == CHUNK
    rest = server.get(f"/traces/{6:032x}/lines?from={2 * CHUNK}").text
    assert rest.count("data-key=") == 50
    shared = server.get(f"/traces/{6:032x}?span={450:016x}").text
    assert f'data-key="span={450:016x}"' in shared
    assert server.get(f"/traces/{6:032x}/lines?from=x").status == 400


def test_a_prefix_of_a_trace_id_leads_to_it(server: Server) -> None:
    trace = 0xABCD << 112
    server.send(agent_run(trace))
    assert server.get("/traces/abcd").headers["location"] == f"/traces/{trace:032x}"
    assert server.get("/traces/dcba").status == 404
    assert server.get("/traces/zz").status == 400


def test_several_traces_that_begin_as_the_search_are_listed(server: Server) -> None:
    traces = [(0x01A2 << 112) + number for number in range(2)]
    for trace in traces:
        server.send(agent_run(trace, agent="one"))
    page = server.get("/?q=01A2").text
    assert "No run is like that" not in page
    assert all(f'href="/traces/{trace:032x}"' in page for trace in traces)
    server.send(agent_run(7, agent="01a2"))
    assert "<tbody>" in server.get("/?q=01a2").text


def test_feedback_is_set_by_the_form_and_taken_back(server: Server) -> None:
    server.send(agent_run())
    with server.store() as store:
        step = store.steps().items[0]
    form = {"Content-Type": "application/x-www-form-urlencoded", "Origin": server.base}
    for given, kept in (("positive", "positive"), ("", None)):
        body = f"step_id={step.id}&span_id={step.span_id}&feedback={given}"
        assert server.ask("POST", f"/traces/{TRACE}/feedback", body, form).status == 303
        with server.store() as store:
            assert store.step(step.id).feedback == kept
        pressed = server.get(f"/traces/{TRACE}/detail?step={step.span_id}").text
        assert re.search(f'value="{given}" aria-pressed="true"', pressed)


def test_tags_are_added_and_removed_by_the_form(server: Server) -> None:
    server.send(agent_run())
    with server.store() as store:
        step = store.steps().items[0]
    form = {"Content-Type": "application/x-www-form-urlencoded", "Origin": server.base}
    which = f"step_id={step.id}&span_id={step.span_id}&kind=step"
    changes = [("add=good", ["good"]), ("add=%20a%20b%20", ["a b", "good"]), ("add=good", ["a b", "good"]),
               ("remove=good", ["a b"]), ("remove=nothing", ["a b"]), ("add=", ["a b"])]  # fmt: skip
    for change, kept in changes:
        answer = server.ask("POST", f"/traces/{TRACE}/tags", f"{which}&{change}", form)
        assert (answer.status, answer.headers["location"]) == (303, f"/traces/{TRACE}?step={step.span_id}")
        with server.store() as store:
            assert store.step(step.id).tags == kept
    page = server.get(f"/traces/{TRACE}?step={step.span_id}").text
    assert '<span class="chip">a b<button name="remove" value="a b"' in page
    elsewhere = {**form, "Origin": "http://evil.test"}
    assert server.ask("POST", f"/traces/{TRACE}/tags", f"{which}&add=evil", elsewhere).status == 403
    for wrong in (f"{which}&add={'x' * 101}", "step_id=", "\xff"):
        assert server.ask("POST", f"/traces/{TRACE}/tags", wrong, form).status in (400, 404)


def test_cost_is_shown_where_there_is_a_price_table(server: Server) -> None:
    server.send(agent_run(1, model="gpt-4o"))
    server.send(agent_run(2, model="my-own-model"))
    runs = server.get("/").text
    assert ">$0.0009</td>" in runs  # 200 tokens in at $2.50, 40 out at $10 a million
    assert 'title="2 steps: no price for my-own-model">–</td>' in runs
    assert "$0.0009" in server.get(f"/traces/{1:032x}").text
    assert 'title="0.00045 US dollars">$0.0004' in server.get(f"/traces/{1:032x}/detail?step={2:016x}").text
    assert "$0.0009" in server.get(f"/traces/{1:032x}/detail?span={1:016x}").text
    statistics = server.get("/stats").text
    assert 'title="2 steps: no price for my-own-model">$0.0009+</dd>' in statistics
    assert "Cost over time, at most $0.0004" in statistics
    costs = {item["group"]["model"]: item["cost_usd"] for item in server.get("/api/stats?by=model").json["items"]}
    assert costs == {"gpt-4o": 0.0009, "my-own-model": None}


def test_without_a_price_table_there_is_no_word_of_cost(
    serve: Serve, sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "genai_prices", None)
    server = serve(sqlite_url)
    server.send(agent_run(model="gpt-4o"))
    paths = ("/", "/stats", f"/traces/{TRACE}?step={2:016x}", f"/traces/{TRACE}?span={1:016x}")
    assert not [path for path in paths if "Cost" in server.get(path).text]
    assert server.get("/api/stats?by=model").json["items"][0]["cost_usd"] is None


def test_statistics_are_exact(server: Server) -> None:
    for trace in range(1, 11):
        server.send(agent_run(trace, model="a" if trace < 8 else "b", error="no" if trace == 1 else ""))
    page = server.get("/stats").text
    assert "5.0 %" in page  # one of twenty steps
    assert "By tool" in page
    assert "look" in page
    assert "2,000 → 400" in page
    assert "No steps in this time" in server.get("/stats?since=1h").text
