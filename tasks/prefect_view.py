"""What Prefect shows of a guard. Prefect may be away at any time: then it is shown later, never waited for."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from contextvars import ContextVar
from typing import Any
from uuid import UUID

import httpx
from prefect.artifacts import MarkdownArtifact
from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas import OrchestrationResult
from prefect.client.schemas.actions import ArtifactUpdate
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterParentFlowRunId
from prefect.client.schemas.objects import State, StateType
from prefect.context import FlowRunContext
from prefect.exceptions import ObjectNotFound, PrefectException
from prefect.settings import get_current_settings
from prefect.states import Cancelled, Crashed, Running

from trainguard.core.errors import TrainguardError
from trainguard.core.masking import mask
from trainguard.core.message_formats import mask_page
from trainguard.tasks.context import GuardContext

logger = logging.getLogger(__name__)

PATIENCE = 10.0
"""Seconds a call to Prefect may take before it counts as away."""
CANCEL_SECONDS = 30.0
_watched: ContextVar[bool] = ContextVar("trainguard_cancellation_is_watched", default=False)
KNOCK_SECONDS = 3.0
"""Seconds that one call may take to find out whether Prefect is back."""
RECHECK_SECONDS = 5.0
"""For so long nobody asks Prefect again after it did not answer: a guard has better things to do than to knock."""
OURS = "by trainguard: "
"""Begins the message of a run's end that no person asked for."""
ANSWERED_SECONDS = 3.0
AWAY = (httpx.HTTPError, PrefectException, OSError, TimeoutError)


class _Line:
    """Whether Prefect answered when last asked: one for the process, so that one guard's wait serves all."""

    away = False
    ask_again_at = 0.0
    answered_at = float("-inf")

    def lost(self) -> None:
        """Remember that there was no answer."""
        if not self.away:
            logger.warning("Prefect does not answer: going on without it, and showing it later")
        self.away, self.ask_again_at = True, time.monotonic() + RECHECK_SECONDS

    def found(self) -> None:
        """Remember that Prefect is back."""
        logger.warning("Prefect answers again")
        self.away = False


_line = _Line()


class GuardCancelledError(TrainguardError):
    """A person cancelled the flow run: stop cleanly and leave the job alone."""


@asynccontextmanager
async def prefect() -> AsyncIterator[PrefectClient]:
    """Give a client for one short exchange. Raises one of `AWAY` where Prefect does not answer in time.

    While Prefect is away that is known at once, but for one call every few seconds.
    """
    if _line.away:
        await _knock()
    try:
        async with asyncio.timeout(PATIENCE), get_client() as client:
            yield client
        _line.answered_at = time.monotonic()
    except (httpx.TransportError, OSError, TimeoutError):
        _line.lost()
        raise
    except ValueError as garbage:  # a page of a proxy's, with code 200
        raise TimeoutError("what answers is not Prefect") from garbage


async def _knock() -> None:
    if time.monotonic() < _line.ask_again_at:
        raise TimeoutError("Prefect did not answer a moment ago")
    _line.lost()  # the others go on meanwhile
    async with asyncio.timeout(KNOCK_SECONDS), get_client() as client:
        problem = await client.api_healthcheck()
    if problem is not None:
        raise TimeoutError("Prefect is not back yet") from problem
    _line.found()


async def prefect_answers() -> bool:
    """Whether Prefect's API can be used right now: not asked where it answered a moment ago."""
    if not _line.away and time.monotonic() - _line.answered_at < ANSWERED_SECONDS:
        return True
    try:
        async with prefect() as client:
            return await client.api_healthcheck() is None
    except AWAY:
        return False


async def prefect_is_back(patience: float) -> None:
    """Wait until Prefect answers, at most `patience` seconds."""
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        if await prefect_answers():
            return
        await asyncio.sleep(RECHECK_SECONDS)


async def show_status(context: GuardContext, status: str, message: str = "") -> None:
    """Show a status as the name of the guard's run; not again while it is shown, later where Prefect is away.

    Raises GuardCancelledError where the answer is that a person has cancelled the run.
    """
    if context.shown_status == status:
        return
    context.shown_status = ""
    try:
        async with prefect() as client:
            shown: State[Any] = Running(name=status, message=mask(message))
            result: OrchestrationResult[Any] = await client.set_flow_run_state(
                UUID(context.flow_run_id), shown
            )
    except AWAY as problem:
        logger.info("Prefect does not show status %s yet: %s", status, type(problem).__name__)
        return
    if result.state is not None and result.state.type in {StateType.CANCELLING, StateType.CANCELLED}:
        raise GuardCancelledError("cancelled in Prefect")
    context.shown_status = status


def cancellation_is_watched() -> None:
    """Say that who runs the guards of this context stops them when they are cancelled: none needs to ask."""
    _watched.set(True)


async def stop_if_cancelled(context: GuardContext, *, at_once: bool = False) -> bool:
    """Raise GuardCancelledError where a person has cancelled the run; asked now and then, or `at_once`.

    Prefect away is no cancellation. Says whether Prefect was asked and denied it.
    """
    now = context.clock()
    if not at_once and (_watched.get() or now - context.cancel_asked_at < CANCEL_SECONDS):
        return False
    context.cancel_asked_at = now
    try:
        async with asyncio.timeout(KNOCK_SECONDS if at_once else PATIENCE), prefect() as client:
            state = (await client.read_flow_run(UUID(context.flow_run_id))).state
    except AWAY:
        return False
    if state is not None and state.type in {StateType.CANCELLING, StateType.CANCELLED}:
        raise GuardCancelledError("cancelled in Prefect")
    return True


async def tag_run(wanted: Sequence[str]) -> None:
    """Add tags to the flow run that runs here, beside those its deployment gave it."""
    here = FlowRunContext.get()
    run = here.flow_run if here is not None else None
    if run is None:
        return
    try:
        async with prefect() as client:
            await client.update_flow_run(run.id, tags=sorted({*run.tags, *wanted}))
    except AWAY as problem:
        logger.info("flow run %s is not tagged: %s", run.id, problem)


def settled(message: str) -> State[Any]:
    """Give the end of a run whose guard died or stopped, marked so that nobody takes it for a person's will."""
    return Cancelled(message=f"{OURS}{message}")


async def settle_cancelled(state: State[Any]) -> None:
    """End a run that a person cancelled and whose own end Prefect therefore did not take: it would look alive."""
    run_id = state.state_details.flow_run_id
    if run_id is not None:
        async with prefect() as client:
            await client.set_flow_run_state(run_id, settled("its steps are over"), force=True)


async def retire(flow_run_id: str, successor: str) -> None:
    """End the flow run that a dead guard left behind, and its paused or running children."""
    try:
        async with prefect() as client:
            run_id = UUID(flow_run_id)
            run = await client.read_flow_run(run_id)
            children = await client.read_flow_runs(
                flow_run_filter=FlowRunFilter(parent_flow_run_id=FlowRunFilterParentFlowRunId(any_=[run_id]))
            )
            message = f"its process died; flow run {successor} goes on"
            for child in children:
                if child.state is not None and not child.state.is_final():
                    await client.set_flow_run_state(child.id, settled(message), force=True)
            if run.state is not None and not run.state.is_final():
                await client.set_flow_run_state(run_id, Crashed(message=message), force=True)
    except ObjectNotFound:
        logger.info("flow run %s is gone from Prefect", flow_run_id)
    except AWAY as problem:
        logger.warning("flow run %s still shows as running: %s", flow_run_id, problem)


def page_url(flow_run_id: str) -> str:
    """Give the address of a flow run's page in the Prefect UI; empty where the UI's address is not known."""
    base = get_current_settings().ui_url
    return f"{base}/runs/flow-run/{flow_run_id}" if base else ""


def artifact_url(key: str, page_id: str) -> str:
    """Give the address of a page, of all with its key where its id is not known; empty like `page_url`."""
    base = get_current_settings().ui_url
    place = f"artifact/{page_id}" if page_id else f"key/{key}"
    return f"{base}/artifacts/{place}" if base else ""


async def show_page(key: str, markdown: str, page_id: str, description: str) -> str | None:
    """Show a markdown page, masked: made once a flow run, then updated in place. Gives its id, None where Prefect is away."""
    markdown = await asyncio.to_thread(mask_page, markdown)  # a long one takes a tenth of a second
    description = mask(description)
    try:
        async with prefect() as client:
            if page_id:
                await client.update_artifact(
                    UUID(page_id), ArtifactUpdate(data=markdown, description=description)
                )
                return page_id
            page = MarkdownArtifact(key=key, description=description, markdown=markdown)
            return str((await page.acreate(client)).id)
    except AWAY as problem:
        logger.debug("page %s is not shown yet: %s", key, type(problem).__name__)
        return None
