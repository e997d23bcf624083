"""Incident steps shown as a subflow where Prefect answers, and never held up by it.

The guard does the steps. A subflow run, begun at the same time, waits for them to end; once it has begun, the steps
that follow are done inside it, so that their task runs and their form are its own.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Coroutine
from contextvars import Context, ContextVar, copy_context
from typing import Any, TypeVar
from uuid import UUID

import httpx
from prefect import tags
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterParentFlowRunId
from prefect.client.schemas.objects import State, StateType
from prefect.context import TagsContext
from prefect.exceptions import PrefectException, PrefectSignal
from prefect.states import Cancelled, Completed

from trainguard.tasks.context import GuardContext
from trainguard.tasks.prefect_view import (
    AWAY,
    PATIENCE,
    GuardCancelledError,
    prefect,
    prefect_answers,
    settle_cancelled,
)

logger = logging.getLogger(__name__)

T = TypeVar("T")
BEGIN_SECONDS = 0.7
"""Seconds that a subflow's steps wait for its run to begin: an idle Prefect needs less, a busy one much more."""
BUSY_SECONDS = 30.0
"""For so long no other steps wait, after some waited in vain."""


class _Stage:
    """What one subflow's steps and the run that shows them know of each other."""

    def __init__(self) -> None:
        self.began_at = time.monotonic()
        self.begun = asyncio.Event()
        self.inside: Context | None = None
        """Prefect's context of the run."""
        self.engine: asyncio.Task[None] | None = None
        self.steps: asyncio.Task[Any] | None = None

    async def show(self) -> State[Any] | None:
        """Be the run that shows the steps, until they end. Gives the run's end if it is a special one."""
        assert self.steps is not None
        # A tag on a task run makes Prefect's engine ask its server for a slot before every task.
        with TagsContext(current_tags=set()):
            self.inside = copy_context()
        self.begun.set()
        await asyncio.wait({self.steps})
        try:
            end: State[Any] | None = self.steps.result()
        except GuardCancelledError as cancelled:
            return Cancelled(message=str(cancelled))
        return end

    async def has_begun(self, patience: float) -> bool:
        """Wait for the run, at most so many seconds from when it was asked for."""
        assert self.engine is not None
        left = self.began_at + patience - time.monotonic()
        if not self.begun.is_set() and left > 0:
            beginning = asyncio.create_task(self.begun.wait())
            try:
                await asyncio.wait(
                    {beginning, self.engine}, timeout=left, return_when=asyncio.FIRST_COMPLETED
                )
            finally:
                beginning.cancel()
        return self.begun.is_set() and not self.engine.done()


class _Pace:
    """Whether Prefect begins runs in time: one for the process, so that few of many incidents wait in vain."""

    busy_until = float("-inf")

    def patience(self) -> float:
        """Give the seconds worth waiting for a run."""
        return 0.0 if time.monotonic() < self.busy_until else BEGIN_SECONDS

    def too_slow(self) -> None:
        """Remember that one had not begun by then."""
        self.busy_until = time.monotonic() + BUSY_SECONDS


_pace = _Pace()
_shown: ContextVar[_Stage | None] = ContextVar("trainguard_shown", default=None)
"""Set where Prefect's engine runs a subflow: its steps are done elsewhere."""
_doing: ContextVar[_Stage | None] = ContextVar("trainguard_doing", default=None)
"""Set where the guard does a subflow's steps."""


async def steps(work: Coroutine[Any, Any, State[Any] | None]) -> State[Any] | None:
    """Do a subflow's work, or show it where that is done elsewhere. Gives the run's end if it is a special one."""
    stage = _shown.get()
    if stage is None:
        return await in_subflow(work)
    work.close()
    return await stage.show()


async def in_subflow(work: Coroutine[Any, Any, T], *, needed: bool = False) -> T:
    """Do `work` inside the subflow run if that has begun; where it is `needed`, wait longer for that."""
    stage = _doing.get()
    begun = False
    if stage is not None:
        patience = PATIENCE if needed else _pace.patience()
        try:
            begun = await stage.has_begun(patience)
        except asyncio.CancelledError:
            work.close()
            raise
        if patience and not begun:
            _pace.too_slow()
    inside = stage.inside if stage is not None and begun else None
    if inside is None:
        return await work
    return await asyncio.create_task(work, context=inside.copy())


async def run_subflow(context: GuardContext, wanted: Any, incident_id: str) -> None:
    """Do the steps of `wanted`, shown as a subflow where Prefect answers."""
    if await prefect_answers() and await _done(context, wanted, incident_id):
        return
    await wanted.fn(incident_id, context.job.name)


async def _done(context: GuardContext, wanted: Any, incident_id: str) -> bool:
    """Say whether the steps were done; raises what they raised."""
    stage = _Stage()
    stage.steps = _task(_doing, stage, wanted.fn(incident_id, context.job.name))
    with tags(*context.tags):
        stage.engine = _task(_shown, stage, _run(context, wanted, incident_id))
    context.subflows.add(stage.engine)
    stage.engine.add_done_callback(context.subflows.discard)
    try:
        # The run's end is shown while the guard goes on; `tidy_up` waits for it.
        await asyncio.wait({stage.steps})
    except asyncio.CancelledError:
        stage.steps.cancel()
        stage.engine.cancel()
        await asyncio.wait({stage.steps, stage.engine}, timeout=PATIENCE)
        raise
    try:
        stage.steps.result()
    except (httpx.HTTPError, PrefectException, PrefectSignal) as problem:
        # Prefect's own errors only: others' are the steps', which would only meet them again.
        # What is done is in the ledger and is not done again.
        logger.warning("Prefect went away during %s (%s): going on without it", wanted.name, problem)
        return False
    return True


def _task(place: ContextVar[_Stage | None], stage: _Stage, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
    token = place.set(stage)
    try:
        return asyncio.create_task(work)
    finally:
        place.reset(token)


async def _run(context: GuardContext, wanted: Any, incident_id: str) -> None:
    """Let Prefect's engine show the subflow; the steps' own errors are raised where they are waited for."""
    try:
        # As a state: an end that is a failure is no error here.
        end = await wanted(incident_id, context.job.name, return_state=True)
        if end is not None and end.type is StateType.CANCELLING:
            await settle_cancelled(end)
    except AWAY as problem:
        context.untidy = True
        logger.warning("Prefect does not show the end of %s: %s", wanted.name, problem)
    except (Exception, PrefectSignal) as problem:
        context.untidy = True
        if problem is not _raised(_shown.get()):
            logger.exception("Prefect does not show %s", wanted.name)


def _raised(stage: _Stage | None) -> BaseException | None:
    if stage is None or stage.steps is None or not stage.steps.done() or stage.steps.cancelled():
        return None
    return stage.steps.exception()


async def tidy_up(context: GuardContext) -> None:
    """End the subflow runs whose end Prefect was not there for. Their steps are over or went on without them."""
    if context.subflows:
        await asyncio.wait(context.subflows, timeout=PATIENCE)
    try:
        async with prefect() as client:
            parent = FlowRunFilterParentFlowRunId(any_=[UUID(context.flow_run_id)])
            for run in await client.read_flow_runs(flow_run_filter=FlowRunFilter(parent_flow_run_id=parent)):
                if run.state is not None and not run.state.is_final():
                    message = "Prefect was away when its steps ended; the incident's report tells how"
                    await client.set_flow_run_state(run.id, Completed(message=message), force=True)
        context.untidy = False
    except AWAY as problem:
        logger.warning("a subflow run may still show as running: %s", problem)
