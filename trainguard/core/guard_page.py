"""The guard's page in the Prefect UI. Markdown, log text kept inert."""

from __future__ import annotations

from collections.abc import Sequence

from trainguard.core.decision import ApprovalRequest
from trainguard.core.fact import Fact
from trainguard.core.incident import Incident
from trainguard.core.job import Job
from trainguard.core.message_formats import code, fence, markdown_escape, markdown_link
from trainguard.core.messages import moment, span
from trainguard.core.observation import Progress
from trainguard.core.progress import Reading
from trainguard.core.report import question_line, what_happened
from trainguard.core.status_line import HEADER


class ListedIncident(Fact):
    """An incident with what its row says beside it."""

    incident: Incident
    fault: str = ""
    """The class of its cause; empty while that is not known."""
    url: str = ""
    """Its report; empty where there is no page of it."""


class GuardView(Fact):
    """What the guard's page shows."""

    job: Job
    status: str
    line: str
    outcome: str = ""
    """How it ended; empty while it has not."""
    progress: Progress | None = None
    reading: Reading
    incidents: tuple[ListedIncident, ...] = ()
    request: ApprovalRequest | None = None
    """The question that waits for an answer."""
    form_url: str = ""
    plot: str = ""


def guard_page(view: GuardView) -> str:
    """Give the guard's page: state, status line, progress and loss, incidents, links."""
    ref = view.job.ref
    parts = [
        f"# {markdown_escape(view.job.name)}: {view.status}",
        markdown_escape(view.outcome),
        question_line(view.request, view.form_url),
        fence(f"{HEADER}\n{view.line}"),
        _progress(view),
        view.plot,
        _incident_table(view.incidents),
        _links(view.reading),
        f"Job {code(ref.id)}, {ref.scheduler} {code(ref.cluster)}" if ref.cluster else f"Job {code(ref.id)}",
    ]
    return "\n\n".join(part for part in parts if part)


def _progress(view: GuardView) -> str:
    progress = view.progress
    if progress is None:
        return "No progress seen yet."
    facts = [f"Step **{progress.step}**"]
    if progress.total:
        facts[0] += f" of {progress.total} ({progress.step / progress.total:.0%})"
    if progress.loss is not None:
        facts.append(f"loss {progress.loss:.4g}")
    if progress.step_seconds:
        facts.append(f"{progress.step_seconds:.3g} s a step")
        if progress.total and view.status == "Enabled":
            left = max(0, progress.total - progress.step) * progress.step_seconds
            facts.append(f"about {span(left)} left")
    return ", ".join(facts)


def _incident_table(listed: Sequence[ListedIncident]) -> str:
    if not listed:
        return "No incidents."
    rows = [
        f"| {markdown_link(one.incident.id, one.url)} | {one.incident.state.replace('_', ' ')} "
        f"| {what_happened(one.incident)} | {one.fault or '-'} | {moment(one.incident.detected_at)} |"
        for one in listed
    ]
    head = ["| incident | state | what | cause | detected |", "|---|---|---|---|---|"]
    return "\n".join(["## Incidents", "", *head, *rows])


def _links(reading: Reading) -> str:
    links = "\n".join(f"- {link.kind}: <{link.url}>" for link in reading.links)
    return f"## Links\n\n{links}" if links else ""
