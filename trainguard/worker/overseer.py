"""What a worker does beside its guards: notice cancelled and suspended runs, and adopt orphans."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection
from uuid import UUID

from prefect._flow_run_suspension import is_suspended_flow_run_state
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterId,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import FlowRun, StateType

from trainguard.tasks.prefect_view import AWAY, prefect
from trainguard.worker.adoption import Adoption
from trainguard.worker.engine import Stop
from trainguard.worker.host import GuardHost
from trainguard.worker.remains import PAGE
from trainguard.worker.settings import WorkerSettings

logger = logging.getLogger(__name__)

TELLING = [
    StateType.CANCELLING,
    StateType.CANCELLED,
    StateType.PAUSED,
    StateType.COMPLETED,
    StateType.FAILED,
    StateType.CRASHED,
]


class Overseer:
    """Two loops in the guards' thread. One request each, whatever the number of guards."""

    def __init__(
        self,
        host: GuardHost,
        pool: str,
        settings: Callable[[], WorkerSettings],
        busy: Callable[[], Collection[UUID]],
    ) -> None:
        self._host = host
        self._settings = settings
        self._busy = busy
        self._adoption = Adoption(pool, settings().silent_seconds)

    def start(self) -> None:
        """Begin both."""
        self._host.spawn(
            self._repeat(self.obey, lambda: self._settings().watch_seconds), "watch cancellations"
        )
        self._host.spawn(self._repeat(self._adopt, lambda: self._settings().adopt_seconds), "adopt orphans")

    async def _repeat(self, work: Callable[[], Awaitable[object]], every: Callable[[], float]) -> None:
        while True:
            try:
                await work()
            except AWAY as problem:
                logger.info("Prefect does not answer: %s", problem)
            except Exception:
                logger.exception("looking after the pool failed; it is tried again")
            await asyncio.sleep(every())

    async def obey(self) -> None:
        """Stop the guards whose runs somebody cancelled, suspended or ended."""
        ids = sorted(self._host.ids())
        for first in range(0, len(ids), PAGE):
            wanted = FlowRunFilter(
                id=FlowRunFilterId(any_=ids[first : first + PAGE]),
                state=FlowRunFilterState(type=FlowRunFilterStateType(any_=TELLING)),
            )
            async with prefect() as client:
                told = await client.read_flow_runs(flow_run_filter=wanted, limit=PAGE)
            for run in told:
                why = _why_stop(run)
                if why is not None:
                    self._host.stop(run.id, why)

    async def _adopt(self) -> None:
        self._adoption.silent_seconds = self._settings().silent_seconds
        await self._adoption.look(self._host.ids() | frozenset(self._busy()))


def _why_stop(run: FlowRun) -> Stop | None:
    if run.state is None:
        return None
    if run.state.type in {StateType.CANCELLING, StateType.CANCELLED}:
        return Stop.CANCEL
    if run.state.type is StateType.PAUSED:
        # A guard may wait for approval on its own page: that pause is its own doing.
        return Stop.SUSPEND if is_suspended_flow_run_state(run.state) else None
    return Stop.DISOWNED
