"""Incident steps shown as a subflow while Prefect answers, and never held up by it where it does not."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from contextvars import ContextVar
from typing import Any
from uuid import UUID

import httpx
from prefect import tags
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterParentFlowRunId
from prefect.client.schemas.objects import State
from prefect.context import TagsContext
from prefect.exceptions import PrefectException
from prefect.states import Cancelled, Completed

from trainguard.tasks.context import GuardContext
from trainguard.tasks.prefect_view import AWAY, PATIENCE, GuardCancelledError, prefect, prefect_answers

logger = logging.getLogger(__name__)


class _Stage:
    """Where one subflow's steps are, seen from outside Prefect's engine."""

    def __init__(self) -> None:
        self.begun = asyncio.Event()
        self.steps: asyncio.Task[None] | None = None
        self.given_up = False


_stage: ContextVar[_Stage | None] = ContextVar("trainguard_stage", default=None)


async def steps(work: Coroutine[Any, Any, None]) -> State[Any] | None:
    """Do a subflow's work inside it, once, wherever it is called from. Gives the run's end if it is a special one."""
    stage = _stage.get()
    if stage is None:
        await work
        return None
    if stage.given_up:
        work.close()
        return None
    # A tag on a task run makes Prefect's engine ask its server for a slot before every task.
    with TagsContext(current_tags=set()):
        stage.steps = asyncio.create_task(work)
    stage.begun.set()
    try:
        await stage.steps
    except GuardCancelledError as cancelled:
        return Cancelled(message=str(cancelled))
    finally:
        stage.steps.cancel()
    return None


async def run_subflow(context: GuardContext, wanted: Any, incident_id: str) -> None:
    """Run `wanted` as a subflow; without one where Prefect is away, or goes away before its steps begin."""
    if await prefect_answers() and await _shown(context, wanted, incident_id):
        return
    token = _stage.set(None)
    try:
        await wanted.fn(incident_id, context.job.name)
    finally:
        _stage.reset(token)


async def _shown(context: GuardContext, wanted: Any, incident_id: str) -> bool:
    """Say whether the steps were done inside a subflow; raises what they raised."""
    stage = _Stage()
    token = _stage.set(stage)
    with tags(*context.tags):
        engine = asyncio.create_task(_run(wanted, incident_id, context.job.name), name=wanted.name)
    _stage.reset(token)
    context.subflows.add(engine)
    engine.add_done_callback(context.subflows.discard)
    engine.add_done_callback(_look_at)
    try:
        if not await _begins(stage, engine):
            stage.given_up = True
            logger.warning("Prefect went away before %s: going on without it", wanted.name)
            return False
        assert stage.steps is not None
        # Its end is shown while the guard goes on; `tidy_up` waits for it.
        await asyncio.wait({stage.steps})
    except asyncio.CancelledError:
        engine.cancel()
        await asyncio.wait({engine}, timeout=PATIENCE)
        raise
    try:
        stage.steps.result()
    except (httpx.HTTPError, PrefectException) as problem:
        # Prefect's own errors only: others' are the steps', which would only meet them again.
        # What is done is in the ledger and is not done again.
        logger.warning("Prefect went away during %s (%s): going on without it", wanted.name, problem)
        return False
    return True


def _look_at(engine: asyncio.Task[None]) -> None:
    """The steps' own error is raised where they are waited for; seen here, it is not reported as lost."""
    if not engine.cancelled():
        engine.exception()


async def _run(wanted: Any, incident_id: str, job_name: str) -> None:
    try:
        await wanted(incident_id, job_name)
    except AWAY as problem:
        logger.warning("Prefect does not show the end of %s: %s", wanted.name, problem)


async def _begins(stage: _Stage, engine: asyncio.Task[None]) -> bool:
    beginning = asyncio.create_task(stage.begun.wait())
    try:
        await asyncio.wait({beginning, engine}, timeout=PATIENCE, return_when=asyncio.FIRST_COMPLETED)
    finally:
        beginning.cancel()
    if engine.done():
        engine.result()
    return stage.begun.is_set()


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
    except (*AWAY, ValueError) as problem:
        logger.warning("a subflow run may still show as running: %s", problem)
