"""Telling people, each thing once and within the owner's limit.

What is told of incidents is on record when these return, and sent by `deliver`; they raise
LedgerUnavailableError where it could not be put on record, for whoever waits durably.
"""

from __future__ import annotations

import logging

from trainguard.core.alerts import GIVEN_UP
from trainguard.core.decision import ApprovalRequest
from trainguard.core.errors import LedgerUnavailableError
from trainguard.core.incident import Incident
from trainguard.core.job import Incarnation
from trainguard.core.messages import (
    Link,
    approval_needed,
    degraded,
    incident_ended,
    incident_opened,
    record_back,
    record_lost,
    sight_lost,
    sight_recovered,
)
from trainguard.core.observation import Liveness
from trainguard.core.signal import Signal, SignalKind
from trainguard.core.verdict import Diagnosis
from trainguard.tasks.context import GuardContext, current_guard
from trainguard.tasks.deliver import post, post_later, tell_unrecorded
from trainguard.tasks.prefect_view import page_url

logger = logging.getLogger(__name__)

UNRECORDED_SECONDS = 20.0
"""Seconds without a ledger after which the owner is told."""
TOLD = frozenset(
    {
        SignalKind.DEGRADED,
        SignalKind.THROUGHPUT_COLLAPSE,
        SignalKind.LOW_UTILISATION,
        SignalKind.EARLY_STOP,
    }
)
"""Signals that open no incident but are told at once."""


async def tell_opened(incident: Incident, diagnosis: Diagnosis) -> None:
    """Tell that an incident opened, with its cause and the scheduler's own word for the job's state."""
    context = current_guard()
    sure = f"{diagnosis.fault}, {diagnosis.confidence:.0%} sure"
    logger.warning("incident %s: %s (%s)", incident.id, diagnosis.cause, sure)
    status, links = _native(context, incident), _links(context)
    await post(
        context, incident.id, incident_opened(context.job, incident, diagnosis, status=status, links=links)
    )


async def tell_asked(incident: Incident, request: ApprovalRequest) -> None:
    """Tell that a decision is needed, with the page of the form."""
    context = current_guard()
    found = await context.ledger.diagnosis(incident.id)
    url = page_url(request.flow_run_id)
    logger.warning("waits for approval: %s or: trainguard approve %s", url or "(no UI)", request.id)
    links = (Link(label="Approve in Prefect", url=url),)
    await post(context, request.id, approval_needed(context.job, incident, found, request, links=links))


async def tell_closed(incident: Incident) -> None:
    """Tell how an incident ended."""
    logger.info("incident %s %s: %s", incident.id, incident.state, incident.outcome)
    await _tell_end(incident)


async def _tell_end(incident: Incident) -> None:
    context = current_guard()
    found = await context.ledger.diagnosis(incident.id)
    plan = await context.ledger.plan(incident.id)
    await post(
        context, incident.id, incident_ended(context.job, incident, found, plan, links=_links(context))
    )


async def tell_missed_end(context: GuardContext) -> None:
    """Tell how the newest incident ended, where a guard died before it could. Told already, it is not told again."""
    for incident in await context.ledger.incidents(context.job.key, limit=1):
        if incident.closed_at is not None and context.clock() - incident.closed_at < GIVEN_UP:
            await _tell_end(incident)


async def tell_signals(context: GuardContext, signals: tuple[Signal, ...]) -> None:
    """Tell of a job that does badly without having failed, and of sight that was lost or came back; log the rest.

    A job its scheduler no longer knows is out of sight. Waits for nothing: what an incident is opened for is told
    with its cause.
    """
    seen = context.observation
    gone = seen is not None and seen.liveness == "gone"
    for signal in signals:
        if signal.concerns(seen.incarnation if seen else None):  # else it is what an incident has dealt with
            logger.warning("%s: %s", signal.kind, signal.detail)
        if signal.kind is SignalKind.BLIND or (gone and signal.kind is SignalKind.DEGRADED):
            context.blind_since = signal.at
            lost = sight_lost(context.job, since=signal.at, detail=signal.detail, links=_links(context))
            post_later(context, f"blind-{signal.at:.0f}", lost)
        elif signal.kind in TOLD:
            message = degraded(context.job, signal, links=_links(context))
            post_later(context, f"{signal.kind}-{signal.at:.0f}", message)
    _tell_sight(context, seeing=context.health.unknown_since is None and not gone)


def _tell_sight(context: GuardContext, *, seeing: bool) -> None:
    now, since = context.clock(), context.blind_since
    if since is not None and seeing:
        context.blind_since = None
        message = sight_recovered(context.job, at=now, blind_for=now - since, links=_links(context))
        post_later(context, f"blind-{since:.0f}", message)


async def tell_record(context: GuardContext, problem: LedgerUnavailableError | None) -> None:
    """Tell once that the ledger is away for long, and once that it is back. What counts messages is what is away."""
    now, since = context.clock(), context.unrecorded_since
    if problem is not None:
        context.unrecorded_since = since = now if since is None else since
        if context.unrecorded_told or now - since < UNRECORDED_SECONDS:
            return
        context.unrecorded_told = True
        tell_unrecorded(
            context, record_lost(context.job, since=since, detail=str(problem), links=_links(context))
        )
    elif since is not None:
        told, context.unrecorded_told, context.unrecorded_since = context.unrecorded_told, False, None
        if told:
            # What nobody took of the loss is no news any more: that it is over tells for how long it was.
            context.outbox.unrecorded.clear()
            tell_unrecorded(
                context, record_back(context.job, at=now, lost_for=now - since, links=_links(context))
            )


def _native(context: GuardContext, incident: Incident) -> str:
    """The scheduler's word for the incarnation that failed; for one that still runs what is wrong with it, too."""
    seen = context.observation
    if seen is None or not seen.native or _differ(seen.incarnation, incident.incarnation):
        return ""
    if seen.liveness is Liveness.FAILED or not incident.signals:
        return seen.native
    return f"{seen.native} ({incident.signals[0].kind})"


def _differ(one: Incarnation | None, other: Incarnation | None) -> bool:
    return one is not None and other is not None and one.token != other.token


def _links(context: GuardContext) -> tuple[Link, ...]:
    return (Link(label="Guard in Prefect", url=page_url(context.flow_run_id)),)
