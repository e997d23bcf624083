"""What the ledger knows of an incident, gathered for reports and the command line."""

from __future__ import annotations

from trainguard.core.nodes import NODE_MEMORY
from trainguard.core.report import IncidentFile
from trainguard.ledger.ledger import Ledger


async def incident_file(ledger: Ledger, incident_id: str) -> IncidentFile | None:
    """Gather everything the ledger knows of an incident; None for one it does not know."""
    incident = await ledger.incident(incident_id)
    job = None if incident is None else await ledger.job(incident.job_key)
    if incident is None or job is None:
        return None
    since = incident.detected_at - NODE_MEMORY
    return IncidentFile(
        job=job,
        incident=incident,
        diagnosis=await ledger.diagnosis(incident_id),
        evidence=tuple(await ledger.evidence(incident_id)),
        plan=await ledger.plan(incident_id),
        request=await ledger.request(incident.question),
        answer=await ledger.answer_of(incident.question),
        intents=tuple(await ledger.intents(incident_id)),
        node_events=tuple(await ledger.node_history(job.ref, incident_id, since)),
    )
