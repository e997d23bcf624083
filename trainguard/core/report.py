"""An incident's page in the Prefect UI and on the terminal. Markdown, log text kept inert."""

from __future__ import annotations

from collections.abc import Sequence

from trainguard.core.action import ActionKind
from trainguard.core.decision import Answer, ApprovalAnswer, ApprovalRequest, Decision, Plan
from trainguard.core.evidence import Citation, Evidence
from trainguard.core.fact import Fact
from trainguard.core.history import IntentRecord, NodeEvent
from trainguard.core.incident import Incident
from trainguard.core.job import Job
from trainguard.core.message_formats import code, fence, markdown_escape, markdown_link
from trainguard.core.messages import moment, span
from trainguard.core.nodes import NODE_MEMORY, node_records
from trainguard.core.sizes import format_size
from trainguard.core.verdict import Diagnosis, Finding

_GUARD = "guard page"
_TAIL = 25
"""Lines shown of each piece of evidence."""


class IncidentFile(Fact):
    """Everything known of one incident."""

    job: Job
    incident: Incident
    diagnosis: Diagnosis | None = None
    evidence: tuple[Evidence, ...] = ()
    plan: Plan | None = None
    request: ApprovalRequest | None = None
    answer: ApprovalAnswer | None = None
    intents: tuple[IntentRecord, ...] = ()
    node_events: tuple[NodeEvent, ...] = ()
    """What this incident and others of the cluster laid at the door of the nodes that this one names."""
    step_now: int | None = None
    step_seconds: float | None = None
    form_url: str = ""
    """Where the question's form is; empty where that is not known."""
    guard_url: str = ""
    """The guard's page; empty where it is not known."""


def incident_report(known: IncidentFile) -> str:
    """Give an incident's page: what happened, shown by what, decided by whom, done and with what end."""
    parts = [
        f"# {markdown_escape(known.job.name)}: {what_happened(known.incident)}",
        _standing(known),
        question_line(known.request, known.form_url) if known.answer is None else "",
        f"Incident `{known.incident.id}`"
        + (f", {markdown_link(_GUARD, known.guard_url)}" if known.guard_url else ""),
        _timeline(known),
        _cause(known.diagnosis),
        _nodes(known),
        _decisions(known),
        _done(known.intents),
        _cost(known),
        _evidence(known),
    ]
    return "\n\n".join(part for part in parts if part)


def what_happened(incident: Incident) -> str:
    """Name the trouble in a few words, such as `crash at step 485`."""
    kinds = ", ".join(dict.fromkeys(signal.kind.replace("_", " ") for signal in incident.signals))
    step = "" if incident.step is None else f" at step {incident.step}"
    return f"{kinds or 'trouble'}{step}"


def words(kind: ActionKind) -> str:
    """Write an action as words."""
    return kind.replace("_", " ")


def where(citation: Citation) -> str:
    """Name a line's place as `file:line`: of a path the last two parts, as the evidence has it in full."""
    name = citation.source.name
    short = "/".join(name.rsplit("/", 2)[-2:]) if name.startswith("/") else name
    return short if citation.line is None else f"{short}:{citation.line}"


def question_line(request: ApprovalRequest | None, form_url: str) -> str:
    """Say until when an answer is awaited, and where it is given; empty where none is."""
    if request is None:
        return ""
    form = f"{markdown_link('in its form', form_url)} (Resume) or with " if form_url else "with "
    return (
        f"**Waits for your answer** until {moment(request.deadline)}: {form}`trainguard approve {request.id}`"
    )


def action_detail(step: Decision) -> str:
    """Say with what a step would be done, in plain text; empty where there is nothing to say."""
    action = step.action
    parts = [
        f"{action.script} for exit code {action.exit_code}" if action.script else "",
        f"without {', '.join(action.nodes)}" if action.nodes else "",
        f"from {action.checkpoint}" if action.checkpoint and action.kind.restarts else action.checkpoint,
        f"with {format_size(action.memory_bytes)}" if action.memory_bytes else "",
    ]
    return ", ".join(part for part in parts if part)


def steps_lost(incident: Incident) -> int | None:
    """Steps between the checkpoint resumed from and the failure; None where either is unknown."""
    if incident.step is None or incident.checkpoint_step is None:
        return None
    return max(0, incident.step - incident.checkpoint_step)


def _standing(known: IncidentFile) -> str:
    incident = known.incident
    outcome = f": {markdown_escape(incident.outcome)}" if incident.outcome else ""
    return f"**{incident.state.replace('_', ' ')}**{outcome}"


def _timeline(known: IncidentFile) -> str:
    incident = known.incident
    rows = [(incident.failed_at, "failed"), (incident.detected_at, "detected")]
    rows += [
        (signal.at, f"{signal.kind}: {signal.detail} (seen by {', '.join(signal.sources)})")
        for signal in incident.signals
    ]
    if known.request:
        rows.append((known.request.asked_at, "asked a person"))
    if known.answer:
        rows.append((known.answer.at, _answered(known.answer)))
    for record in known.intents:
        action = words(record.intent.action.kind)
        rows.append((record.intent.at, f"{action}: intended"))
        if record.outcome:
            rows.append((record.outcome.at, f"{action}: {record.outcome.status}"))
    rows += [(incident.recovered_at, "progress past the failure verified"), (incident.closed_at, "closed")]
    dated = sorted(((at, what) for at, what in rows if at is not None), key=lambda row: row[0])
    # A list: a table's cells don't wrap.
    return "\n".join(["## Timeline", "", *(f"- {moment(at)} {markdown_escape(what)}" for at, what in dated)])


def _cause(diagnosis: Diagnosis | None) -> str:
    if diagnosis is None:
        return "## Cause\n\nNot yet known."
    by = f"by {diagnosis.by} {markdown_escape(diagnosis.rule)}".rstrip()
    facts = [
        f"**{markdown_escape(diagnosis.cause)}**",
        f"Class `{diagnosis.fault}`, {diagnosis.confidence:.0%} sure, {by}",
        {True: "Transient.", False: "Not transient: an unchanged restart would not help.", None: ""}[
            diagnosis.transient
        ],
        f"In the code: {code(diagnosis.code_location)}" if diagnosis.code_location else "",
        _listed(
            "Shown by", [f"{markdown_escape(where(c))} {code(c.text)}" for c in diagnosis.citations[:12]]
        ),
        _listed("Set aside as consequences", [_finding(found) for found in diagnosis.consequences[:10]]),
        _listed("Not chosen", [_finding(found) for found in diagnosis.runners_up[:10]]),
        _listed("Look next", [markdown_escape(hint) for hint in diagnosis.look_next]),
        f"The model disagrees: {markdown_escape(diagnosis.model_opinion)}" if diagnosis.model_opinion else "",
    ]
    return "\n\n".join(["## Cause", *(fact for fact in facts if fact)])


def _listed(title: str, items: Sequence[str]) -> str:
    return "\n".join([f"**{title}**", "", *(f"- {item}" for item in items)]) if items else ""


def _finding(found: Finding) -> str:
    lines = "1 line" if found.count == 1 else f"{found.count} lines"
    why = f": {markdown_escape(found.why_not)}" if found.why_not else ""
    return f"{found.rule} {found.name}, {lines}, first at {markdown_escape(where(found.citation))}{why}"


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


def _decisions(known: IncidentFile) -> str:
    if known.plan is None:
        return ""
    steps = [f"- {_decision(step)}" for step in known.plan.steps]
    answer = known.answer
    note = f": {markdown_escape(answer.note)}" if answer and answer.note else ""
    parts = [
        "## Decision",
        "\n".join(steps) or "Nothing that can be done fits this cause.",
        f"**{markdown_escape(_answered(answer))}**, {moment(answer.at)}{note}" if answer else "",
    ]
    return "\n\n".join(part for part in parts if part)


def _decision(step: Decision) -> str:
    allows = f"; {code(step.would_allow)} would allow it" if step.would_allow else ""
    detail = markdown_escape(action_detail(step))
    return f"**{words(step.action.kind)}**{detail and ' '}{detail}: {step.verdict}, {markdown_escape(step.basis)}{allows}"


def _answered(answer: ApprovalAnswer) -> str:
    said = "approved" if answer.answer is Answer.APPROVE else "refused"
    return f"{said} by {answer.by} ({answer.via})"


def _done(intents: Sequence[IntentRecord]) -> str:
    if not intents:
        return ""
    rows = [
        f"| {moment(r.intent.at)} | {words(r.intent.action.kind)} | {r.outcome.status if r.outcome else 'unknown'} | "
        f"{markdown_escape(r.outcome.detail if r.outcome else '')} | {r.intent.fence.token} |"
        for r in intents
    ]
    head = ["| intended | action | outcome | detail | fence |", "|---|---|---|---|---|"]
    return "\n".join(["## Intent and outcome", "", *head, *rows])


def _cost(known: IncidentFile) -> str:
    """Hours of waiting, and of steps computed twice."""
    incident = known.incident
    end = incident.recovered_at or incident.closed_at
    if end is None:
        return ""
    asked = known.request.asked_at if known.request else None
    answered = f", of it {span(known.answer.at - asked)} for an answer" if known.answer and asked else ""
    lines = [f"- waiting: {_hours(max(0.0, end - (incident.failed_at or incident.detected_at)))}{answered}"]
    lost = steps_lost(incident)
    if lost is not None:
        spent = f", about {_hours(lost * known.step_seconds)}" if known.step_seconds else ""
        lines.append(f"- recomputed: {lost} steps, from {incident.checkpoint_step} to {incident.step}{spent}")
    return "\n".join(["## Cost", "", *lines])


def _hours(seconds: float) -> str:
    hours = f"{seconds / 3600:.2f} h" if seconds >= 36 else "under 0.01 h"
    return f"{span(seconds)} ({hours})"


def _evidence(known: IncidentFile) -> str:
    if not known.evidence:
        return ""
    cited = known.diagnosis.citations if known.diagnosis else ()
    parts = ["## Evidence"]
    for item in known.evidence[:8]:
        shown, which = _excerpt(item, cited)
        name = markdown_escape(item.source.name)
        parts.append(f"**{name}** ({item.kind}, sha256 `{item.sha256[:16]}`): {which}")
        parts += [fence(shown)] if shown else []
    return "\n\n".join(parts)


def _excerpt(item: Evidence, cited: Sequence[Citation]) -> tuple[str, str]:
    """Give the lines to show of a piece of evidence, and which those are."""
    if item.text.startswith("{"):
        return "", "a record for programs, in `trainguard incidents ID --json`"
    lines = item.text.splitlines()
    wanted = {citation.text for citation in cited if citation.source == item.source}
    first = next((number for number, line in enumerate(lines) if line in wanted), len(lines))
    if first >= len(lines) - _TAIL:
        return "\n".join(lines[-_TAIL:]), "all of it" if len(lines) <= _TAIL else "its end"
    begin = max(0, first - _TAIL // 2)
    return "\n".join(lines[begin : begin + _TAIL]), "around the first line that is cited"
