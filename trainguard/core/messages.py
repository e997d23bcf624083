"""What people are told: messages as facts, before any channel's markup.

The names of jobs and all text out of logs are untrusted: a message keeps them in fields, body and excerpt, and the
renderers in `message_formats` see to it that they stay text.
"""

from __future__ import annotations

from datetime import UTC, datetime
from enum import StrEnum

from trainguard.core.action import ActionKind
from trainguard.core.decision import ApprovalRequest, Plan, Verdict
from trainguard.core.fact import Fact
from trainguard.core.incident import Incident, IncidentState
from trainguard.core.job import Job
from trainguard.core.masking import mask
from trainguard.core.signal import Signal, SignalKind
from trainguard.core.verdict import Diagnosis

EXCERPT_LINES = 12


class MessageKind(StrEnum):
    """What a message is about. Stable contract: stored in ledgers, counted against alert limits."""

    OPENED = "opened"
    APPROVAL = "approval"
    ENDED = "ended"
    DEGRADED = "degraded"
    BLIND = "blind"
    SIGHTED = "sighted"
    UNRECORDED = "unrecorded"
    RECORDED = "recorded"


class Severity(StrEnum):
    """How much a message wants attention."""

    INFO = "info"
    GOOD = "good"
    WARNING = "warning"
    CRITICAL = "critical"


class Link(Fact):
    """Where to go. `url` comes from our own settings or from Prefect, never from a log."""

    label: str
    url: str


class Message(Fact):
    """One thing to tell, free of markup."""

    kind: MessageKind
    severity: Severity
    title: str
    fields: tuple[tuple[str, str], ...] = ()
    """Name and value, in order."""
    body: str = ""
    """Sentences, one a line."""
    excerpt: str = ""
    """Lines out of logs, masked."""
    commands: tuple[str, ...] = ()
    """What to type."""
    links: tuple[Link, ...] = ()


def masked(message: Message) -> Message:
    """Give a message without the secrets that may stand in a name, a reason or a line of a log."""
    return message.model_copy(
        update={
            "title": mask(message.title),
            "fields": tuple((name, mask(value)) for name, value in message.fields),
            "body": mask(message.body),
            "excerpt": mask(message.excerpt),
            "commands": tuple(mask(command) for command in message.commands),
            "links": tuple(Link(label=mask(link.label), url=mask(link.url)) for link in message.links),
        }
    )


def incident_opened(
    job: Job,
    incident: Incident,
    diagnosis: Diagnosis | None,
    *,
    status: str = "",
    links: tuple[Link, ...] = (),
) -> Message:
    """Tell that a job failed. `status` is the scheduler's own word where there is one."""
    return Message(
        kind=MessageKind.OPENED,
        severity=Severity.CRITICAL,
        title=f"Job failure: {job.name}",
        fields=_job_fields(job, incident, status or _first_signal(incident)),
        body="\n".join(
            _report(diagnosis) if diagnosis else (_signal_details(incident), "The cause is being looked for.")
        ),
        excerpt=_excerpt(diagnosis),
        commands=(f"trainguard incidents {incident.id}",),
        links=links,
    )


def approval_needed(
    job: Job,
    incident: Incident,
    diagnosis: Diagnosis | None,
    request: ApprovalRequest,
    *,
    links: tuple[Link, ...] = (),
) -> Message:
    """Ask for a decision. `links` should hold the page of the paused run."""
    body = (
        *(_report(diagnosis) if diagnosis else ()),
        "",
        "Waits for a decision on:",
        *_steps(request.plan, {Verdict.RUN, Verdict.ASK}),
        f"Without an answer until {moment(request.deadline)} nothing is done.",
    )
    return Message(
        kind=MessageKind.APPROVAL,
        severity=Severity.WARNING,
        title=f"Approval needed: {job.name}",
        fields=_job_fields(job, incident, "awaiting approval"),
        body="\n".join(body).lstrip("\n"),
        excerpt=_excerpt(diagnosis),
        commands=(f"trainguard approve {request.id}",),
        links=links,
    )


def incident_ended(
    job: Job,
    incident: Incident,
    diagnosis: Diagnosis | None,
    plan: Plan | None = None,
    *,
    links: tuple[Link, ...] = (),
) -> Message:
    """Tell how it ended. For an unrecoverable one `plan` says what would have been done and what would allow it."""
    recovered = incident.state is IncidentState.RECOVERED
    body = [
        incident.outcome or f"The incident is {incident.state}.",
        *(_report(diagnosis) if diagnosis else ()),
    ]
    if recovered:
        body += _recovery_times(incident)
    elif incident.state is IncidentState.UNRECOVERABLE and plan and plan.steps:
        body += ["", "Would have been done:", *_steps(plan, set(Verdict)), *_permissions(plan)]
    return Message(
        kind=MessageKind.ENDED,
        severity=_END_SEVERITY.get(incident.state, Severity.INFO),
        title=f"{_END_TITLE.get(incident.state, 'Incident closed')}: {job.name}",
        fields=_job_fields(job, incident, incident.state.value),
        body="\n".join(body),
        excerpt="" if recovered else _excerpt(diagnosis),
        commands=(f"trainguard incidents {incident.id}",),
        links=links,
    )


def degraded(job: Job, signal: Signal, *, links: tuple[Link, ...] = ()) -> Message:
    """Tell that a job does worse than it should though it has not failed."""
    title, then = _DEGRADED.get(signal.kind, ("Degraded", _WATCHED_ON))
    attempt = (("Attempt", str(signal.incarnation.attempt)),) if signal.incarnation else ()
    return Message(
        kind=MessageKind.DEGRADED,
        severity=Severity.WARNING,
        title=f"{title}: {job.name}",
        fields=(*_identity(job), ("Status", signal.kind.value), ("Time", moment(signal.at)), *attempt),
        body=f"{signal.detail}\n{then}",
        commands=("trainguard status",),
        links=links,
    )


def sight_lost(job: Job, *, since: float, detail: str, links: tuple[Link, ...] = ()) -> Message:
    """Tell that nothing can be read about a job: it may be healthy, and nothing will be done to it."""
    return Message(
        kind=MessageKind.BLIND,
        severity=Severity.WARNING,
        title=f"Can't see the job: {job.name}",
        fields=(*_identity(job), ("Blind since", moment(since))),
        body=f"{detail}\nThe job's state is unknown. Nothing will be done to it until it can be seen again.",
        commands=("trainguard doctor",),
        links=links,
    )


def sight_recovered(job: Job, *, at: float, blind_for: float, links: tuple[Link, ...] = ()) -> Message:
    """Tell that the job can be read again. `blind_for` in seconds."""
    return Message(
        kind=MessageKind.SIGHTED,
        severity=Severity.GOOD,
        title=f"Can see the job again: {job.name}",
        fields=(*_identity(job), ("Time", moment(at))),
        body=f"It could not be seen for {span(blind_for)}.",
        links=links,
    )


def record_lost(job: Job, *, since: float, detail: str, links: tuple[Link, ...] = ()) -> Message:
    """Tell that nothing can be put on record: the job is watched on, and nothing will be done to it."""
    return Message(
        kind=MessageKind.UNRECORDED,
        severity=Severity.WARNING,
        title=f"Can't keep records: {job.name}",
        fields=(*_identity(job), ("Since", moment(since))),
        body=f"{detail}\nThe job is watched on. Nothing will be done to it until it can be put on record first.",
        commands=("trainguard doctor",),
        links=links,
    )


def record_back(job: Job, *, at: float, lost_for: float, links: tuple[Link, ...] = ()) -> Message:
    """Tell that records can be kept again. `lost_for` in seconds."""
    return Message(
        kind=MessageKind.RECORDED,
        severity=Severity.GOOD,
        title=f"Can keep records again: {job.name}",
        fields=(*_identity(job), ("Time", moment(at))),
        body=f"Nothing could be put on record for {span(lost_for)}.",
        links=links,
    )


def moment(at: float) -> str:
    """Write a time (seconds since the epoch) as `2026-01-02 03:04:05 UTC`; an impossible one as its number."""
    try:
        return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    except (OverflowError, OSError, ValueError):
        return str(at)


def span(seconds: float) -> str:
    """Write a duration as its two largest units, such as `2 h 5 min`."""
    whole = max(0, round(seconds))
    for size, unit, smaller, name in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= size:
            rest = whole % size // smaller
            return f"{whole // size} {unit} {rest} {name}" if rest else f"{whole // size} {unit}"
    return f"{whole} s"


_WATCHED_ON = "It has not failed: it is watched on, and nothing is done to it."
_DEGRADED = {
    SignalKind.THROUGHPUT_COLLAPSE: ("Slower than usual", _WATCHED_ON),
    SignalKind.LOW_UTILISATION: ("GPUs hardly used", _WATCHED_ON),
    SignalKind.EARLY_STOP: ("Ended early", "It did not fail: was that wanted? Nothing is done to it."),
}
_END_SEVERITY = {
    IncidentState.RECOVERED: Severity.GOOD,
    IncidentState.UNRECOVERABLE: Severity.CRITICAL,
    IncidentState.DISMISSED: Severity.INFO,
}
_END_TITLE = {
    IncidentState.RECOVERED: "Recovered",
    IncidentState.UNRECOVERABLE: "Not recoverable",
    IncidentState.DISMISSED: "Incident dismissed",
}


def _identity(job: Job) -> tuple[tuple[str, str], ...]:
    project = (("Project", job.project),) if job.project else ()
    return (*project, ("Job name", job.name), ("Type", job.kind), ("Job", job.key))


def _job_fields(job: Job, incident: Incident, status: str) -> tuple[tuple[str, str], ...]:
    run = incident.incarnation
    uid = (run.native_id or run.token) if run else "unknown"
    fields = [*_identity(job), ("Status", status)]
    fields += [("Time", moment(incident.failed_at or incident.detected_at)), ("UID", uid)]
    if run:
        fields.append(("Attempt", str(run.attempt)))
    if incident.step is not None:
        fields.append(("Step", str(incident.step)))
    return (*fields, ("Incident", incident.id))


def _first_signal(incident: Incident) -> str:
    return incident.signals[0].kind.value if incident.signals else "unknown"


def _signal_details(incident: Incident) -> str:
    return "\n".join(signal.detail for signal in incident.signals) or "No signal was recorded."


def _report(diagnosis: Diagnosis) -> tuple[str, ...]:
    rule = f", rule {diagnosis.rule}" if diagnosis.rule else ""
    lines = [
        f"Cause: {diagnosis.cause}",
        f"Class: {diagnosis.fault.value} ({diagnosis.confidence:.0%} sure, by {diagnosis.by.value}{rule})",
    ]
    if diagnosis.code_location:
        lines.append(f"Where: {diagnosis.code_location}")
    suspects = ", ".join(
        filter(None, (_suspect(who.rank, who.node, who.device) for who in diagnosis.suspects))
    )
    if suspects:
        lines.append(f"Suspects: {suspects}")
    lines += [f"Look next: {hint}" for hint in diagnosis.look_next[:3]]
    if diagnosis.model_opinion:
        lines.append(f"The language model disagrees: {diagnosis.model_opinion}")
    return tuple(lines)


def _suspect(rank: int | None, node: str, device: str) -> str:
    return " ".join(filter(None, ("" if rank is None else f"rank {rank}", node and f"node {node}", device)))


def _excerpt(diagnosis: Diagnosis | None) -> str:
    if diagnosis is None:
        return ""
    cited = diagnosis.citations[:EXCERPT_LINES]
    return "\n".join(f"{line.source.name}:{line.line or '?'}: {line.text}" for line in cited)


def _steps(plan: Plan, verdicts: set[Verdict]) -> list[str]:
    return [
        f"{number}. {_action(step.action.kind, step.action.nodes)} ({step.verdict.value}: {step.basis})"
        for number, step in enumerate((step for step in plan.steps if step.verdict in verdicts), 1)
    ]


def _action(kind: ActionKind, nodes: tuple[str, ...]) -> str:
    return f"{kind.value} {', '.join(nodes)}".rstrip()


def _permissions(plan: Plan) -> list[str]:
    allowing = [step.would_allow for step in plan.steps if step.would_allow]
    return ["The policy line that would allow it:", *dict.fromkeys(allowing)] if allowing else []


def _recovery_times(incident: Incident) -> list[str]:
    start = incident.failed_at or incident.detected_at
    times = [f"Seen after {span(incident.detected_at - start)}."]
    if incident.acted_at is not None:
        times.append(f"Acted after {span(incident.acted_at - start)}.")
    if incident.recovered_at is not None:
        times.append(f"Progress verified after {span(incident.recovered_at - start)}.")
    if incident.step is not None and incident.checkpoint_step is not None:
        times.append(f"Steps computed again: {max(0, incident.step - incident.checkpoint_step)}.")
    return [" ".join(times)]
