"""An ``AsyncStepStore`` called like a ``StepStore``, so that a test runs on both."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from step_exporter import AsyncStepStore


class InLoop:
    """An ``AsyncStepStore`` in an event loop of its own."""

    def __init__(self, url: str, **options: Any) -> None:
        self.runner = asyncio.Runner()
        self.store = AsyncStepStore(url, **options)

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method = getattr(self.store, name)
        return lambda *args, **options: self.runner.run(method(*args, **options))

    def close(self) -> None:
        self.runner.run(self.store.close())
        self.runner.close()
