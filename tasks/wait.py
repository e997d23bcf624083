"""Between checks: cheap shared looks that end the wait as soon as there is news; and when a guard is done."""

from __future__ import annotations

from datetime import datetime

from trainguard.core.cadence import Cadence, next_check
from trainguard.core.incident import IncidentState
from trainguard.core.observation import Liveness, Observation
from trainguard.tasks.check import look
from trainguard.tasks.context import GuardContext
from trainguard.tasks.incidents import crash_incident
from trainguard.tasks.prefect_view import stop_if_cancelled

GONE_SECONDS = 1800.0
"""A job its scheduler no longer knows is watched for so long before the guard gives it up."""


async def wait_for_news(context: GuardContext, cadence: Cadence, deadline: datetime | None) -> None:
    """Wait for the next check's time; any sign of trouble or change of state ends the wait at once."""
    now = context.clock()
    wait = next_check(cadence, since_start=now - context.started_at, uncertain=context.health.uncertain)
    until = now + wait if deadline is None else min(now + wait, deadline.timestamp())
    before = context.observation
    while context.clock() < until:
        try:
            signals = await look(context, timeout=max(0.1, until - context.clock()))
        except TimeoutError:
            return
        context.unanswered.extend(signals)
        if signals or _changed(before, context.observation):
            context.news = True
            return
        await stop_if_cancelled(context)


def _changed(before: Observation | None, seen: Observation | None) -> bool:
    if before is None or seen is None or seen.liveness is not before.liveness:
        return True
    return seen.incarnation != before.incarnation


def time_is_up(context: GuardContext, deadline: datetime | None) -> str:
    """Say so once `until` is reached."""
    reached = deadline is not None and context.clock() >= deadline.timestamp()
    return "until reached; the job goes on" if reached else ""


async def ending(context: GuardContext) -> str:
    """Say how the job ended, by its scheduler's word; empty while it has not."""
    seen = context.observation
    if seen is None:
        return ""
    context.gone_since = (context.gone_since or context.clock()) if seen.liveness is Liveness.GONE else None
    if seen.liveness is Liveness.SUCCEEDED:
        return f"succeeded{await _recoveries(context)}{_early(context)}"
    if seen.liveness is Liveness.STOPPED:
        return f"stopped by its owner or an operator ({seen.native}){await _recoveries(context)}"
    if seen.liveness is Liveness.FAILED and not seen.restart_underway:
        incident = await crash_incident(context)
        return f"unrecoverable: {incident.outcome}" if incident is not None and incident.state.closed else ""
    if context.gone_since is not None and context.clock() - context.gone_since >= GONE_SECONDS:
        return "gone: its scheduler no longer knows it and never said how it ended"
    return ""


async def _recoveries(context: GuardContext) -> str:
    closed = await context.ledger.incidents(context.job.key)
    count = sum(1 for incident in closed if incident.state is IncidentState.RECOVERED)
    return f", recovered {count} time{'s' * (count != 1)}" if count else ""


def _early(context: GuardContext) -> str:
    floor, progress = context.job.watching.auto_stop_min_steps, context.reading.progress
    if not floor or progress is None or progress.step >= floor:
        return ""
    return f"; an early stop at step {progress.step}, below auto_stop_min_steps = {floor}: was that wanted?"
