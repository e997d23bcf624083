"""Finding the root cause of one incident."""

from __future__ import annotations

from typing import Any

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.states import Completed

from trainguard.core.incident import IncidentState
from trainguard.core.masking import mask
from trainguard.tasks.advise import ask_advisor
from trainguard.tasks.collect import collect_evidence, find_root_cause
from trainguard.tasks.context import current_guard
from trainguard.tasks.durable import durably
from trainguard.tasks.incidents import note_nodes, the_incident
from trainguard.tasks.subflow import steps
from trainguard.tasks.tell import tell_opened


@flow(
    name="diagnose",
    flow_run_name="diagnose {job_name} {incident_id}",
    retries=0,
    persist_result=False,
    validate_parameters=False,
)
async def diagnose(incident_id: str, job_name: str) -> State[Any] | None:
    """Collect evidence, find the root cause, ask the model only where rules can't tell. `recover` shows the report."""
    del job_name  # only names the run
    return await steps(_diagnose(incident_id))


async def _diagnose(incident_id: str) -> State[Any]:
    context = current_guard()
    incident = await durably(the_incident, context, incident_id)
    evidence = await collect_evidence(incident)
    found = await find_root_cause(incident, evidence)
    found = await ask_advisor(incident, found, evidence)
    await durably(context.ledger.add_diagnosis, context.lease, incident.id, found, context.clock())
    await durably(note_nodes, incident, found)
    await durably(tell_opened, incident, found)
    incident = incident.advanced(IncidentState.DIAGNOSED, fingerprint=found.fingerprint)
    await durably(context.ledger.update_incident, context.lease, incident)
    return Completed(message=mask(f"{found.fault}: {found.cause}"))
