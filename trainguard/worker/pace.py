"""Starts, a few a second: a burst would make SQLite answer 503 to everybody."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from time import monotonic

SLOWEST = 30.0
"""Seconds between two starts, at most, however busy Prefect is."""
IN_FLIGHT = 4
"""Starts that may be on their way together: a slow server sets the pace itself."""


class Pace:
    """Hands out turns. A start that Prefect could not serve makes the next ones rarer, a good one more frequent."""

    def __init__(self, a_second: float) -> None:
        self.a_second = a_second
        self._slowdown = 1.0
        self._next = 0.0
        self._turn = asyncio.Lock()
        self._flight = asyncio.Semaphore(IN_FLIGHT)

    @property
    def interval(self) -> float:
        """Seconds from one start to the next, just now."""
        return min(SLOWEST, self._slowdown / self.a_second)

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Wait for one's turn and take up a place until the start is through."""
        async with self._flight:
            async with self._turn:
                wait = self._next - monotonic()
                if wait > 0:
                    await asyncio.sleep(wait)
                self._next = monotonic() + self.interval
            yield

    def good(self) -> None:
        """A start went well."""
        self._slowdown = max(1.0, self._slowdown / 2)

    def bad(self) -> None:
        """Prefect was too busy or away."""
        self._slowdown = min(SLOWEST * self.a_second, self._slowdown * 2)
