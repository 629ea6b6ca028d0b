"""What steps cost in US dollars, by the price table of ``genai-prices`` (the extra ``cost``).

A cost is computed when it is asked for and never stored: it follows the table, at the prices of the step's time.
Where the model is unknown it is None, with the reason.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from decimal import Decimal
from typing import NamedTuple

from step_exporter.errors import ConfigurationError
from step_exporter.store.records import StepRecord

NO_MODEL = "no model known"
NO_TOKENS = "no tokens known"


class Cost(NamedTuple):
    """A cost, or why there is none."""

    usd: Decimal | None
    reason: str | None


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


def price_table() -> Price:
    """The table. Models that it does not know are remembered, as a search through all of it takes long."""
    try:
        from genai_prices import Usage, calc_price
    except ModuleNotFoundError as error:
        raise ConfigurationError("cost needs the price table: pip install 'step_exporter[cost]'") from error
    unknown: dict[tuple[str, str | None], str] = {}

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
        if (model, provider) in unknown:
            return Cost(None, unknown[model, provider])
        # Counts that contradict each other are stored as they came; the table would refuse them.
        read = min(cached or 0, prompt)
        usage = Usage(
            input_tokens=prompt,
            output_tokens=completion,
            cache_read_tokens=read,
            cache_write_tokens=min(cache_write or 0, prompt - read),
        )
        try:
            return Cost(calc_price(usage, model, provider_id=provider, genai_request_timestamp=at).total_price, None)
        except LookupError:
            reason = f"no price for {model}" + (f" of {provider}" if provider else "")
            unknown[model, provider] = reason
            return Cost(None, reason)
        except ValueError as error:
            return Cost(None, str(error))

    return price
