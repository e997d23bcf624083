"""Using the ledger however long it is away: what is not on record is not done."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import TypeVar

from trainguard.core.errors import LedgerUnavailableError

logger = logging.getLogger(__name__)

RETRY_SECONDS = 5.0
T = TypeVar("T")


async def durably(call: Callable[..., Awaitable[T]], *arguments: object) -> T:
    """Call until the ledger can be used: locked, full or gone, it is waited for."""
    while True:
        try:
            return await call(*arguments)
        except LedgerUnavailableError as problem:
            logger.warning("nothing is done before the ledger can be used again: %s", problem)
            await asyncio.sleep(RETRY_SECONDS)
