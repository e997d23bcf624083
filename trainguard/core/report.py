"""The pages a person reads in the Prefect UI: a guard's and an incident's. Markdown, log text kept inert."""

from __future__ import annotations

from collections.abc import Sequence

from trainguard.core.decision import ApprovalAnswer, Decision, Plan
from trainguard.core.evidence import Evidence
from trainguard.core.fact import Fact
from trainguard.core.history import IntentRecord, NodeEvent
from trainguard.core.incident import Incident
from trainguard.core.job import Job
from trainguard.core.message_formats import code, fence, markdown_escape
from trainguard.core.messages import moment, span
from trainguard.core.nodes import NODE_MEMORY, node_records
from trainguard.core.observation import Progress
from trainguard.core.progress import Reading
from trainguard.core.sizes import format_size
from trainguard.core.verdict import Diagnosis, Finding


class IncidentFile(Fact):
    """Everything known of one incident."""

    job: Job
    incident: Incident
    diagnosis: Diagnosis | None = None
    evidence: tuple[Evidence, ...] = ()
    plan: Plan | None = None
    answer: ApprovalAnswer | None = None
    intents: tuple[IntentRecord, ...] = ()
    node_events: tuple[NodeEvent, ...] = ()
    """What this incident and others of the cluster laid at the door of the nodes that this one names."""
    step_now: int | None = None
    step_seconds: float | None = None


def incident_report(known: IncidentFile) -> str:
    """Give an incident's page: what happened, shown by what, decided by whom, done and with what end."""
    incident = known.incident
    parts = [
        f"# Incident {incident.id}: {markdown_escape(known.job.name)}",
        f"**{incident.state.replace('_', ' ')}** {markdown_escape(incident.outcome)}",
        _timeline(known),
        _cause(known.diagnosis),
        _nodes(known),
        _decisions(known.plan),
        _answer(known.answer),
        _done(known.intents),
        _cost(known),
        _evidence(known.evidence),
    ]
    return "\n\n".join(part for part in parts if part)


def approval_page(known: IncidentFile) -> str:
    """Give what a person reads above the approval form: short, the question first."""
    steps = known.plan.steps if known.plan else ()
    actions = [f"- `{step.action.kind}` {_detail(step)} ({markdown_escape(step.basis)})" for step in steps]
    found = known.diagnosis
    parts = [
        f"**{markdown_escape(known.job.name)}, incident `{known.incident.id}`: may this be done?**",
        "\n".join(actions),
        f"{markdown_escape(found.cause)} ({found.fault}, {found.confidence:.0%} sure)" if found else "",
        _cited(found, limit=3, short=True) if found else "",
    ]
    return "\n\n".join(part for part in parts if part)


class GuardView(Fact):
    """What the guard's page shows."""

    job: Job
    status: str
    line: str
    progress: Progress | None = None
    reading: Reading
    incidents: tuple[Incident, ...] = ()
    plot: str = ""


def guard_page(view: GuardView) -> str:
    """Give the guard's page: state, status line, progress and loss, incidents, links."""
    progress = view.progress
    parts = [
        f"# {markdown_escape(view.job.name)}: {view.status}",
        fence(view.line),
        f"Progress **{progress}**" if progress else "No progress seen yet.",
        view.plot,
        _incident_table(view.incidents),
        "\n".join(f"- {link.kind}: <{link.url}>" for link in view.reading.links),
        f"Job {code(view.job.key)}",
    ]
    return "\n\n".join(part for part in parts if part)


def _incident_table(incidents: Sequence[Incident]) -> str:
    if not incidents:
        return "No incidents."
    rows = [
        f"| {i.id} | {moment(i.detected_at)} | {', '.join(s.kind for s in i.signals)} | {i.state} "
        f"| {'-' if i.step is None else i.step} | {markdown_escape(i.outcome)} |"
        for i in incidents
    ]
    return "\n".join(
        [
            "## Incidents",
            "",
            "| incident | detected | signals | state | step | outcome |",
            "|---|---|---|---|---|---|",
            *rows,
        ]
    )


def _timeline(known: IncidentFile) -> str:
    incident = known.incident
    rows = [(incident.failed_at, "failed"), (incident.detected_at, "detected")]
    rows += [
        (signal.at, f"{signal.kind}: {signal.detail} ({', '.join(signal.sources)})")
        for signal in incident.signals
    ]
    rows += [(record.intent.at, f"intended {record.intent.action.kind}") for record in known.intents]
    rows += [
        (r.outcome.at, f"{r.outcome.status}: {r.intent.action.kind}") for r in known.intents if r.outcome
    ]
    if known.answer:
        rows.append((known.answer.at, f"{known.answer.answer} by {known.answer.by} ({known.answer.via})"))
    rows += [(incident.recovered_at, "progress past the failure verified"), (incident.closed_at, "closed")]
    dated = sorted((at, what) for at, what in rows if at is not None)
    lines = [f"| {moment(at)} | {markdown_escape(what)} |" for at, what in dated]
    return "\n".join(["## Timeline", "", "| time | what |", "|---|---|", *lines])


def _cause(diagnosis: Diagnosis | None) -> str:
    if diagnosis is None:
        return "## Cause\n\nNot yet known."
    facts = [
        f"**{markdown_escape(diagnosis.cause)}**",
        f"Class `{diagnosis.fault}`, {diagnosis.confidence:.0%} sure, by {diagnosis.by} {markdown_escape(diagnosis.rule)}",
        {True: "Transient.", False: "Not transient: an unchanged restart would not help.", None: ""}[
            diagnosis.transient
        ],
        f"In the code: {code(diagnosis.code_location)}" if diagnosis.code_location else "",
        _cited(diagnosis),
        _findings("Set aside as consequences", diagnosis.consequences),
        _findings("Not chosen", diagnosis.runners_up),
        _hints(diagnosis.look_next),
        f"The model disagrees: {markdown_escape(diagnosis.model_opinion)}" if diagnosis.model_opinion else "",
    ]
    return "\n\n".join(["## Cause", *(fact for fact in facts if fact)])


def _cited(diagnosis: Diagnosis, limit: int = 12, *, short: bool = False) -> str:
    """The cited lines; `short` names files without their folders, for a narrow form."""
    lines = [
        f"{c.source.name.rpartition('/')[2] if short else c.source.name}:{c.line or '?'}: {c.text}"
        for c in diagnosis.citations[:limit]
    ]
    return fence("\n".join(lines)) if lines else ""


def _hints(hints: Sequence[str]) -> str:
    return (
        "\n".join(["**Look next**", "", *(f"- {markdown_escape(hint)}" for hint in hints)]) if hints else ""
    )


def _findings(title: str, findings: Sequence[Finding]) -> str:
    if not findings:
        return ""
    rows = [
        f"- {f.rule} {f.name} x{f.count} at {markdown_escape(f.citation.source.name)}:{f.citation.line or '?'}"
        f" {markdown_escape(f.why_not)}"
        for f in findings[:10]
    ]
    return "\n".join([f"**{title}**", "", *rows])


def _nodes(known: IncidentFile) -> str:
    """The nodes that the incident names, and what else they are known for."""
    if not known.node_events:
        return ""
    since = moment(known.incident.detected_at - NODE_MEMORY)
    rows = [
        f"| {markdown_escape(r.node)} | {', '.join(r.faults)} | {r.incidents} | {r.jobs} | {moment(r.newest_at)} |"
        for r in node_records(known.node_events)
    ]
    return "\n".join(
        [
            "## Nodes",
            "",
            f"Faults laid at their door since {since}, this incident's included.",
            "",
            "| node | faults | incidents | jobs | newest |",
            "|---|---|---|---|---|",
            *rows,
        ]
    )


def _decisions(plan: Plan | None) -> str:
    if plan is None:
        return ""
    if not plan.steps:
        return "## Decision\n\nNothing that can be done fits this cause."
    rows = [
        f"| `{s.action.kind}` {_detail(s)} | {s.verdict} | {markdown_escape(s.basis)} | "
        f"{markdown_escape(s.would_allow) or '-'} |"
        for s in plan.steps
    ]
    return "\n".join(
        [
            "## Decision",
            "",
            "| action | verdict | by which line | what would allow it |",
            "|---|---|---|---|",
            *rows,
        ]
    )


def _detail(step: Decision) -> str:
    action = step.action
    parts = [
        f"{action.script} for exit code {action.exit_code}" if action.script else "",
        f"without {', '.join(action.nodes)}" if action.nodes else "",
        f"from {action.checkpoint}" if action.checkpoint else "",
        f"with {format_size(action.memory_bytes)}" if action.memory_bytes else "",
    ]
    return markdown_escape(", ".join(part for part in parts if part))


def _answer(answer: ApprovalAnswer | None) -> str:
    if answer is None:
        return ""
    note = f": {markdown_escape(answer.note)}" if answer.note else ""
    return f"**{answer.answer}** by {markdown_escape(answer.by)} ({answer.via}), {moment(answer.at)}{note}"


def _done(intents: Sequence[IntentRecord]) -> str:
    if not intents:
        return ""
    rows = [
        f"| `{r.intent.fence.token}` | {r.intent.action.kind} | {r.outcome.status if r.outcome else 'unknown'} | "
        f"{markdown_escape(r.outcome.detail if r.outcome else '')} |"
        for r in intents
    ]
    return "\n".join(["## Done", "", "| fence | action | outcome | detail |", "|---|---|---|---|", *rows])


def _cost(known: IncidentFile) -> str:
    """Hours of waiting, and of steps computed twice."""
    incident = known.incident
    end = incident.recovered_at or incident.closed_at
    if end is None:
        return ""
    waited = max(0.0, end - (incident.failed_at or incident.detected_at))
    lines = [f"- from failure to the end of the incident: {span(waited)} ({waited / 3600:.2f} h)"]
    lost = steps_lost(incident)
    if lost is not None:
        spent = f", about {lost * known.step_seconds / 3600:.2f} h" if known.step_seconds else ""
        lines.append(f"- recomputed: {lost} steps{spent}")
    return "\n".join(["## Cost", "", *lines])


def steps_lost(incident: Incident) -> int | None:
    """Steps between the checkpoint resumed from and the failure; None where either is unknown."""
    if incident.step is None or incident.checkpoint_step is None:
        return None
    return max(0, incident.step - incident.checkpoint_step)


def _evidence(evidence: Sequence[Evidence]) -> str:
    if not evidence:
        return ""
    parts = ["## Evidence"]
    for item in evidence[:8]:
        tail = "\n".join(item.text.splitlines()[-25:])
        name = markdown_escape(item.source.name)
        parts.append(f"{item.kind} {name}, sha256 `{item.sha256[:16]}`\n\n{fence(tail)}")
    return "\n\n".join(parts)
