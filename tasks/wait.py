"""Between checks: cheap shared looks that end the wait as soon as there is news; and when a guard is done."""

from __future__ import annotations

from trainguard.core.cadence import Cadence, next_check
from trainguard.core.incident import IncidentState
from trainguard.core.observation import Liveness, Observation
from trainguard.tasks.check import look
from trainguard.tasks.context import GuardContext
from trainguard.tasks.incidents import crash_incident
from trainguard.tasks.prefect_view import GuardCancelledError, stop_if_cancelled

GONE_SECONDS = 1800.0
"""A job its scheduler no longer knows is watched for so long before the guard gives it up."""


async def wait_for_news(context: GuardContext, cadence: Cadence) -> None:
    """Wait for the next check's time; any sign of trouble or change of state ends the wait at once."""
    now = context.clock()
    wait = next_check(cadence, since_start=now - context.started_at, uncertain=context.health.uncertain)
    until = now + wait if context.until is None else min(now + wait, context.until)
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


class TimeIsUpError(GuardCancelledError):
    """`until` is reached: stop as on a cancellation, but as the owner had planned it."""


def time_is_up(context: GuardContext) -> str:
    """Say so once `until` is reached."""
    reached = context.until is not None and context.clock() >= context.until
    return "until reached; the job goes on" if reached else ""


async def stop_if_wanted(context: GuardContext, *, at_once: bool = False) -> None:
    """Raise TimeIsUpError once `until` is reached, GuardCancelledError where a person has cancelled the guard.

    For whatever waits long within an incident, and, `at_once`, right before something is done to the job.
    """
    up = time_is_up(context)
    if up:
        raise TimeIsUpError(up)
    await stop_if_cancelled(context, at_once=at_once)


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
    floor, step = context.job.watching.auto_stop_min_steps, context.step
    if not floor or step is None or step >= floor:
        return ""
    return f"; an early stop at step {step}, below auto_stop_min_steps = {floor}: was that wanted?"
