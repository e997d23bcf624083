"""What was tried before, as budgets count it."""

from __future__ import annotations

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from trainguard.core.action import OutcomeStatus
from trainguard.core.history import IntentRecord, RecoveryRecord
from trainguard.core.incident import Incident
from trainguard.core.job import JobRef
from trainguard.core.verdict import FaultClass
from trainguard.ledger import tables
from trainguard.ledger.intents import records
from trainguard.ledger.store import Store


class Recoveries(Store):
    """The history of a job's incidents."""

    async def recovery_history(self, job_key: str, limit: int = 50) -> list[RecoveryRecord]:
        """Give a job's incidents with what was done and how far the job got afterwards, newest first."""

        async def work(tx: AsyncConnection) -> list[RecoveryRecord]:
            table = tables.incidents
            found = select(table.c.body).where(table.c.job_key == job_key)
            rows = await tx.execute(found.order_by(table.c.detected_at.desc(), table.c.id).limit(limit))
            incidents = [tables.load(Incident, body) for body in rows.scalars()]
            tried: dict[str, list[IntentRecord]] = {incident.id: [] for incident in incidents}
            for record in await records(tx, list(tried)):
                tried[record.intent.fence.incident].append(record)
            causes = await _causes(tx, list(tried))
            return [
                await _record(tx, incident, tried[incident.id], causes.get(incident.id))
                for incident in incidents
            ]

        return await self._read(work)

    async def jobs_failed_alike(self, like: JobRef, fault: FaultClass, since: float) -> frozenset[str]:
        """Give the keys of the jobs on the cluster of `like` whose incidents since a time have this cause."""
        incidents, diagnoses = tables.incidents, tables.diagnoses
        newest = (
            select(func.max(diagnoses.c.id))
            .where(diagnoses.c.incident == incidents.c.id)
            .correlate(incidents)
            .scalar_subquery()
        )
        found = (
            select(incidents.c.job_key)
            .join(diagnoses, diagnoses.c.id == newest)
            .where(incidents.c.closed.in_((False, True)))  # by the index, which begins with it
            .where(incidents.c.detected_at >= since, diagnoses.c.fault == fault.value)
            .where(incidents.c.job_key.startswith(f"{like.scheduler}/{like.cluster}/", autoescape=True))
        )

        async def work(tx: AsyncConnection) -> frozenset[str]:
            return frozenset((await tx.execute(found)).scalars())

        return await self._read(work)


async def _causes(tx: AsyncConnection, incident_ids: list[str]) -> dict[str, tuple[str, str]]:
    """Fault and fingerprint of each incident's newest diagnosis."""
    table = tables.diagnoses
    found = select(table.c.incident, table.c.fault, table.c.fingerprint).where(
        table.c.incident.in_(incident_ids)
    )
    return {
        row.incident: (row.fault, row.fingerprint) for row in await tx.execute(found.order_by(table.c.id))
    }


async def _record(
    tx: AsyncConnection, incident: Incident, tried: list[IntentRecord], cause: tuple[str, str] | None
) -> RecoveryRecord:
    done = [
        record.intent
        for record in tried
        if record.outcome is None or record.outcome.status is not OutcomeStatus.REFUSED
    ]
    acted_at = incident.acted_at
    if acted_at is None and done:
        acted_at = done[-1].at
    return RecoveryRecord(
        incident=incident.id,
        fingerprint=incident.fingerprint or (cause[1] if cause else ""),
        fault=FaultClass(cause[0]) if cause else FaultClass.UNKNOWN,
        actions=tuple(intent.action.kind for intent in done),
        acted_at=acted_at,
        step_before=incident.step,
        step_reached=None if acted_at is None else await _furthest(tx, incident.job_key, acted_at),
        state=incident.state,
        detected_at=incident.detected_at,
        attempts=incident.attempt,
    )


async def _furthest(tx: AsyncConnection, job_key: str, since: float) -> int | None:
    table = tables.observations
    found = select(func.max(table.c.step)).where(table.c.job_key == job_key, table.c.at > since)
    step: int | None = await tx.scalar(found)
    return step
