"""Flow runs whose worker died: found, freed and put back in the queue, each by one worker only.

A run is an orphan when the lease on its job has run out or its holder is a process of this machine that is
gone; and when it has been under way for long and no lease was taken for it. It is put back as `Resuming`:
the next worker with room takes it, on the same page, and the guard goes on from the ledger.
"""

from __future__ import annotations

import logging
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING
from uuid import UUID

from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterId,
    FlowRunFilterState,
    FlowRunFilterStateType,
    WorkPoolFilter,
    WorkPoolFilterName,
)
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.exceptions import ObjectNotFound
from prefect.states import Cancelled, Scheduled

from trainguard.core.errors import LedgerUnavailableError
from trainguard.tasks.context import holder_is_dead
from trainguard.tasks.prefect_view import AWAY, prefect
from trainguard.tasks.shared_ledger import shared_ledger
from trainguard.worker.engine import RESUMING
from trainguard.worker.leases import claimed, held_for, is_dead
from trainguard.worker.remains import PAGE, settle_children

if TYPE_CHECKING:
    from trainguard.core.decision import Lease

logger = logging.getLogger(__name__)

UNDER_WAY = [StateType.PENDING, StateType.RUNNING, StateType.PAUSED, StateType.CANCELLING]


@dataclass(frozen=True)
class _Orphan:
    run: FlowRun
    lease: Lease | None


class Adoption:
    """Looks through one pool. Remembers who is alive, so that another worker's runs cost a look a minute."""

    def __init__(self, pool: str, silent_seconds: float) -> None:
        self.pool = pool
        self.silent_seconds = silent_seconds
        self._alive: dict[UUID, Lease] = {}

    async def look(self, own: Collection[UUID]) -> int:
        """Put back every orphan. `own` are the runs this worker serves. Gives how many it put back."""
        adopted = 0
        try:
            runs = await self._under_way(own)
            self._alive = {run.id: self._alive[run.id] for run in runs if run.id in self._alive}
            held = await self._held(runs)
            for run in runs:
                orphan = self._orphan(run, held.get(str(run.id)))
                if orphan is not None and await self._adopt(orphan):
                    adopted += 1
        except (*AWAY, LedgerUnavailableError) as problem:
            logger.warning("orphans can't be looked for now: %s", problem)
        return adopted

    async def _under_way(self, own: Collection[UUID]) -> list[FlowRun]:
        found: list[FlowRun] = []
        wanted = FlowRunFilter(
            state=FlowRunFilterState(type=FlowRunFilterStateType(any_=UNDER_WAY)),
            id=FlowRunFilterId(not_any_=list(own)) if own else None,
        )
        while True:
            async with prefect() as client:
                page = await client.read_flow_runs(
                    flow_run_filter=wanted,
                    work_pool_filter=WorkPoolFilter(name=WorkPoolFilterName(any_=[self.pool])),
                    limit=PAGE,
                    offset=len(found),
                )
            found += page
            if len(page) < PAGE:
                return found

    async def _held(self, runs: Collection[FlowRun]) -> dict[str, Lease]:
        """The leases by the flow run that they were taken for, where any run's is not known to be alive."""
        if all(run.id in self._alive and not is_dead(self._alive[run.id]) for run in runs):
            return {}
        async with shared_ledger() as ledger:
            return {held_for(lease): lease for lease in await ledger.held_leases()}

    def _orphan(self, run: FlowRun, lease: Lease | None) -> _Orphan | None:
        known = self._alive.get(run.id)
        if known is not None and not is_dead(known):
            return None
        if lease is None:
            return _Orphan(run, None) if self._is_silent(run) else None
        if is_dead(lease):
            return _Orphan(run, lease)
        self._alive[run.id] = lease
        return None

    def _is_silent(self, run: FlowRun) -> bool:
        since = run.state.timestamp if run.state is not None else None
        now = datetime.now().astimezone()
        return since is not None and (now - since).total_seconds() > self.silent_seconds

    async def _adopt(self, orphan: _Orphan) -> bool:
        async with claimed(orphan.run, orphan.lease) as first:
            if not first or not await _is_unchanged(orphan.run):
                return False
            await settle_children(orphan.run.id, "its guard's process died; the guard goes on")
            await _put_back(orphan)
        return True


async def _is_unchanged(run: FlowRun) -> bool:
    """Whether the run is still as it was when it was judged: not put back, taken or ended meanwhile."""
    try:
        async with prefect() as client:
            now = (await client.read_flow_run(run.id)).state
    except ObjectNotFound:
        return False
    return now is not None and run.state is not None and now.id == run.state.id


async def _put_back(orphan: _Orphan) -> None:
    run, lease = orphan.run, orphan.lease
    if lease is None:
        why = "no guard was there for it"
    else:
        why = "its worker's process died" if holder_is_dead(lease.holder) else "its worker fell silent"
    async with prefect() as client:
        if run.state is not None and run.state.is_cancelling():
            await client.set_flow_run_state(
                run.id, Cancelled(message=f"cancelled in Prefect; {why}; the job goes on"), force=True
            )
        else:
            message = f"{why}; the next worker of the pool goes on"
            await client.set_flow_run_state(run.id, Scheduled(name=RESUMING, message=message), force=True)
    logger.warning("flow run %s is put back in the queue: %s", run.name, why)
