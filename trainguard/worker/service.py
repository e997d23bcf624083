"""One flow run in this worker, from its start to its end or its handover."""

from __future__ import annotations

import asyncio
import logging
from concurrent.futures import Future
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any
from uuid import UUID

from prefect.client.schemas.objects import State
from prefect.exceptions import Abort, ObjectNotFound, Pause
from prefect.states import Cancelled, Crashed

from trainguard.core.errors import LeaseHeldError
from trainguard.core.masking import mask
from trainguard.tasks.prefect_view import AWAY, prefect
from trainguard.worker.engine import GuardRunEngine, Order, Stop
from trainguard.worker.leases import held, served_by_another
from trainguard.worker.remains import settle_children

if TYPE_CHECKING:
    from prefect import Flow
    from prefect.client.schemas.objects import FlowRun

logger = logging.getLogger(__name__)

FIRST_PAUSE, LONGEST_PAUSE = 2.0, 60.0
"""Seconds between two attempts while Prefect does not answer."""


@dataclass
class Service:
    """A flow run that this worker serves."""

    run: FlowRun
    flow: Flow[..., Any]
    order: Order = field(default_factory=Order)
    begun: Future[None] = field(default_factory=Future)
    """Done once the guard itself runs, or never will."""
    ended: Future[None] = field(default_factory=Future)
    task: asyncio.Task[None] | None = None

    def stop(self, why: Stop) -> None:
        """Stop the guard cleanly; the first reason counts. Only in the loop that serves it."""
        if self.order.stop is None and self.task is not None and not self.task.done():
            self.order.stop = why
            self.task.cancel(why.value)

    async def serve(self) -> None:
        """Run the flow run to its end. Whatever goes wrong in it is its own trouble."""
        since = datetime.now().astimezone()
        try:
            await self._serve()
        except asyncio.CancelledError:
            logger.info("guard of flow run %s stopped: %s", self.run.name, self.order.stop or "lease lost")
        except (Exception, SystemExit) as bug:
            # Left to itself, SystemExit would end the event loop, and with it all other guards.
            logger.exception("serving flow run %s failed", self.run.id)
            why = mask(f"the worker could not go on: {type(bug).__name__}: {bug}")
            await _end(self.run.id, Crashed(message=why))
        finally:
            self._resolve(self.begun)
        try:
            if self.order.stop is not None:
                await settle_children(self.run.id, f"stopped with its guard: {self.order.stop}", since)
        finally:
            self._resolve(self.ended)

    def _resolve(self, future: Future[None]) -> None:
        if not future.done():
            future.set_result(None)

    async def _serve(self) -> None:
        pause = FIRST_PAUSE
        while self.order.stop is None:
            try:
                state = await self._run_once()
            except (Abort, Pause, LeaseHeldError) as signal:
                logger.info("flow run %s is left as it is: %s", self.run.name, signal)
                return
            except AWAY as problem:
                # While the run began or ended, not while it guarded: that goes on without Prefect.
                logger.warning("Prefect went away from flow run %s: %s", self.run.name, problem)
                await asyncio.sleep(pause)
                pause = min(LONGEST_PAUSE, pause * 2)
                if await self._ended_meanwhile():
                    return
                continue
            if state.is_cancelling():
                await _end(self.run.id, Cancelled(message="cancelled in Prefect; the job goes on"))
            return

    async def _run_once(self) -> State[Any]:
        engine = GuardRunEngine(
            flow=self.flow,
            flow_run=self.run,
            parameters=parameters_of(self.run),
            order=self.order,
            served_elsewhere=lambda: served_by_another(self.run),
            on_begun=lambda: self._resolve(self.begun),
        )
        async with held(self.run):
            return await engine.run()

    async def _ended_meanwhile(self) -> bool:
        """Ask until Prefect answers whether the run is still to be gone on with."""
        pause = FIRST_PAUSE
        while True:
            try:
                async with prefect() as client:
                    self.run = await client.read_flow_run(self.run.id)
            except ObjectNotFound:
                return True
            except AWAY:
                await asyncio.sleep(pause)
                pause = min(LONGEST_PAUSE, pause * 2)
                continue
            return self.run.state is not None and self.run.state.is_final()


def parameters_of(run: FlowRun) -> dict[str, Any]:
    """Give a run's parameters. Resumed, it keeps its first deadline and takes no job from anybody."""
    parameters: dict[str, Any] = dict(run.parameters)
    if run.start_time is None:
        return parameters
    minutes = _number(parameters.get("minutes"))
    if minutes and not parameters.get("until"):
        parameters["until"] = run.start_time + timedelta(minutes=minutes)
        parameters["minutes"] = None
    if parameters.get("take_over"):
        parameters["take_over"] = False
    return parameters


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) else None


async def _end(run_id: UUID, state: State[Any]) -> None:
    try:
        async with prefect() as client:
            await client.set_flow_run_state(run_id, state, force=True)
    except AWAY as problem:
        logger.warning("flow run %s could not be shown as %s: %s", run_id, state.name, problem)
