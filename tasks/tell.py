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
    sight_lost,
    sight_recovered,
)
from trainguard.core.signal import Signal, SignalKind
from trainguard.core.verdict import Diagnosis
from trainguard.tasks.context import GuardContext, current_guard
from trainguard.tasks.notify import notify
from trainguard.tasks.prefect_view import page_url

logger = logging.getLogger(__name__)


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
    """Tell that sight was lost or came back; log the rest."""
    now = context.clock()
    for signal in signals:
        logger.warning("%s: %s", signal.kind, signal.detail)
        if signal.kind is SignalKind.BLIND:
            context.blind_since = signal.at
            lost = sight_lost(context.job, since=signal.at, detail=signal.detail, links=_links(context))
            await _tell(context, f"blind-{signal.at:.0f}", lost)
    since, seeing = context.blind_since, context.health.unknown_since is None
    if since is not None and seeing:
        context.blind_since = None
        message = sight_recovered(context.job, at=now, blind_for=now - since, links=_links(context))
        await _tell(context, f"blind-{since:.0f}", message)


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
