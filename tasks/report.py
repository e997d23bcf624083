"""Showing a guard and its incidents in Prefect, from what the ledger holds."""

from __future__ import annotations

import logging
import re

from trainguard.core.approval_page import approval_page, approval_question
from trainguard.core.errors import LedgerUnavailableError
from trainguard.core.guard_page import GuardView, ListedIncident, guard_page
from trainguard.core.incident import Incident, IncidentState
from trainguard.core.message_formats import mask_page
from trainguard.core.plot import progress_plot
from trainguard.core.report import incident_report, what_happened
from trainguard.core.status_line import status_line
from trainguard.tasks.context import GuardContext, current_guard
from trainguard.tasks.prefect_view import artifact_url, page_url, show_page, show_status
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
    known = known.model_copy(
        update={
            "step_seconds": progress.step_seconds if progress else None,
            "form_url": page_url(known.request.flow_run_id) if known.request else "",
            "guard_url": _page_of(context, "guard"),
        }
    )
    incident = known.incident
    page = context.pages.get(incident_id, "")
    about = f"{context.job.name}: {what_happened(incident)}: {incident.state.replace('_', ' ')}"
    shown = await show_page(_key(context, incident_id), incident_report(known), page, about)
    if shown is not None:
        context.pages[incident_id] = shown
        context.not_shown.discard(incident_id)


async def show_what_was_missed(context: GuardContext) -> None:
    """Show the reports that Prefect was not there for."""
    for incident_id in tuple(context.not_shown):
        await show_incident_report(incident_id)


async def approval_text(incident: Incident) -> tuple[str, str]:
    """Give what stands above the form, and what at its decision. Raises LedgerUnavailableError."""
    known = await incident_file(current_guard().ledger, incident.id)
    if known is None:
        return f"incident {incident.id}", "May it be done?"
    return mask_page(approval_page(known)), mask_page(approval_question(known))


async def show_guard_page(context: GuardContext) -> None:
    """Show or update the guard's page."""
    try:
        view = await _view(context)
    except LedgerUnavailableError as problem:
        logger.info("the guard's page is shown later: %s", problem)
        return
    known = context.pages.get("guard", "")
    page = await show_page(
        _key(context, "guard"), guard_page(view), known, f"guard of {context.job.name}: {context.status}"
    )
    if page is not None:
        context.pages["guard"] = page
        if not known:
            logger.info("the guard's page: %s", _page_of(context, "guard") or "(no UI)")
    await show_what_was_missed(context)


async def _view(context: GuardContext) -> GuardView:
    incidents = await context.ledger.incidents(context.job.key, limit=20)
    waiting = any(incident.state is IncidentState.AWAITING_APPROVAL for incident in incidents)
    asked = await context.ledger.open_requests(context.job.key) if waiting else []
    stand = await context.ledger.job_status(context.job.key) if context.status == "Completed" else None
    return GuardView(
        job=context.job,
        status=context.status,
        outcome=stand.outcome if stand else "",
        line=line_of(context),
        progress=context.progress,
        reading=context.reading,
        incidents=tuple([await _listed(context, incident) for incident in incidents]),
        request=asked[0] if asked else None,
        form_url=page_url(asked[0].flow_run_id) if asked else "",
        plot=progress_plot(context.reading, incidents),
    )


async def _listed(context: GuardContext, incident: Incident) -> ListedIncident:
    fault = context.faults.get(incident.id, "")
    if not fault:
        found = await context.ledger.diagnosis(incident.id)
        fault = found.fault.value if found else ""
    if incident.state.closed:
        context.faults[incident.id] = fault  # what is closed is not diagnosed again
    shown = incident.id in context.pages or (incident.state.closed and incident.id not in context.not_shown)
    return ListedIncident(incident=incident, fault=fault, url=_page_of(context, incident.id) if shown else "")


def _key(context: GuardContext, what: str) -> str:
    """The artifact's key: it begins alike for all that is shown of a job, so that a search finds it."""
    name = slug(context.job.name)
    return f"guard-{name}" if what == "guard" else f"incident-{name}-{what}"


def _page_of(context: GuardContext, what: str) -> str:
    return artifact_url(_key(context, what), context.pages.get(what, ""))


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
