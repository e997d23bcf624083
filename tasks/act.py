"""Acting at most once: the intent is written first, and after a crash the scheduler is asked, not told."""

from __future__ import annotations

import asyncio
import logging

from prefect import task
from prefect.cache_policies import NO_CACHE

from trainguard.core.action import Action, ActionKind, Fence, Outcome, OutcomeStatus
from trainguard.core.checkpoint import newest_good
from trainguard.core.decision import Intent, Plan
from trainguard.core.errors import (
    AccessRefusedError,
    IntentExistsError,
    RefusedError,
    SchedulerError,
)
from trainguard.core.incident import Incident
from trainguard.core.observation import Liveness, Observation
from trainguard.core.planning import finds_its_own_checkpoint, stale
from trainguard.schedulers.sharing import answered
from trainguard.tasks.check import take_in
from trainguard.tasks.collect import checkpoints_now
from trainguard.tasks.context import GuardContext, current_guard
from trainguard.tasks.durable import RETRY_SECONDS, durably
from trainguard.tasks.incidents import note_signals
from trainguard.tasks.lease import hold_on
from trainguard.tasks.log_reading import ANSWER_SECONDS, read_new_log
from trainguard.tasks.script import perform_script, what_became
from trainguard.tasks.wait import stop_if_wanted

logger = logging.getLogger(__name__)

JUST_NOW = 5.0
"""Seconds for which a last look at the job counts; older, it is looked at once more."""
TRIES = 10
"""How often an action is tried that provably did not happen, because the cluster could not be reached."""
GONE_SECONDS = 1800.0
"""So long a job that its scheduler suddenly does not know is waited for before an action is given up."""
PERFORM_SECONDS = 900.0
FIND_SECONDS = 300.0


def fence_of(context: GuardContext, incident: Incident, number: int) -> Fence:
    """Name the place an action has in its incident: the same after a crash."""
    token = f"tg-{incident.id}-{incident.attempt}-{number}"
    return Fence(token=token, incident=incident.id, lease=context.lease.number)


@task(name="act", task_run_name="{action.kind}", retries=0, cache_policy=NO_CACHE, persist_result=False)
async def act(incident: Incident, action: Action, number: int) -> Outcome:
    """Do one planned action at most once, whatever died before. Waits while the truth can't be told."""
    context = current_guard()
    fence = fence_of(context, incident, number)
    known = await _gone_on_with(context, incident, fence)
    if known is not None:
        return known
    refused = await _why_not(context, incident, action, fence)
    if refused is not None:
        return refused
    looked_at = context.clock()
    await stop_if_wanted(context, at_once=True)
    # While the ledger was away the lease may have run out; nobody else having taken it, it is still ours.
    await durably(hold_on, context)
    intent = Intent(fence=fence, job_key=context.job.key, action=action, at=context.clock())
    try:
        await durably(context.ledger.write_intent, context.lease, intent)
    except IntentExistsError:
        # It was written, though the ledger did not get to say so.
        known = await _gone_on_with(context, incident, fence)
        if known is None:
            raise
        return known
    return await _perform(context, incident, intent, looked_at)


async def _gone_on_with(context: GuardContext, incident: Incident, fence: Fence) -> Outcome | None:
    """Bring an intent that is on record to its outcome; None where there is none."""
    for record in await durably(context.ledger.intents, incident.id):
        if record.intent.fence.token != fence.token:
            continue
        if record.outcome is not None and record.outcome.status is not OutcomeStatus.UNKNOWN:
            return record.outcome
        found = await _find_out(context, record.intent)
        if found is None:
            return await _perform(context, incident, record.intent)
        await durably(context.ledger.write_outcome, context.lease, found)
        return found
    return None


async def _perform(
    context: GuardContext, incident: Incident, intent: Intent, looked_at: float = 0.0
) -> Outcome:
    """Act on an intent that is on record; again only where the scheduler is sure that it did not happen."""
    tries = 0
    while True:
        just_looked = 0 <= context.clock() - looked_at < JUST_NOW
        refused = None
        if not just_looked:
            await stop_if_wanted(context, at_once=True)
            refused = await _why_not(context, incident, intent.action, intent.fence)
        outcome = refused or await _try(context, intent)
        if outcome.status is not OutcomeStatus.UNKNOWN:
            break
        found = await _find_out(context, intent)
        if found is not None:
            outcome = found
            break
        tries, looked_at = tries + 1, 0.0
        if tries == TRIES:
            detail = f"{outcome.detail}; it did not happen, in {tries} attempts"
            outcome = outcome.model_copy(update={"status": OutcomeStatus.REFUSED, "detail": detail})
            break
        logger.warning("%s did not happen and is tried again: %s", intent.action.kind, outcome.detail)
        await asyncio.sleep(min(RETRY_SECONDS * 2**tries, 60.0))
    await durably(context.ledger.write_outcome, context.lease, outcome)
    return outcome


async def _try(context: GuardContext, intent: Intent) -> Outcome:
    action, fence = intent.action, intent.fence
    # The lease is asked for once more at the last moment: a frozen guard wakes up fenced off. Whoever is
    # frozen after this acts under a fence that its successor uses too, and which the scheduler obeys once.
    await durably(context.ledger.check_lease, context.lease)
    try:
        if action.kind is ActionKind.RUN_RECOVERY_SCRIPT:
            return await perform_script(context, action, fence)
        return await answered(context.scheduler.perform(context.job, action, fence), PERFORM_SECONDS)
    except (RefusedError, AccessRefusedError) as problem:
        status, detail = OutcomeStatus.REFUSED, str(problem)
    except SchedulerError as problem:
        status, detail = OutcomeStatus.UNKNOWN, str(problem)
    return Outcome(fence=fence.token, status=status, at=context.clock(), detail=detail)


async def _look_again(context: GuardContext) -> Observation:
    """Take in a look that began after this call; give it as the scheduler said it."""
    seen = await context.watch.fresh(context.job.ref)
    if not seen.liveness.terminal:
        # Whether a living job goes on again may be told by its log alone: it is waited for as long as it may take.
        await read_new_log(context, ANSWER_SECONDS)
    context.looks, seen = await context.watch.next(context.job.ref, after=context.looks)
    await note_signals(context, await take_in(context, seen, read_log=False))
    return seen


async def _why_not(context: GuardContext, incident: Incident, action: Action, fence: Fence) -> Outcome | None:
    """Look at the job once more, right before: is it still as it was diagnosed?

    A job that can't be seen, or that its scheduler suddenly does not know, is waited for.
    """
    gone_since: float | None = None
    while True:
        seen = await _look_again(context)
        why = stale(incident, action, seen, context.health, context.step)
        now = context.clock()
        gone_since = (gone_since or now) if seen.liveness is Liveness.GONE else None
        gone = gone_since is not None and now - gone_since < GONE_SECONDS
        if why and (gone or seen.liveness is Liveness.UNKNOWN):
            logger.info("%s waits: %s", action.kind, why)
            await stop_if_wanted(context, at_once=True)
            await asyncio.sleep(RETRY_SECONDS)
            continue
        if not why:
            return None
        stale_by_now = seen.liveness is not Liveness.GONE
        return Outcome(
            fence=fence.token, status=OutcomeStatus.REFUSED, at=now, detail=why, stale=stale_by_now
        )


async def _find_out(context: GuardContext, intent: Intent) -> Outcome | None:
    """Ask the scheduler what became of an intent until it answers: never act on doubt."""
    if intent.action.kind is ActionKind.RUN_RECOVERY_SCRIPT:
        return await what_became(context, intent)
    while True:
        try:
            found = await answered(context.scheduler.find(context.job, intent.fence), FIND_SECONDS)
        except SchedulerError as problem:
            logger.warning("what became of %s can't be told yet: %s", intent.fence.token, problem)
            await stop_if_wanted(context, at_once=True)
            await asyncio.sleep(RETRY_SECONDS)
            continue
        return found


def _needed(kind: ActionKind, context: GuardContext) -> bool:
    if kind is ActionKind.SET_ASIDE_CHECKPOINT:
        return finds_its_own_checkpoint(context.job)
    return kind.restarts or kind is ActionKind.RUN_RECOVERY_SCRIPT


async def step_used(action: Action, at: float) -> int | None:
    """Give the step from which a restart at `at` resumed: the one it was told, else the newest that was there.

    A job that lived until it was restarted may have written checkpoints after the plan was made.
    """
    context = current_guard()
    if not finds_its_own_checkpoint(context.job):
        return action.checkpoint_step
    found = await checkpoints_now(context) or ()
    newest = newest_good(tuple(one for one in found if one.at is None or one.at <= at))
    return action.checkpoint_step if newest is None else newest.step


async def act_all(incident: Incident, plan: Plan) -> list[Outcome]:
    """Do a plan's steps in order; stop at the first that a restart needs and that was not done."""
    outcomes = []
    for number, step in enumerate(plan.steps):
        outcome = await act(incident, step.action, number)
        outcomes.append(outcome)
        if _needed(step.action.kind, current_guard()) and outcome.status is not OutcomeStatus.DONE:
            break
    return outcomes
