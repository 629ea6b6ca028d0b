"""What the pages show, as they come from the server: they read without JavaScript."""

from __future__ import annotations

import re

from viewer_server import Server
from viewer_spans import agent_run, document, span

from step_exporter.viewer.waterfall import CHUNK

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
    assert server.get("/?since=1x").status == 400


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
    assert "step 2" in page
    assert '<rect class="own" x="25.000%" width="25.000%"' in page
    assert f"step-exporter trace {TRACE}" in page


def test_a_step_is_shown_in_full_beside_it(server: Server) -> None:
    server.send(agent_run(error="slow down"))
    page = server.get(f"/traces/{TRACE}?span={2:016x}").text
    assert "What is it?" in page
    assert "1,000,000,000 ns" in page
    failed = server.get(f"/traces/{TRACE}/spans/{4:016x}").text
    assert "RateLimitError" in failed
    assert "gen_ai.request.model" in failed
    assert server.get(f"/traces/{TRACE}/spans/{9:016x}").status == 404


def test_what_is_odd_is_said(server: Server) -> None:
    lost = span(5, 2, 99, "lost", 1, 1)
    ring = [span(5, 3, 4, "ring a", 2, 1), span(5, 4, 3, "ring b", 2, 1)]
    server.send(document(lost, *ring, span(5, 6, 2, "backwards", 3, -1)))
    page = server.get(f"/traces/{5:032x}").text
    assert "1 span is shown without a parent: 1 parent span never came." in page
    assert "The root of the trace is missing." in page
    assert "in a circle" in page
    assert "clocks differ" in page
    assert page.count("data-span=") == 4


def test_long_traces_come_in_chunks(server: Server) -> None:
    server.send(document(*(span(6, at, None if at == 1 else 1, f"s{at}", at, 1) for at in range(1, 451))))
    page = server.get(f"/traces/{6:032x}").text
    assert page.count("data-span=") == CHUNK
    rest = server.get(f"/traces/{6:032x}/lines?from={2 * CHUNK}").text
    assert rest.count("data-span=") == 50
    shared = server.get(f"/traces/{6:032x}?span={450:016x}").text
    assert f'data-span="{450:016x}"' in shared
    assert server.get(f"/traces/{6:032x}/lines?from=x").status == 400


def test_a_prefix_of_a_trace_id_leads_to_it(server: Server) -> None:
    trace = 0xABCD << 112
    server.send(agent_run(trace))
    assert server.get("/traces/abcd").headers["location"] == f"/traces/{trace:032x}"
    assert server.get("/traces/dcba").status == 404
    assert server.get("/traces/zz").status == 400


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
        pressed = server.get(f"/traces/{TRACE}/spans/{step.span_id}").text
        assert re.search(f'value="{given}" aria-pressed="true"', pressed)


def test_statistics_are_exact(server: Server) -> None:
    for trace in range(1, 11):
        server.send(agent_run(trace, model="a" if trace < 8 else "b", error="no" if trace == 1 else ""))
    page = server.get("/stats").text
    assert "5.0 %" in page  # one of twenty steps
    assert "By tool" in page
    assert "look" in page
    assert "2,000 → 400" in page
    assert "No steps in this time" in server.get("/stats?since=1h").text
