"""Showing things beside what is done: pages come in their order, and no act waits for one."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from types import TracebackType
from typing import Any

logger = logging.getLogger(__name__)


class Beside:
    """Does one thing after the other while its owner goes on; left, it waits until all are done.

    What goes wrong in one is logged: it neither ends its owner nor the things after it.
    """

    def __init__(self) -> None:
        self._last: asyncio.Task[None] | None = None

    def do(self, work: Coroutine[Any, Any, None]) -> None:
        """Do this once what came before it is done."""
        self._last = asyncio.create_task(self._in_turn(self._last, work))
        self._last.add_done_callback(_look_at)

    async def _in_turn(self, before: asyncio.Task[None] | None, work: Coroutine[Any, Any, None]) -> None:
        try:
            if before is not None:
                await asyncio.wait({before})
            await work
        except asyncio.CancelledError:
            work.close()
            if before is not None:
                before.cancel()
            raise

    async def __aenter__(self) -> Beside:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._last is None:
            return
        if isinstance(error, asyncio.CancelledError):
            self._last.cancel()
        await asyncio.wait({self._last})


def _look_at(task: asyncio.Task[None]) -> None:
    problem = None if task.cancelled() else task.exception()
    if problem is not None:
        logger.error("something could not be shown", exc_info=problem)
