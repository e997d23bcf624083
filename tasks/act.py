"""Acting at most once: the intent is written first, and after a crash the scheduler is asked, not told."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import TypeVar

from prefect import task
from prefect.cache_policies import NO_CACHE

from trainguard.core.action import Action, ActionKind, Fence, Outcome, OutcomeStatus
from trainguard.core.decision import Intent, Plan
from trainguard.core.errors import AccessRefusedError, LedgerUnavailableError, RefusedError, UnreachableError
from trainguard.core.incident import Incident
from trainguard.core.planning import finds_its_own_checkpoint, stale
from trainguard.tasks.context import GuardContext, current_guard
from trainguard.tasks.script import perform_script, what_became

logger = logging.getLogger(__name__)

RETRY_SECONDS = 5.0
T = TypeVar("T")


def fence_of(context: GuardContext, incident: Incident, number: int) -> Fence:
    """Name the place an action has in its incident: the same after a crash."""
    token = f"tg-{incident.id}-{incident.attempt}-{number}"
    return Fence(token=token, incident=incident.id, lease=context.lease.number)


@task(name="act", task_run_name="{action.kind}", cache_policy=NO_CACHE, persist_result=False)
async def act(incident: Incident, action: Action, number: int) -> Outcome:
    """Do one planned action at most once, whatever died before. Waits while the truth can't be told."""
    context = current_guard()
    fence = fence_of(context, incident, number)
    for record in await context.ledger.intents(incident.id):
        if record.intent.fence.token != fence.token:
            continue
        if record.outcome is not None and record.outcome.status is not OutcomeStatus.UNKNOWN:
            return record.outcome
        found = await _find_out(context, record.intent)
        if found is None:
            return await _perform(context, incident, action, fence)
        await durably(context.ledger.write_outcome, context.lease, found)
        return found
    why = await _why_not(context, incident, action)
    if why:
        return Outcome(fence=fence.token, status=OutcomeStatus.REFUSED, at=context.clock(), detail=why)
    intent = Intent(fence=fence, job_key=context.job.key, action=action, at=context.clock())
    await durably(context.ledger.write_intent, context.lease, intent)
    return await _perform(context, incident, action, fence, checked=True)


async def _perform(
    context: GuardContext, incident: Incident, action: Action, fence: Fence, *, checked: bool = False
) -> Outcome:
    why = "" if checked else await _why_not(context, incident, action)
    outcome = await _try(context, action, fence, why)
    if outcome.status is OutcomeStatus.UNKNOWN:
        intent = Intent(fence=fence, job_key=context.job.key, action=action, at=context.clock())
        found = await _find_out(context, intent)
        detail = f"{outcome.detail}; it did not happen"
        outcome = found or outcome.model_copy(update={"status": OutcomeStatus.REFUSED, "detail": detail})
    await durably(context.ledger.write_outcome, context.lease, outcome)
    return outcome


async def _try(context: GuardContext, action: Action, fence: Fence, why_not: str) -> Outcome:
    status, detail = OutcomeStatus.REFUSED, why_not
    if not why_not:
        # The lease is asked for once more at the last moment: a frozen guard wakes up fenced off.
        await context.ledger.check_lease(context.lease)
        try:
            if action.kind is ActionKind.RUN_RECOVERY_SCRIPT:
                return await perform_script(context, action, fence)
            return await context.scheduler.perform(context.job, action, fence)
        except (RefusedError, AccessRefusedError) as problem:
            detail = str(problem)
        except UnreachableError as problem:
            status, detail = OutcomeStatus.UNKNOWN, str(problem)
    return Outcome(fence=fence.token, status=status, at=context.clock(), detail=detail)


async def _why_not(context: GuardContext, incident: Incident, action: Action) -> str:
    """Look at the job once more, right before: is it still the incarnation that was diagnosed?"""
    while True:
        seen = await context.watch.fresh(context.job.ref)
        why = stale(incident, action, seen)
        if why and seen.liveness == "unknown":
            logger.warning("%s waits: %s", action.kind, why)
            await asyncio.sleep(RETRY_SECONDS)
            continue
        return why


async def _find_out(context: GuardContext, intent: Intent) -> Outcome | None:
    """Ask the scheduler what became of an intent until it answers: never act on doubt."""
    if intent.action.kind is ActionKind.RUN_RECOVERY_SCRIPT:
        return await what_became(context, intent)
    while True:
        try:
            found = await context.scheduler.find(context.job, intent.fence)
        except (UnreachableError, AccessRefusedError) as problem:
            logger.warning("what became of %s can't be told yet: %s", intent.fence.token, problem)
            await asyncio.sleep(RETRY_SECONDS)
            continue
        return found


async def durably(write: Callable[..., Awaitable[T]], *arguments: object) -> T:
    """Write to the ledger however long it is away: what is not written is not done."""
    while True:
        try:
            return await write(*arguments)
        except LedgerUnavailableError as problem:
            logger.warning("the ledger can't be written yet: %s", problem)
            await asyncio.sleep(RETRY_SECONDS)


def _needed(kind: ActionKind, context: GuardContext) -> bool:
    if kind is ActionKind.SET_ASIDE_CHECKPOINT:
        return finds_its_own_checkpoint(context.job)
    return kind.restarts or kind is ActionKind.RUN_RECOVERY_SCRIPT


async def act_all(incident: Incident, plan: Plan) -> list[Outcome]:
    """Do a plan's steps in order; stop at the first that a restart needs and that was not done."""
    outcomes = []
    for number, step in enumerate(plan.steps):
        outcome = await act(incident, step.action, number)
        outcomes.append(outcome)
        if _needed(step.action.kind, current_guard()) and outcome.status is not OutcomeStatus.DONE:
            break
    return outcomes
