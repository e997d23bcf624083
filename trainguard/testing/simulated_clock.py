"""A clock of its own for a simulated cluster: weeks in seconds, in step with what its guards get done."""

from __future__ import annotations

import asyncio
import time
from typing import ClassVar

from trainguard.schedulers.base import Wakes
from trainguard.schedulers.sharing import watch_of
from trainguard.testing.simulated import SimulatedScheduler

_PAUSE = 0.0005
"""Real seconds between two looks whether the guards have caught up."""


class VirtualClock:
    """Stands still until it is told to go on."""

    def __init__(self, start: float | None = None) -> None:
        self.now = time.time() if start is None else start

    def __call__(self) -> float:
        """Give the virtual time, in seconds since the epoch."""
        return self.now

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self.now += seconds


class PacedScheduler(SimulatedScheduler, Wakes):
    """Lets the cluster's virtual clock go on by one look whenever all guards wait for the next one."""

    poll_seconds: ClassVar[float] = 60.0
    least_seconds: ClassVar[float] = 0.0

    def clock(self) -> float:
        """The cluster's time."""
        return self._cluster.clock()

    async def wait(self, since: int, timeout: float) -> int:
        """Wait for the guards, not for the time."""
        while (watch := watch_of(self.cluster)) is not None and not watch.idle:  # noqa: ASYNC110
            await asyncio.sleep(_PAUSE)
        clock = self._cluster.clock
        if isinstance(clock, VirtualClock):
            clock.advance(timeout)
        return since + 1
