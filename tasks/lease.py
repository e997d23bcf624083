"""The lease on a job: taken, renewed for all guards of a process together, and laid down."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from contextvars import Context, copy_context
from dataclasses import dataclass, field

from trainguard.core.decision import Lease
from trainguard.core.errors import LeaseLostError, LedgerUnavailableError
from trainguard.ledger.ledger import Ledger
from trainguard.tasks.context import GuardContext, holder_flow_run, holder_is_dead, lease_holder
from trainguard.tasks.prefect_view import retire
from trainguard.tasks.tell import tell_record

logger = logging.getLogger(__name__)

LEASE_SECONDS = 60.0
RENEW_SECONDS = 15.0


async def take_lease(ledger: Ledger, job_key: str, flow_run_id: str, take_over: bool, now: float) -> Lease:
    """Become the guard of a job. Raises LeaseHeldError where another one lives."""
    holder = lease_holder(flow_run_id)
    before = await ledger.lease(job_key)
    if before is not None and holder_is_dead(before.holder):
        # Frees it only while it is still the dead one's: of two who saw it dead one gets the job.
        await ledger.release_lease(before)
    lease = await ledger.acquire_lease(job_key, holder, now, LEASE_SECONDS, take_over=take_over)
    if before is not None and holder_flow_run(before.holder) != flow_run_id:
        await retire(holder_flow_run(before.holder), flow_run_id)
    return lease


async def hold_on(context: GuardContext) -> None:
    """Renew the lease. Raises LeaseLostError, LedgerUnavailableError."""
    context.lease = await context.ledger.renew_lease(context.lease, context.clock(), LEASE_SECONDS)


@dataclass
class _Held:
    """One guard's hold, and who is to be stopped when another guard owns the job."""

    context: GuardContext
    owner: asyncio.Task[object]
    page: Context = field(default_factory=copy_context)
    """The guard's own flow run: what is said of its lease belongs on its page."""
    telling: asyncio.Task[None] | None = None

    def tell(self, problem: LedgerUnavailableError | None) -> None:
        """Tell the owner beside the renewing: a slow channel must not cost a lease."""
        if self.telling is None or self.telling.done():
            self.telling = asyncio.create_task(tell_record(self.context, problem), context=self.page)

    def lost(self) -> None:
        """Stop the guard: another one owns the job."""
        lease = self.context.lease
        self.page.run(logger.warning, "another guard owns %s now: this one stops", lease.job_key)
        self.context.fenced = f"{lease.holder} no longer guards {lease.job_key} (lease {lease.number})"
        self.owner.cancel("lease lost")


@dataclass
class _Keeper:
    """Renews the leases of all guards that share a ledger: one transaction, however many they are."""

    ledger: Ledger
    held: list[_Held] = field(default_factory=list)
    task: asyncio.Task[None] | None = None

    async def keep(self) -> None:
        """Go on until cancelled."""
        while True:
            await asyncio.sleep(RENEW_SECONDS)
            try:
                await self._renew([one for one in self.held if not one.context.fenced])
            except Exception:
                # The guards' leases hang on this loop: it outlives whatever is wrong with one of them.
                logger.exception("leases could not be renewed; it is tried again")

    async def _renew(self, held: Sequence[_Held]) -> None:
        wanted = [
            one.context.lease.model_copy(update={"expires_at": one.context.clock() + LEASE_SECONDS})
            for one in held
        ]
        try:
            kept = await self.ledger.renew_leases(wanted)
        except LedgerUnavailableError as problem:
            logger.warning("%d leases could not be renewed yet: %s", len(held), problem)
            for one in held:
                one.tell(problem)
            return
        for one, lease in zip(held, wanted, strict=True):
            if one.context.lease.number != lease.number:
                continue  # taken anew meanwhile
            if lease.job_key in kept:
                one.context.lease = lease
                one.tell(None)
            else:
                one.lost()


_keepers: dict[int, _Keeper] = {}


@asynccontextmanager
async def keeping(context: GuardContext) -> AsyncIterator[None]:
    """Keep the lease while the guard lives. Raises LeaseLostError out of the guard once another owns the job."""
    owner = asyncio.current_task()
    assert owner is not None
    keeper = _keepers.setdefault(id(context.ledger), _Keeper(context.ledger))
    if keeper.task is None:
        keeper.task = asyncio.create_task(keeper.keep(), name="keep leases", context=Context())
    held = _Held(context, owner)
    keeper.held.append(held)
    try:
        yield
    except asyncio.CancelledError:
        if not context.fenced:
            raise
        owner.uncancel()
        raise LeaseLostError(context.fenced) from None
    finally:
        keeper.held.remove(held)
        ending = [held.telling] if held.telling is not None else []
        if not keeper.held and keeper.task is not None:
            ending.append(keeper.task)
            _keepers.pop(id(context.ledger), None)
        for task in ending:
            task.cancel()
        if ending:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait(ending)
