"""A server for one organization: its pages and its API show and change nothing of another one."""

from __future__ import annotations

import re

import pytest
from viewer_server import Serve, Server
from viewer_spans import document, span

from step_exporter.viewer.api import OPERATIONS

ACME, GLOBEX = (f"{number:032x}" for number in (0xA1, 0xB1))


@pytest.fixture
def acme(serve: Serve, sqlite_url: str) -> Server:
    server = serve(sqlite_url, organization_id="acme")
    for trace, name in ((0xA1, "acme"), (0xB1, "globex")):
        has = {
            "gen_ai__operation__name": "chat",
            "gen_ai__request__model": f"model-{name}",
            "step__organization_id": name,
        }
        assert server.send(document(span(trace, 1, None, f"chat {name}", 0, 1, has=has))).status == 200
    return server


def test_pages_and_api_answer_for_one_organization(acme: Server) -> None:
    paths = [re.sub(r"\{\w*trace_id[^}]*\}", ACME, f"/api{path}") for path, *_ in OPERATIONS]
    paths = [re.sub(r"\{step_id[^}]*\}", f"{1:016x}", path) for path in paths]
    with acme.store() as store:
        run_id = store.runs().items[0].id
    paths = [re.sub(r"\{run_id[^}]*\}", run_id, path) for path in paths]
    for path in ("/", f"/traces/{ACME}", "/stats", *paths):
        answer = acme.get(path)
        assert answer.status == 200, path
        assert "globex" not in answer.text, path
    assert "model-acme" in acme.get("/").text


def test_what_is_of_another_one_is_not_there(acme: Server) -> None:
    for path in (
        f"/traces/{GLOBEX}",
        f"/api/traces/{GLOBEX}",
        f"/traces/{GLOBEX}/lines",
        "/api/steps?organization_id=globex",
    ):
        answer = acme.get(path)
        assert answer.status == 404 or answer.json["items"] == [], path
    with acme.store() as store:
        [step] = store.trace(GLOBEX).steps
    for action in ("feedback", "tags"):
        form = {"Content-Type": "application/x-www-form-urlencoded", "Origin": acme.base}
        answer = acme.ask("POST", f"/traces/{GLOBEX}/{action}", f"step_id={step.id}&feedback=negative&add=x", form)
        assert answer.status == 404, answer
    with acme.store() as store:
        assert store.step(step.id) == step
