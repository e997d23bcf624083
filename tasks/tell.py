"""Telling people, each thing once and within the owner's limit. A channel that is down disturbs nothing."""

from __future__ import annotations

import logging

from trainguard.core.decision import ApprovalRequest
from trainguard.core.errors import LedgerUnavailableError
from trainguard.core.incident import Incident
from trainguard.core.messages import (
    Link,
    Message,
    approval_needed,
    incident_ended,
    incident_opened,
    record_back,
    record_lost,
    sight_lost,
    sight_recovered,
)
from trainguard.core.signal import Signal, SignalKind
from trainguard.core.verdict import Diagnosis
from trainguard.tasks.context import GuardContext, current_guard
from trainguard.tasks.notify import notify, send_to_all
from trainguard.tasks.prefect_view import page_url

logger = logging.getLogger(__name__)

UNRECORDED_SECONDS = 20.0
"""Seconds without a ledger after which the owner is told."""


async def tell_opened(incident: Incident, diagnosis: Diagnosis) -> None:
    """Tell that an incident opened, with its cause."""
    context = current_guard()
    await _tell(
        context, incident.id, incident_opened(context.job, incident, diagnosis, links=_links(context))
    )


async def tell_asked(incident: Incident, request: ApprovalRequest) -> None:
    """Tell that a decision is needed, with the page of the form."""
    context = current_guard()
    found = await context.ledger.diagnosis(incident.id)
    if found is None:
        return
    url = page_url(request.flow_run_id)
    logger.warning("waits for approval: %s or: trainguard approve %s", url or "(no UI)", request.id)
    links = (Link(label="Approve in Prefect", url=url),)
    await _tell(context, incident.id, approval_needed(context.job, incident, found, request, links=links))


async def tell_closed(incident: Incident) -> None:
    """Tell how an incident ended."""
    context = current_guard()
    found = await context.ledger.diagnosis(incident.id)
    plan = await context.ledger.plan(incident.id)
    await _tell(
        context, incident.id, incident_ended(context.job, incident, found, plan, links=_links(context))
    )


async def tell_signals(context: GuardContext, signals: tuple[Signal, ...]) -> None:
    """Tell that sight was lost or came back; log the rest. A job its scheduler no longer knows is out of sight."""
    now, gone = context.clock(), context.observation is not None and context.observation.liveness == "gone"
    for signal in signals:
        logger.warning("%s: %s", signal.kind, signal.detail)
        if signal.kind is SignalKind.BLIND or (gone and signal.kind is SignalKind.DEGRADED):
            context.blind_since = signal.at
            lost = sight_lost(context.job, since=signal.at, detail=signal.detail, links=_links(context))
            await _tell(context, f"blind-{signal.at:.0f}", lost)
    since, seeing = context.blind_since, context.health.unknown_since is None and not gone
    if since is not None and seeing:
        context.blind_since = None
        message = sight_recovered(context.job, at=now, blind_for=now - since, links=_links(context))
        await _tell(context, f"blind-{since:.0f}", message)


async def tell_record(context: GuardContext, problem: LedgerUnavailableError | None) -> None:
    """Tell once that the ledger is away for long, and once that it is back. What counts messages is what is away."""
    now, since = context.clock(), context.unrecorded_since
    if problem is not None:
        context.unrecorded_since = since = now if since is None else since
        if context.unrecorded_told or now - since < UNRECORDED_SECONDS:
            return
        context.unrecorded_told = True
        message = record_lost(context.job, since=since, detail=str(problem), links=_links(context))
        await send_to_all(context.notifiers, message)
    elif since is not None:
        told, context.unrecorded_told, context.unrecorded_since = context.unrecorded_told, False, None
        if told:
            message = record_back(context.job, at=now, lost_for=now - since, links=_links(context))
            await send_to_all(context.notifiers, message)


def _links(context: GuardContext) -> tuple[Link, ...]:
    return (Link(label="Guard in Prefect", url=page_url(context.flow_run_id)),)


async def _tell(context: GuardContext, about: str, message: Message) -> None:
    if not context.notifiers:
        return
    limit = context.policy.max_alerts_per_job
    try:
        allowed = await context.ledger.note_notification(
            context.job.key, about, message.kind, context.clock(), limit
        )
    except LedgerUnavailableError as problem:
        logger.warning("no message is sent while the ledger can't count it: %s", problem)
        return
    if not allowed:
        return
    await notify(context.notifiers, message)
    try:
        await context.ledger.mark_notified(context.job.key, about, message.kind, context.clock())
    except LedgerUnavailableError as problem:
        logger.warning("a sent message could not be marked and may come again: %s", problem)
