"""Showing a guard and its incidents in Prefect, from what the ledger holds."""

from __future__ import annotations

import logging
import re

from trainguard.core.decision import ApprovalRequest
from trainguard.core.errors import LedgerUnavailableError
from trainguard.core.incident import Incident
from trainguard.core.message_formats import mask_page
from trainguard.core.plot import progress_plot
from trainguard.core.report import (
    GuardView,
    approval_page,
    guard_page,
    incident_report,
)
from trainguard.core.status_line import status_line
from trainguard.tasks.context import GuardContext, current_guard
from trainguard.tasks.prefect_view import show_page, show_status
from trainguard.tasks.records import incident_file

logger = logging.getLogger(__name__)


async def set_status(context: GuardContext, status: str, message: str = "") -> None:
    """Set the guard's status, in the ledger and as the name of its run. Raises what `show_status` raises."""
    async with context.changing_status:
        if context.status != status:
            await context.ledger.set_job_status(context.job.key, status, "", context.clock(), context.lease)
            context.status = status
        await show_status(context, status, message)


async def show_incident_report(incident_id: str) -> None:
    """Show or update the incident's report."""
    context = current_guard()
    context.not_shown.add(incident_id)
    try:
        known = await incident_file(context.ledger, incident_id)
    except LedgerUnavailableError as problem:
        logger.info("the report of incident %s is shown later: %s", incident_id, problem)
        return
    if known is None:
        context.not_shown.discard(incident_id)
        return
    progress = context.progress
    known = known.model_copy(update={"step_seconds": progress.step_seconds if progress else None})
    key, page = f"incident-{incident_id}", context.pages.get(incident_id, "")
    shown = await show_page(key, incident_report(known), page, f"incident of {context.job.name}")
    if shown is not None:
        context.pages[incident_id] = shown
        context.not_shown.discard(incident_id)


async def show_what_was_missed(context: GuardContext) -> None:
    """Show the reports that Prefect was not there for."""
    for incident_id in tuple(context.not_shown):
        await show_incident_report(incident_id)


async def approval_text(incident: Incident, request: ApprovalRequest) -> str:
    """Give what stands above the form."""
    known = await incident_file(current_guard().ledger, incident.id)
    return mask_page(approval_page(known)) if known else f"Approve {request.id}?"


async def show_guard_page(context: GuardContext) -> None:
    """Show or update the guard's page."""
    try:
        incidents = await context.ledger.incidents(context.job.key, limit=20)
    except LedgerUnavailableError as problem:
        logger.info("the guard's page is shown later: %s", problem)
        return
    view = GuardView(
        job=context.job,
        status=context.status,
        line=line_of(context),
        progress=context.progress,
        reading=context.reading,
        incidents=tuple(incidents),
        plot=progress_plot(context.reading, incidents),
    )
    key = f"guard-{slug(context.job.name)}"
    page = await show_page(
        key, guard_page(view), context.pages.get("guard", ""), f"guard of {context.job.name}"
    )
    if page is not None:
        context.pages["guard"] = page
    await show_what_was_missed(context)


def line_of(context: GuardContext) -> str:
    """Give the status line of the latest look."""
    seen = context.observation
    return status_line(
        at=context.clock(),
        status=context.status,
        attempt=seen.incarnation.attempt if seen and seen.incarnation else None,
        progress=context.progress,
        utilisation=seen.utilisation if seen else None,
        fix=seen.fix if seen else "",
        run=context.reading.links[-1].run_id if context.reading.links else context.job.name,
    )


def slug(name: str) -> str:
    """Make a name fit for an artifact's key."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:60] or "job"
