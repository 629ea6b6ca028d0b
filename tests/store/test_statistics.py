"""Statistics: the same exact numbers on both engines. Cost."""

from __future__ import annotations

import builtins
import random
from collections.abc import Iterator
from typing import Any

import pytest
from query_seeds import put_run, put_step, put_trace
from sqlalchemy import Engine

from step_exporter.errors import ConfigurationError, InputError
from step_exporter.store.cost import NO_MODEL, NO_TOKENS, cost_of
from step_exporter.store.engine import create_sync_engine
from step_exporter.store.query import AsyncStepStore, StepFilter, StepStore
from step_exporter.store.schema import ensure_schema
from step_exporter.store.statistics import Percentiles

SECOND = 10**9


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    engine = create_sync_engine(database_url)
    ensure_schema(engine)
    yield engine
    engine.dispose()


def test_counts_times_and_tokens_by_group(database_url: str, engine: Engine) -> None:
    with engine.begin() as conn:
        trace = put_trace(conn, 1)
        put_run(conn, trace, "run-1")
        for number in range(1, 101):
            values: dict[str, Any] = {"step_ns": number * SECOND, "llm_request_ns": SECOND // 2}
            if number <= 4:
                values["ttft_ns"] = number
            status = "failed" if number > 90 else "success"
            put_step(
                conn,
                trace,
                f"step-{number}",
                number,
                run_id="run-1",
                model="gpt-5",
                provider_name="openai",
                status=status,
                prompt_tokens=60,
                completion_tokens=number,
                total_tokens=60 + number,
                cached_input_tokens=10,
                **values,
            )
        put_step(conn, trace, "step-other", 90_000, model="other", service_name="s")
    with StepStore(database_url) as store:
        gpt, other = store.stats(["model"])
        assert gpt.group == {"model": "gpt-5"}
        assert (gpt.count, gpt.failed, gpt.error_rate) == (100, 10, 0.1)
        assert gpt.step_ns == Percentiles(100, 50 * SECOND, 95 * SECOND, 99 * SECOND)
        assert gpt.ttft_ns == Percentiles(4, 2, 4, 4)
        assert gpt.tool_execution_ns is None
        assert (gpt.prompt_tokens, gpt.completion_tokens, gpt.total_tokens) == (6000, 5050, 11_050)
        assert (gpt.cached_input_tokens, gpt.reasoning_tokens) == (1000, None)
        assert gpt.tokens_per_step == Percentiles(100, 110, 155, 159)
        assert gpt.tokens_per_second == Percentiles(100, 100.0, 190.0, 198.0)
        assert (other.group, other.count, other.step_ns) == ({"model": "other"}, 1, None)
        assert other.tokens_per_second is None
        by: dict[Any, list[tuple[Any, int]]] = {
            "provider": [("openai", 100), (None, 1)],
            "agent": [(None, 101)],
            "run": [("run-1", 100), (None, 1)],
            "status": [("success", 91), ("failed", 10)],
            "service": [(None, 100), ("s", 1)],
            "hour": [("2026-11-22T00", 100), ("2026-11-23T01", 1)],
            "day": [("2026-11-22", 100), ("2026-11-23", 1)],
        }
        for group, expected in by.items():
            assert [(found.group[group], found.count) for found in store.stats([group])] == expected
        both = store.stats(["status", "model"], StepFilter(model="gpt-5"))
        assert [list(found.group.values()) for found in both] == [["success", "gpt-5"], ["failed", "gpt-5"]]
        [everything] = store.stats()
        assert (everything.group, everything.count) == ({}, 101)
        assert store.stats(which=StepFilter(model="none")) == ()
        assert everything.to_dict()["step_ns"] == {
            "count": 100,
            "p50": 50 * SECOND,
            "p95": 95 * SECOND,
            "p99": 99 * SECOND,
        }
        for wrong in ("models", "", "model"[::-1]):
            with pytest.raises(InputError, match="model, provider"):
                store.stats([wrong])  # type: ignore[list-item]


async def both_ways(url: str) -> Any:
    async with AsyncStepStore(url) as store:
        return await store.stats(["model", "status"])


def test_both_engines_and_both_stores_give_the_same_numbers(sqlite_url: str, postgres_url: str) -> None:
    import asyncio

    found: list[Any] = []
    for url in (sqlite_url, postgres_url):
        chance = random.Random(7)
        engine = create_sync_engine(url)
        ensure_schema(engine)
        with engine.begin() as conn:
            trace = put_trace(conn, 1)
            for number in range(300):
                values = {
                    name: chance.choice([None, chance.randrange(2**40)]) for name in ("step_ns", "llm_request_ns")
                }
                tokens = chance.randrange(1000)
                put_step(
                    conn,
                    trace,
                    f"step-{number}",
                    number,
                    model=chance.choice(["a", "B", "ä", None]),
                    status=chance.choice(["failed", "success"]),
                    completion_tokens=tokens,
                    total_tokens=tokens,
                    **values,
                )
        engine.dispose()
        with StepStore(url) as store:
            found.append(store.stats(["model", "status"]))
        found.append(asyncio.run(both_ways(url)))
    assert len(found[0]) == 8
    assert found[0] == found[1] == found[2] == found[3]


# Cost


def test_cost_by_the_price_table_and_why_there_is_none(sqlite_url: str) -> None:
    pytest.importorskip("genai_prices")
    engine = create_sync_engine(sqlite_url)
    ensure_schema(engine)
    usage = {"prompt_tokens": 1000, "completion_tokens": 100, "total_tokens": 1100}
    with engine.begin() as conn:
        trace = put_trace(conn, 1)
        put_step(conn, trace, "plain", 1, model="gpt-5-mini", provider_name="openai", **usage)
        put_step(conn, trace, "cached", 2, model="gpt-5-mini", provider_name="openai", cached_input_tokens=200, **usage)
        put_step(conn, trace, "strange", 3, model="no-such-model", provider_name="openai", **usage)
        put_step(conn, trace, "nameless", 4, **usage)
        put_step(conn, trace, "silent", 5, model="gpt-5-mini")
        put_step(conn, trace, "odd", 6, model="gpt-5-mini", provider_name="openai", cached_input_tokens=9999, **usage)
    engine.dispose()
    with StepStore(sqlite_url) as store:
        costs = {step.id: cost_of(step) for step in store.steps()}
        assert costs["plain"].usd is not None
        assert costs["cached"].usd is not None
        assert 0 < costs["cached"].usd < costs["plain"].usd
        assert costs["strange"] == (None, "no price for no-such-model of openai")
        assert costs["nameless"] == (None, NO_MODEL)
        assert costs["silent"] == (None, NO_TOKENS)
        assert costs["odd"].usd is not None  # more cached than read: as if all were cached
        by_model = {found.group["model"]: found for found in store.stats(["model"], cost=True)}
        known = [cost.usd for cost in costs.values() if cost.usd is not None]
        assert by_model["gpt-5-mini"].cost_usd == pytest.approx(float(sum(known)))
        assert by_model["gpt-5-mini"].cost_unknown == {NO_TOKENS: 1}
        assert by_model["no-such-model"].cost_usd is None
        assert by_model["no-such-model"].cost_unknown == {"no price for no-such-model of openai": 1}
        assert store.stats(["model"])[0].cost_usd is None


def test_cost_without_the_price_table_says_what_to_install(sqlite_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any) -> Any:
        if name == "genai_prices":
            raise ModuleNotFoundError(name)
        return real(name, *args)

    engine = create_sync_engine(sqlite_url)
    ensure_schema(engine)
    engine.dispose()
    monkeypatch.setattr(builtins, "__import__", without)
    with StepStore(sqlite_url) as store, pytest.raises(ConfigurationError, match=r"step_exporter\[cost\]"):
        store.stats(cost=True)
