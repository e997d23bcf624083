"""Freezes itself in the middle of a write to the ledger, holding its locks: python -m … URL JOB."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time

from sqlalchemy import event

from trainguard.core.errors import LeaseLostError, LedgerUnavailableError
from trainguard.ledger.ledger import Ledger


async def main(url: str, job: str) -> None:
    """Say `held`, freeze, and say what became of the write afterwards."""
    async with await Ledger.open(url, patience=2.0) as ledger:
        lease = await ledger.acquire_lease(job, "frozen", time.time(), 1.0)
        print("held", flush=True)

        def freeze(connection: object) -> None:
            del connection
            os.kill(os.getpid(), signal.SIGSTOP)

        event.listen(ledger._engine.sync_engine, "commit", freeze, once=True)
        try:
            await ledger.renew_lease(lease, time.time(), 60.0)
            print("written", flush=True)
        except LedgerUnavailableError:
            print("not written", flush=True)
        try:
            await ledger.check_lease(lease)
            print("still mine", flush=True)
        except LeaseLostError:
            print("lost", flush=True)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
