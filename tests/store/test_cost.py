"""What steps cost: as the price table says, for every model of it and every kind of token."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest
from genai_prices import Usage, calc_price

from step_exporter.store.cost import NO_MODEL, NO_TOKENS, CostSum, price_table

AT = datetime(2026, 1, 1, tzinfo=UTC)


MODELS = {
    "gpt-4o": "openai",
    "gpt-4o-mini": None,
    "claude-sonnet-4-5": "anthropic",  # other prices beyond 200,000 tokens
    "gemini-2.5-pro": "google",  # as well
    "sonar-pro": "perplexity",  # a fee for each request
    "deepseek-chat": "deepseek",  # cheaper at night
}


@pytest.mark.parametrize("model", MODELS)
def test_what_is_remembered_of_a_model_gives_what_the_table_says(model: str) -> None:
    chance = random.Random(model)
    price, provider = price_table(), MODELS[model]
    for prompt in (7, 128_001, 199_999, 200_000, 200_001, 300_000) * 5:
        at = AT - timedelta(hours=chance.randrange(10_000))
        read = chance.randrange(prompt)
        written, completion = chance.randrange(prompt - read), chance.randrange(5000)
        usage = Usage(input_tokens=prompt, output_tokens=completion, cache_read_tokens=read, cache_write_tokens=written)
        said = calc_price(usage, model, provider_id=provider, genai_request_timestamp=at).total_price
        assert price(model, provider, prompt, completion, read, written, at).usd == said


@pytest.mark.parametrize(("name", "model"), [("gcp.gen_ai", "gemini-2.5-pro"), ("azure.ai.inference", "gpt-4o"),
                                             ("x_ai", "grok-4"), ("gcp.vertex_ai", "gemini-2.5-pro")])  # fmt: skip
def test_providers_are_known_by_opentelemetrys_names(name: str, model: str) -> None:
    assert price_table()(model, name, 1000, 10, None, None, AT).usd


def test_prices_are_those_of_the_time_of_the_step() -> None:
    price = price_table()
    then = price("o3", "openai", 1_000_000, 0, None, None, datetime(2025, 5, 1, tzinfo=UTC))
    now = price("o3", "openai", 1_000_000, 0, None, None, AT)
    again = price("o3", "openai", 1_000_000, 0, None, None, datetime(2025, 5, 1, tzinfo=UTC))
    assert (then.usd, now.usd, again.usd) == (10, 2, 10)


def test_a_sum_counts_what_has_no_price_by_its_reason() -> None:
    price = price_table()
    total = CostSum()
    for model, tokens in (("gpt-4o", 1_000_000), ("gpt-4o", 0), (None, 5), ("my-model", 5), ("my-model", 5)):
        total.add(price(model, None, tokens, 0, None, None, AT))
    assert total.usd == Decimal("2.5")
    assert total.unknown == {NO_TOKENS: 1, NO_MODEL: 1, "no price for my-model": 2}
