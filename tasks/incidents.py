"""Opening an incident once for each failure, and finding those that a dead guard left open."""

from __future__ import annotations

import secrets
from collections.abc import Sequence

from trainguard.core.checkpoint import newest_good
from trainguard.core.decision import Plan
from trainguard.core.incident import Incident, IncidentState
from trainguard.core.nodes import accused_nodes
from trainguard.core.observation import Liveness
from trainguard.core.signal import Signal, SignalKind
from trainguard.core.verdict import Diagnosis
from trainguard.tasks.collect import checkpoints_now
from trainguard.tasks.context import GuardContext, current_guard
from trainguard.tasks.durable import durably
from trainguard.tasks.log_reading import read_new_log
from trainguard.tasks.tell import tell_signals

ALPHABET = "abcdefghijkmnpqrstuvwxyz23456789"


async def open_incident(context: GuardContext, signals: Sequence[Signal]) -> str | None:
    """Open an incident for signs of failure; None where there are none, or they have their incident."""
    telling = await _unanswered(context, signals)
    crash = await _unanswered_crash(context)
    if crash is not None and not any(signal.kind is SignalKind.CRASH for signal in telling):
        telling = (crash, *telling)
    elif crash is None:
        telling = tuple(signal for signal in telling if signal.kind is not SignalKind.CRASH)
    if not telling:
        return None
    await read_new_log(context)
    seen = context.observation
    incident = Incident(
        id="".join(secrets.choice(ALPHABET) for _ in range(8)),
        job_key=context.job.key,
        incarnation=seen.incarnation if seen else None,
        signals=telling,
        failed_at=_failed_at(context, telling),
        detected_at=context.clock(),
        step=await _step_reached(context),
    )
    await durably(context.ledger.open_incident, context.lease, incident)
    return incident.id


async def _unanswered(context: GuardContext, signals: Sequence[Signal]) -> tuple[Signal, ...]:
    """Those that open an incident, have none yet, still hold, and are about the incarnation that is there now.

    A guard that died while it answered one finds it again among what it had not answered.
    """
    telling = [s for s in signals if s.kind.opens_incident and s.kind in context.health.open]
    if not telling:
        return ()
    seen = context.observation.incarnation if context.observation else None
    known = {
        (signal.kind, signal.at)
        for incident in await context.ledger.incidents(context.job.key)
        for signal in incident.signals
    }
    return tuple(
        signal for signal in telling if (signal.kind, signal.at) not in known and signal.concerns(seen)
    )


async def note_signals(context: GuardContext, signals: Sequence[Signal]) -> None:
    """Tell of signs that began while an incident is under way; those of failure are kept for the next check."""
    context.unanswered.extend(signal for signal in signals if signal.kind.opens_incident)
    await tell_signals(context, tuple(signals))


async def the_incident(context: GuardContext, incident_id: str) -> Incident:
    """Read an incident that must be there. Raises LookupError."""
    incident = await context.ledger.incident(incident_id)
    if incident is None:
        raise LookupError(f"the ledger has no incident {incident_id}")
    return incident


async def note_nodes(incident: Incident, found: Diagnosis) -> None:
    """Put on record at which nodes' door the fault lies."""
    context = current_guard()
    nodes = accused_nodes(found, context.observation) if context.observation else ()
    if nodes:
        await context.ledger.add_node_events(context.lease, incident.id, nodes, found.fault, context.clock())


async def the_plan(context: GuardContext, incident_id: str) -> Plan:
    """Read the plan that an incident past its decision must have. Raises LookupError."""
    plan = await context.ledger.plan(incident_id)
    if plan is None:
        raise LookupError(f"the ledger has no plan for incident {incident_id}")
    return plan


async def unfinished_incidents(context: GuardContext) -> list[str]:
    """Incidents of this job that are not closed, oldest first."""
    found = await context.ledger.incidents(context.job.key, open_only=True)
    return [incident.id for incident in reversed(found)]


async def _unanswered_crash(context: GuardContext) -> Signal | None:
    """A failed incarnation without an incident, whether or not its signal was ever seen."""
    seen = context.observation
    if seen is None or seen.liveness is not Liveness.FAILED or seen.restart_underway:
        return None
    if await crash_incident(context) is not None:
        return None
    return Signal(
        kind=SignalKind.CRASH,
        at=seen.at,
        detail=f"{seen.native or 'failed'} {seen.reason}".strip(),
        sources=("scheduler",),
        incarnation=seen.incarnation,
    )


async def crash_incident(context: GuardContext) -> Incident | None:
    """The incident that answers the crash of the current incarnation.

    A dismissed one does not: it was over because the job had moved on, and now it is there and failed again.
    """
    seen = context.observation
    token = seen.incarnation.token if seen is not None and seen.incarnation is not None else None
    for incident in await context.ledger.incidents(context.job.key):
        crashed = any(signal.kind is SignalKind.CRASH for signal in incident.signals)
        if incident.state is IncidentState.DISMISSED:
            continue
        if crashed and (incident.incarnation.token if incident.incarnation else None) == token:
            return incident
    return None


def _failed_at(context: GuardContext, signals: Sequence[Signal]) -> float:
    """When it happened, as far as the scheduler or the silence tells; else when it was first seen."""
    first, seen = min(signal.at for signal in signals), context.observation
    if seen is None:
        return first
    if seen.ended_at is not None:
        return min(first, seen.ended_at)
    stalled = any(signal.kind is SignalKind.STALL for signal in signals)
    silent_for = seen.log_age if seen.heartbeat_age is None else seen.heartbeat_age
    if stalled and silent_for is not None:
        return min(first, seen.at - silent_for)
    return first


async def _step_reached(context: GuardContext) -> int | None:
    """The furthest step, from the log and the heartbeat, else from the newest good checkpoint."""
    known = [step for step in (context.reading.best_step, context.step) if step is not None]
    if known:
        return max(known)
    checkpoint = newest_good(await checkpoints_now(context))
    return checkpoint.step if checkpoint else None
