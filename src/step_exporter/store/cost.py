"""What steps cost in US dollars, by the price table of ``genai-prices`` (the extra ``cost``).

A cost is computed when it is asked for and never stored: it follows the table, at the prices of the step's time.
Where the model is unknown it is None, with the reason.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from datetime import datetime
from decimal import Decimal
from typing import TYPE_CHECKING, NamedTuple

from step_exporter.errors import ConfigurationError
from step_exporter.store.records import StepRecord

if TYPE_CHECKING:
    from genai_prices.types import ModelInfo, ModelPrice

NO_MODEL = "no model known"
NO_TOKENS = "no tokens known"
_PROVIDERS = {"gcp.gen_ai": "google", "azure.ai.inference": "azure", "x_ai": "x-ai"}
"""OpenTelemetry's names of providers that the table knows by another one only."""


class Cost(NamedTuple):
    """A cost, or why there is none."""

    usd: Decimal | None
    reason: str | None


class CostSum:
    """What several steps cost."""

    def __init__(self) -> None:
        self.usd: Decimal | None = None
        """Of the steps with a known price; None where there is none."""
        self.unknown: Counter[str] = Counter()
        """How many steps have no price, by reason."""

    def add(self, cost: Cost) -> None:
        """Count one step."""
        if cost.usd is None:
            self.unknown[cost.reason or ""] += 1
        else:
            self.usd = cost.usd if self.usd is None else self.usd + cost.usd


Price = Callable[
    [str | None, str | None, int, int, int | None, int | None, datetime],
    Cost,
]
"""Model, provider, prompt tokens (cached and cache-write included), completion tokens, cached, cache-write, time."""


def cost_of(step: StepRecord) -> Cost:
    """What a step cost. Raises ``ConfigurationError`` without ``genai-prices``."""
    return price_table()(
        step.model,
        step.provider_name,
        step.prompt_tokens,
        step.completion_tokens,
        step.cached_input_tokens,
        step.cache_write_tokens,
        step.created_at,
    )


def installed_price_table() -> Price | None:
    """The table; None where ``genai-prices`` is not installed."""
    try:
        return price_table()
    except ConfigurationError:
        return None


def price_table() -> Price:
    """The table. What it says of a model is remembered: to ask it takes 70 µs, a sum of what is remembered 3."""
    try:
        from genai_prices import Usage, calc_price
    except ModuleNotFoundError as error:
        raise ConfigurationError("cost needs the price table: pip install 'step_exporter[cost]'") from error
    unknown: dict[tuple[str, str | None], str] = {}
    models: dict[tuple[str, str | None], ModelInfo] = {}
    rates: dict[int, tuple[ModelPrice, _Rates]] = {}

    def price(
        model: str | None,
        provider: str | None,
        prompt: int,
        completion: int,
        cached: int | None,
        cache_write: int | None,
        at: datetime,
    ) -> Cost:
        if not model:
            return Cost(None, NO_MODEL)
        if not prompt and not completion:
            return Cost(None, NO_TOKENS)
        key = (model, provider)
        if key in unknown:
            return Cost(None, unknown[key])
        # Counts that contradict each other are stored as they came; the table would refuse them.
        read = min(cached or 0, prompt)
        written = min(cache_write or 0, prompt - read)
        try:
            if (info := models.get(key)) is not None:
                prices = info.get_prices(at)
                if (known := rates.get(id(prices))) is None:
                    known = rates[id(prices)] = (prices, _Rates.of(prices))  # holding them keeps the id theirs
                if prompt < known[1].limit:
                    return Cost(known[1].cost(prompt - read - written, read, written, completion), None)
            usage = Usage(
                input_tokens=prompt, output_tokens=completion, cache_read_tokens=read, cache_write_tokens=written
            )
            asked = _PROVIDERS.get(provider or "", provider)
            found = calc_price(usage, model, provider_id=asked, genai_request_timestamp=at)
        except LookupError:
            unknown[key] = f"no price for {model}" + (f" of {provider}" if provider else "")
            return Cost(None, unknown[key])
        except ValueError as error:
            return Cost(None, str(error))
        models[key] = found.model
        return Cost(found.total_price, None)

    return price


class _Rates(NamedTuple):
    """US dollars per token of one kind, as long as the prompt is shorter than where another tier begins."""

    limit: float
    """Tokens of the prompt, cached ones included."""
    request: Decimal
    """Of a request, whatever its tokens."""
    fresh: Decimal
    read: Decimal
    written: Decimal
    completion: Decimal

    @classmethod
    def of(cls, prices: ModelPrice) -> _Rates:
        from genai_prices import Usage
        from genai_prices.types import TieredPrices

        tiered = [price for price in vars(prices).values() if isinstance(price, TieredPrices)]
        limit = min((tier.start for price in tiered for tier in price.tiers), default=math.inf)
        request = prices.calc_price(Usage(input_tokens=0, output_tokens=0))["total_price"]
        usages = (
            Usage(input_tokens=1),
            Usage(input_tokens=1, cache_read_tokens=1),
            Usage(input_tokens=1, cache_write_tokens=1),
            Usage(output_tokens=1),
        )
        return cls(limit, request, *(prices.calc_price(usage)["total_price"] - request for usage in usages))

    def cost(self, fresh: int, read: int, written: int, completion: int) -> Decimal:
        tokens = self.fresh * fresh + self.read * read + self.written * written + self.completion * completion
        return self.request + tokens
