"""Whose a flow run is: told by the ledger's lease on its job, or on the run itself where it guards no job."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from trainguard.core.errors import LeaseHeldError, LeaseLostError, LedgerUnavailableError
from trainguard.core.job import JobRef
from trainguard.tasks.context import holder_flow_run, holder_is_dead, lease_holder
from trainguard.tasks.lease import LEASE_SECONDS, RENEW_SECONDS
from trainguard.tasks.shared_ledger import shared_ledger

if TYPE_CHECKING:
    from prefect.client.schemas.objects import FlowRun

    from trainguard.core.decision import Lease

logger = logging.getLogger(__name__)


def lease_key(run: FlowRun) -> str:
    """Name what a flow run is claimed by: its job where the parameters name all of it, else the run itself.

    A job given by its id alone has its cluster from the block: the lease that its guard took names it whole.
    """
    try:
        ref = JobRef.model_validate(run.parameters["job"]["ref"])
    except (KeyError, TypeError, ValueError):
        return f"flow-run/{run.id}"
    return ref.key if ref.scheduler and ref.cluster else f"flow-run/{run.id}"


async def served_by_another(run: FlowRun) -> bool:
    """Whether another process goes on with this very flow run. On doubt nobody does."""
    own = lease_holder(str(run.id))
    try:
        async with shared_ledger() as ledger:
            found = await ledger.held_leases(str(run.id))
    except LedgerUnavailableError:
        return False
    return any(
        holds(lease, run) and lease.holder != own and lease.expires_at > time.time() for lease in found
    )


def held_for(lease: Lease) -> str:
    """Give the id of the flow run that a lease was taken for."""
    return holder_flow_run(lease.holder).partition("/")[0]


def holds(lease: Lease, run: FlowRun) -> bool:
    """Whether a lease was taken for this flow run."""
    return held_for(lease) == str(run.id)


def is_dead(lease: Lease) -> bool:
    """Whether a holder has let its lease run out, or was a process of this machine that is gone."""
    return lease.expires_at <= time.time() or holder_is_dead(lease.holder)


@asynccontextmanager
async def claimed(run: FlowRun, dead: Lease | None) -> AsyncIterator[bool]:
    """Hold a run's lease for a moment, in place of the dead holder seen before. False: another was first."""
    key = lease_key(run) if dead is None else dead.job_key
    async with shared_ledger() as ledger:
        if dead is not None:
            # Frees it only while it is still that holder's: of two who saw it dead one gets it.
            await ledger.release_lease(dead)
        # A name of its own for each claim: a lease is given again to the holder that has it.
        holder = f"{lease_holder(str(run.id))}/{secrets.token_hex(4)}"
        try:
            lease = await ledger.acquire_lease(key, holder, time.time(), LEASE_SECONDS)
        except LeaseHeldError:
            yield False
            return
        try:
            yield True
        finally:
            await ledger.release_lease(lease)


@asynccontextmanager
async def held(run: FlowRun) -> AsyncIterator[None]:
    """Hold a lease on a run that guards no job itself, as a sign of life. Others have their job's."""
    if "job" in run.parameters:
        yield
        return
    async with shared_ledger() as ledger:
        holder = lease_holder(str(run.id))
        lease = await ledger.acquire_lease(lease_key(run), holder, time.time(), LEASE_SECONDS)
        owner = asyncio.current_task()
        assert owner is not None
        renewing = asyncio.create_task(_renew(lease, owner))
        try:
            yield
        finally:
            renewing.cancel()
            await asyncio.gather(renewing, return_exceptions=True)
            await ledger.release_lease(lease)


async def _renew(lease: Lease, owner: asyncio.Task[Any]) -> None:
    while True:
        await asyncio.sleep(RENEW_SECONDS)
        try:
            async with shared_ledger() as ledger:
                await ledger.renew_lease(lease, time.time(), LEASE_SECONDS)
        except LeaseLostError:
            owner.cancel("lease lost")
            return
        except LedgerUnavailableError as problem:
            logger.warning("the lease on %s could not be renewed yet: %s", lease.job_key, problem)
