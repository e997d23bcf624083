"""Recovered means progressed: waiting for a step or a checkpoint beyond the failure's."""

from __future__ import annotations

import logging

from prefect import task
from prefect.cache_policies import NO_CACHE

from trainguard.core.checkpoint import Checkpoint, newest_good
from trainguard.core.fact import Fact
from trainguard.core.incident import Incident
from trainguard.core.observation import Liveness
from trainguard.core.remission import passed
from trainguard.core.signal import Signal
from trainguard.tasks.check import look, record
from trainguard.tasks.collect import checkpoints_now
from trainguard.tasks.context import GuardContext, current_guard
from trainguard.tasks.durable import durably
from trainguard.tasks.incidents import note_signals, the_plan
from trainguard.tasks.wait import stop_if_wanted

logger = logging.getLogger(__name__)

CHECKPOINT_SECONDS = 60.0
"""The checkpoints are looked at this often: a job whose steps can't be read is known by them alone."""
SETTLE_SECONDS = 120.0
"""Seconds that a job which was not restarted may still show the state it was helped out of."""


class Verified(Fact):
    """What the job did after what was done to it."""

    recovered: bool
    why: str


@task(name="verify progress", retries=0, cache_policy=NO_CACHE, persist_result=False)
async def verify(incident: Incident) -> Verified:
    """Wait until the job is further than before the failure, fails again, ends, or time is up."""
    context = current_guard()
    plan = await durably(the_plan, context, incident.id)
    restarted = any(step.action.kind.restarts for step in plan.steps)
    since = looked_at = incident.acted_at or context.clock()
    deadline = since + context.policy.verify_deadline
    newest: Checkpoint | None = None
    while True:
        signals = await look(context, read_log=True)
        await note_signals(context, signals)
        now = context.clock()
        if context.job.checkpoints is not None and (now - looked_at >= CHECKPOINT_SECONDS or now >= deadline):
            newest, looked_at = newest_good(await checkpoints_now(context)), now
        verified = judge(context, incident, signals, restarted=restarted, newest=newest)
        if verified is not None:
            await record(context)
            return verified
        if now >= deadline:
            hours = context.policy.verify_deadline / 3600
            return Verified(recovered=False, why=f"no progress {_beyond(incident)} within {hours:.1f} h")
        await stop_if_wanted(context)


def judge(
    context: GuardContext,
    incident: Incident,
    signals: tuple[Signal, ...],
    *,
    restarted: bool,
    newest: Checkpoint | None = None,
) -> Verified | None:
    """Say what the latest look proves; None while it proves nothing.

    A restart is expected to have made another incarnation; what else was done leaves it the one it was.
    """
    seen = context.observation
    if seen is None or seen.liveness is Liveness.UNKNOWN or seen.incarnation is None:
        return None
    same = incident.incarnation is not None and seen.incarnation.token == incident.incarnation.token
    if same and restarted:
        return None
    further = _further(context, incident, newest)
    if further:
        return Verified(recovered=True, why=further)
    if seen.liveness is Liveness.SUCCEEDED:
        return Verified(recovered=True, why="the job finished")
    if same and passed(incident, seen, context.health, context.step):
        return Verified(recovered=True, why="its trouble is over")
    return _failed_again(
        context, signals, same and context.clock() < (incident.acted_at or 0) + SETTLE_SECONDS
    )


def _failed_again(context: GuardContext, signals: tuple[Signal, ...], settling: bool) -> Verified | None:
    assert context.observation is not None
    if settling:
        return None
    liveness = context.observation.liveness
    if liveness is Liveness.STOPPED:
        return Verified(recovered=False, why="stopped by its owner before it got past the failure")
    if liveness is Liveness.FAILED or any(signal.kind.opens_incident for signal in signals):
        step = "unknown" if context.step is None else context.step
        return Verified(recovered=False, why=f"it failed again at step {step}")
    return None


def _further(context: GuardContext, incident: Incident, newest: Checkpoint | None) -> str:
    """Say which step or checkpoint is beyond the failure's; empty where none is."""
    since, floor = incident.acted_at or 0.0, -1 if incident.step is None else incident.step
    progress = context.progress
    if progress is not None and (progress.at is None or progress.at >= since) and progress.step > floor:
        return f"step {progress.step}, {_beyond(incident)}"
    if newest is None:
        return ""
    if newest.step is not None and incident.step is not None:
        return f"a checkpoint of step {newest.step}, {_beyond(incident)}" if newest.step > floor else ""
    # Where nobody tells a step, a checkpoint written since then is all the progress that can be known.
    unknown = incident.step is None or progress is None
    written = newest.at is not None and newest.at > since
    return f"a checkpoint written since: {newest.path}" if unknown and written else ""


def _beyond(incident: Incident) -> str:
    return "past the failure" if incident.step is None else f"past the failure's step {incident.step}"
