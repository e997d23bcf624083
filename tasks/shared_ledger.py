"""One ledger for all guards of an event loop: its connections are threads, and its writers wait in one queue."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from trainguard.ledger.ledger import Ledger
from trainguard.ledger.location import locate


@dataclass
class _Shared:
    opening: asyncio.Task[Ledger]
    users: int = 0


_Key = tuple[int, str]
_shared: dict[_Key, _Shared] = {}


@asynccontextmanager
async def shared_ledger() -> AsyncIterator[Ledger]:
    """Share the ledger with every other guard of this event loop; the last one out closes it.

    Raises what `Ledger.open` raises; who comes next tries again.
    """
    key = (id(asyncio.get_running_loop()), str(locate(None)))
    shared = _shared.get(key)
    if shared is None:
        shared = _shared[key] = _Shared(asyncio.create_task(Ledger.open(), name="open the ledger"))
    shared.users += 1
    try:
        yield await asyncio.shield(shared.opening)
    finally:
        shared.users -= 1
        failed = shared.opening.done() and (shared.opening.cancelled() or shared.opening.exception())
        if (shared.users == 0 or failed) and _shared.get(key) is shared:
            del _shared[key]
        if shared.users == 0:
            await _close(shared.opening)


async def _close(opening: asyncio.Task[Ledger]) -> None:
    await asyncio.wait([opening])
    if not opening.cancelled() and opening.exception() is None:
        await opening.result().close()
