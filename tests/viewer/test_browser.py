"""The pages in a real Chromium."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import time
from collections.abc import Iterator
from typing import Any

import pytest
from msgspec.structs import replace
from viewer_server import Server
from viewer_spans import agent_run, document, span

from step_exporter.facts import RawSpan
from step_exporter.store.engine import create_sync_engine
from step_exporter.store.ingest import Writer

sync_api = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.once,
    pytest.mark.skipif(CHROMIUM is None, reason="needs Debian's chromium (apt-get install chromium)"),
]

LONG = int(os.environ.get("STEP_EXPORTER_LONG_TRACE", "3000"))
"""50000 is what the page is made for; as many take a while to write."""

IN_FLIGHT = ".row .status:is(.created, .running)"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Any, server: Server) -> Iterator[Any]:
    """A page that is logged in. What it complains of fails the test, the policy's refusals included."""
    context = browser.new_context(viewport={"width": 1360, "height": 800})
    context.set_default_timeout(10_000)
    page = context.new_page()
    complaints: list[str] = []
    page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto(f"{server.base}/login?code={server.sessions.new_code()}")
    yield page
    context.close()
    assert complaints == []


def test_a_link_logs_in_and_is_not_in_the_address_after(page: Any, server: Server) -> None:
    assert page.url == f"{server.base}/"
    assert "No runs yet" in page.inner_text("main")
    assert page.evaluate("document.cookie") == ""


def test_runs_show_up_while_the_page_is_open(page: Any, server: Server) -> None:
    server.send(agent_run())
    page.wait_for_selector("text=helper")


def test_keys_lead_from_the_runs_to_a_step_and_back(page: Any, server: Server) -> None:
    server.send(agent_run())
    page.wait_for_selector("text=helper")
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.name") == "q"
    page.keyboard.press("Escape")
    page.keyboard.press("j")
    page.keyboard.press("Enter")
    page.wait_for_selector(".row")
    page.wait_for_selector("#detail h2")
    page.wait_for_load_state("domcontentloaded")  # the server wrote that; keys are heard once the script has run
    for key in "jj":
        page.keyboard.press(key)
    page.keyboard.press("Enter")
    page.wait_for_selector("#detail >> text=What is it?")
    assert page.url.endswith(f"?step={2:016x}")
    page.keyboard.press("Escape")
    page.wait_for_selector("#detail:empty", state="attached")


def test_a_failed_step_says_why(page: Any, server: Server) -> None:
    server.send(agent_run(error="slow down"))
    page.goto(f"{server.base}/traces/{0xA1:032x}")
    page.click(".row.failed >> text=Step 2")
    page.wait_for_selector(".failure >> text=RateLimitError")


def test_feedback_is_given_with_a_click(page: Any, server: Server) -> None:
    server.send(agent_run())
    page.goto(f"{server.base}/traces/{0xA1:032x}?span={2:016x}")
    page.click("text=Good")
    page.wait_for_selector("button[aria-pressed=true] >> text=Good")
    with server.store() as store:
        assert store.step(f"{2:016x}", f"{0xA1:032x}").feedback == "positive"


def test_tags_are_added_and_removed_where_the_step_is_shown(page: Any, server: Server) -> None:
    server.send(agent_run())
    page.goto(f"{server.base}/traces/{0xA1:032x}?step={2:016x}")
    for tag in ("first", "second"):
        page.fill("[name=add]", tag)
        page.keyboard.press("Enter")
        page.wait_for_selector(f".chip >> text={tag}")
    page.click("[aria-label='Remove the tag first']")
    page.wait_for_selector(".chip >> text=first", state="detached")
    with server.store() as store:
        assert store.step(f"{2:016x}", f"{0xA1:032x}").tags == ["second"]


def test_ids_sql_and_command_lines_are_copied(browser: Any, server: Server) -> None:
    server.send(agent_run())
    context = browser.new_context(permissions=["clipboard-read", "clipboard-write"])
    page = context.new_page()
    page.goto(f"{server.base}/login?code={server.sessions.new_code()}")
    page.goto(f"{server.base}/traces/{0xA1:032x}?step={2:016x}")
    for button, said in {
        "Copy trace id": f"{0xA1:032x}",
        "SQL >> nth=0": f"SELECT * FROM steps WHERE trace_id = '{0xA1:032x}' ORDER BY created_at",
        "CLI >> nth=1": f"step-exporter step {2:016x} --trace {0xA1:032x} --db '{server.url}'",
    }.items():
        page.click(f"button >> text={button}")
        page.wait_for_function("said => navigator.clipboard.readText().then((text) => text === said)", arg=said)
    context.close()


def test_feedback_is_given_without_javascript(browser: Any, server: Server) -> None:
    server.send(agent_run())
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(f"{server.base}/login?code={server.sessions.new_code()}")
    page.goto(f"{server.base}/traces/{0xA1:032x}?span={2:016x}")
    assert "What is it?" in page.inner_text("#detail")
    page.click("text=Bad")
    page.wait_for_selector("button[aria-pressed=true] >> text=Bad")
    context.close()


def test_a_run_in_flight_grows_and_ends_on_the_open_page(page: Any, server: Server) -> None:
    engine = create_sync_engine(server.url)
    now = time.time_ns()
    root = _raw(1, None, "invoke_agent live", now - 2 * 10**9, None)
    writer = Writer(engine)
    writer.write([root])
    page.goto(f"{server.base}/traces/{0xB:032x}")
    page.wait_for_selector(IN_FLIGHT)
    took = page.inner_text(".row .dur")
    page.wait_for_function("took => document.querySelector('.row .dur').innerText !== took", arg=took)
    writer.write([_raw(2, 1, "execute_tool late", now, now + 10**9)])
    page.wait_for_selector("text=execute_tool late")
    writer.write([replace(root, end_ns=now + 2 * 10**9, ended=True)])
    page.wait_for_selector(IN_FLIGHT, state="detached")
    engine.dispose()


def _raw(number: int, parent: int | None, name: str, start: int, end: int | None) -> RawSpan:
    operation = name.partition(" ")[0]
    return RawSpan(
        trace_id=f"{0xB:032x}",
        span_id=f"{number:016x}",
        parent_span_id=None if parent is None else f"{parent:016x}",
        name=name,
        start_ns=start,
        end_ns=end,
        ended=end is not None,
        attributes={"gen_ai.operation.name": operation, "gen_ai.agent.name": "live", "gen_ai.tool.name": "late"},
    )


def test_a_long_trace_is_scrolled_through_with_few_lines_in_the_page(page: Any, server: Server) -> None:
    spans = (span(6, at, None if at == 1 else 1, f"span {at}", at / 100, 1) for at in range(1, LONG + 1))
    while batch := list(itertools.islice(spans, 10_000)):
        assert server.send(json.dumps(document(*batch)).encode()).status == 200
    page.goto(f"{server.base}/traces/{6:032x}")
    page.wait_for_selector("text=span 1")
    page.evaluate("scrollTo(0, document.body.scrollHeight)")
    page.wait_for_selector(f"text=/^span {LONG}$/")
    page.wait_for_function("document.querySelectorAll('.row').length < 1500")
    page.evaluate("scrollTo(0, 0)")
    page.wait_for_selector("text=/^span 2$/")


def test_g3_what_a_span_says_is_never_run(page: Any, server: Server) -> None:
    evil = "<img src=x onerror=alert(1)><script>alert(2)</script>"
    page.on("dialog", lambda dialog: pytest.fail(dialog.message))
    made = document(span(9, 1, None, evil, 0, 1, has={evil: evil, "gen_ai.operation.name": "invoke_agent",
                                                      "gen_ai.agent.name": evil}), service=evil)  # fmt: skip
    server.send(made)
    page.wait_for_selector("table")
    page.goto(f"{server.base}/traces/{9:032x}?span={1:016x}")
    page.click("summary >> text=Attributes")
    assert evil in page.inner_text("main")


def test_dark_and_light_are_chosen_and_kept(page: Any, server: Server) -> None:
    page.click("#theme")
    first = page.evaluate("document.documentElement.dataset.theme")
    page.goto(f"{server.base}/stats")
    assert page.evaluate("document.documentElement.dataset.theme") == first


def test_a_narrow_screen_does_not_scroll_sideways(page: Any, server: Server) -> None:
    server.send(agent_run(error="slow down"))
    page.set_viewport_size({"width": 360, "height": 700})
    for path in ("/", "/stats", f"/traces/{0xA1:032x}", f"/traces/{0xA1:032x}?span={2:016x}"):
        page.goto(server.base + path)
        assert page.evaluate("document.documentElement.scrollWidth") <= 360, path
