"""Leases: one guard a job, told apart by a number that only grows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Row, bindparam, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from trainguard.core.decision import Lease
from trainguard.core.errors import LeaseHeldError, LeaseLostError
from trainguard.ledger import tables
from trainguard.ledger.store import Store, lock_job, require

_AT_ONCE = 250
"""Leases renewed in one transaction: more would hold their rows for long on a server far away."""


class Leases(Store):
    """Who guards which job. Times are the caller's clock; durations are seconds."""

    async def acquire_lease(
        self, job_key: str, holder: str, at: float, ttl: float, take_over: bool = False
    ) -> Lease:
        """Become the guard of a job.

        The number grows when the holder changes, and after a release; the same holder keeps its own, so
        `holder` must be unique to one process. Raises LeaseHeldError while another holder's lease is
        unexpired, unless told to take over.
        """
        if not holder:
            raise ValueError("a lease needs a holder")

        async def work(tx: AsyncConnection) -> Lease:
            row = await lock_job(tx, job_key)
            if row.holder not in {"", holder} and row.expires_at > at and not take_over:
                raise LeaseHeldError(f"{row.holder} guards {job_key}", row.holder)
            number = row.number if row.holder == holder else row.number + 1
            return await _put(tx, Lease(job_key=job_key, holder=holder, number=number, expires_at=at + ttl))

        return await self._write(work)

    async def renew_lease(self, lease: Lease, at: float, ttl: float) -> Lease:
        """Go on being the guard, also after an expiry that nobody used. Raises LeaseLostError."""

        async def work(tx: AsyncConnection) -> Lease:
            return await _put(tx, lease.model_copy(update={"expires_at": at + ttl}))

        return await self._write(work, lease)

    async def renew_leases(self, leases: Sequence[Lease]) -> frozenset[str]:
        """Renew many, each to its own `expires_at`, and give the keys of the jobs that are still held."""
        kept: set[str] = set()
        # In one order everywhere, so that two processes never wait for each other's rows.
        ordered = sorted(leases, key=lambda lease: lease.job_key)
        for first in range(0, len(ordered), _AT_ONCE):
            some = ordered[first : first + _AT_ONCE]

            async def work(tx: AsyncConnection, some: Sequence[Lease] = some) -> set[str]:
                return await _renewed(tx, some)

            kept |= await self._write(work)
        return frozenset(kept)

    async def check_lease(self, lease: Lease) -> None:
        """Raise LeaseLostError if another guard owns the job by now, or nobody does."""

        async def work(tx: AsyncConnection) -> None:
            await require(tx, lease)

        await self._read(work)

    async def release_lease(self, lease: Lease) -> None:
        """Stop being the guard. A lease lost before has nothing to release: no error."""

        async def work(tx: AsyncConnection) -> None:
            try:
                await require(tx, lease)
            except LeaseLostError:
                return
            await _put(tx, lease.model_copy(update={"holder": "", "expires_at": 0.0}))

        await self._write(work)

    async def lease(self, job_key: str) -> Lease | None:
        """Give who holds the job, expired or not; None where nobody does."""

        async def work(tx: AsyncConnection) -> Lease | None:
            found = select(tables.leases).where(tables.leases.c.job_key == job_key)
            row = (await tx.execute(found)).one_or_none()
            return None if row is None or not row.holder else _lease(row)

        return await self._read(work)

    async def held_leases(self, holder_part: str = "") -> list[Lease]:
        """Give the leases that somebody holds, expired or not; only those with a word in the holder's name."""

        async def work(tx: AsyncConnection) -> list[Lease]:
            found = select(tables.leases).where(
                tables.leases.c.holder != "", tables.leases.c.holder.contains(holder_part, autoescape=True)
            )
            return [_lease(row) for row in await tx.execute(found)]

        return await self._read(work)


async def _renewed(tx: AsyncConnection, leases: Sequence[Lease]) -> set[str]:
    table = tables.leases
    mine = (
        table.c.job_key == bindparam("key"),
        table.c.holder == bindparam("who"),
        table.c.number == bindparam("which"),
    )
    await tx.execute(
        update(table).where(*mine).values(expires_at=bindparam("until")),
        [
            {"key": one.job_key, "who": one.holder, "which": one.number, "until": one.expires_at}
            for one in leases
        ],
    )
    known = {(one.job_key, one.holder, one.number) for one in leases}
    found = select(table.c.job_key, table.c.holder, table.c.number).where(
        table.c.job_key.in_([one.job_key for one in leases])
    )
    return {row.job_key for row in await tx.execute(found) if tuple(row) in known}


def _lease(row: Row[Any]) -> Lease:
    return Lease(job_key=row.job_key, holder=row.holder, number=row.number, expires_at=row.expires_at)


async def _put(tx: AsyncConnection, lease: Lease) -> Lease:
    values = {"holder": lease.holder, "number": lease.number, "expires_at": lease.expires_at}
    await tx.execute(update(tables.leases).where(tables.leases.c.job_key == lease.job_key).values(values))
    return lease
