"""Recovered means progressed: waiting for a step beyond the failure's."""

from __future__ import annotations

import logging

from prefect import task
from prefect.cache_policies import NO_CACHE

from trainguard.core.fact import Fact
from trainguard.core.incident import Incident
from trainguard.core.observation import Liveness
from trainguard.core.signal import Signal
from trainguard.tasks.check import look, record
from trainguard.tasks.context import GuardContext, current_guard
from trainguard.tasks.tell import tell_signals
from trainguard.tasks.wait import stop_if_wanted

logger = logging.getLogger(__name__)


class Verified(Fact):
    """What the new incarnation did."""

    recovered: bool
    why: str
    signals: tuple[Signal, ...] = ()
    """Signs of new trouble, for the guard to answer."""


@task(name="verify progress", cache_policy=NO_CACHE, persist_result=False)
async def verify(incident: Incident) -> Verified:
    """Wait until the job is further than before the failure, fails again, ends, or time is up."""
    context = current_guard()
    since = incident.acted_at or context.clock()
    deadline = since + context.policy.verify_deadline
    while True:
        signals = await look(context, read_log=True)
        await tell_signals(context, signals)
        verified = judge(context, incident, signals)
        if verified is not None:
            context.unanswered.extend(verified.signals)
            await record(context)
            return verified
        if context.clock() >= deadline:
            hours = context.policy.verify_deadline / 3600
            return Verified(
                recovered=False, why=f"no progress past step {incident.step} within {hours:.1f} h"
            )
        await stop_if_wanted(context)


def judge(context: GuardContext, incident: Incident, signals: tuple[Signal, ...]) -> Verified | None:
    """Say what the latest look proves; None while it proves nothing."""
    seen = context.observation
    if seen is None or seen.liveness is Liveness.UNKNOWN:
        return None
    old = incident.incarnation.token if incident.incarnation else None
    if seen.incarnation is None or seen.incarnation.token == old:
        return None
    step = context.reading.progress.step if context.reading.progress else None
    if step is not None and step > (-1 if incident.step is None else incident.step):
        return Verified(recovered=True, why=f"step {step}, past the failure's step {incident.step}")
    if seen.liveness is Liveness.SUCCEEDED:
        return Verified(recovered=True, why="the job finished")
    if seen.liveness is Liveness.STOPPED:
        return Verified(recovered=False, why="stopped by its owner before it got past the failure")
    trouble = tuple(signal for signal in signals if signal.kind.opens_incident)
    if seen.liveness is Liveness.FAILED or trouble:
        return Verified(recovered=False, why=f"it failed again at step {step or 'unknown'}", signals=trouble)
    return None
