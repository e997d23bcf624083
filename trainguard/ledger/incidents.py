"""Incidents, and what was found out about them and decided."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Table, insert, select, update
from sqlalchemy.engine import Row
from sqlalchemy.ext.asyncio import AsyncConnection

from trainguard.core.decision import Lease, Plan
from trainguard.core.errors import LedgerError
from trainguard.core.incident import Incident
from trainguard.core.verdict import Diagnosis
from trainguard.ledger import tables
from trainguard.ledger.store import Store, insert_missing, missing


async def own_incident(tx: AsyncConnection, lease: Lease, incident_id: str) -> Row[Any]:
    """Give an incident's row. LedgerError for an unknown one and for one of another job than the lease's."""
    row = (
        await tx.execute(select(tables.incidents).where(tables.incidents.c.id == incident_id))
    ).one_or_none()
    if row is None:
        raise missing("incident", incident_id)
    own_job(lease, row.job_key)
    return row


def own_job(lease: Lease, job_key: str) -> None:
    """Raise LedgerError where a lease of one job is used for another."""
    if lease.job_key != job_key:
        raise LedgerError(f"the lease of {lease.job_key} says nothing about {job_key}")


class Incidents(Store):
    """One failure each, from first signal to verified end."""

    async def open_incident(self, lease: Lease, incident: Incident) -> None:
        """Add an incident; again, it changes nothing. LedgerError for another one under the same id."""

        async def work(tx: AsyncConnection) -> None:
            own_job(lease, incident.job_key)
            row = {"id": incident.id, "job_key": incident.job_key, **_row(incident)}
            if await insert_missing(tx, tables.incidents, row):
                return
            known = await own_incident(tx, lease, incident.id)
            if tables.load(Incident, known.body).detected_at != incident.detected_at:
                raise LedgerError(f"another incident is already called {incident.id}")

        await self._write(work, lease)

    async def update_incident(self, lease: Lease, incident: Incident) -> None:
        """Store how an incident stands. LedgerError for an unknown one, and for one that ended otherwise."""

        async def work(tx: AsyncConnection) -> None:
            known = await own_incident(tx, lease, incident.id)
            if known.closed and known.state != incident.state:
                raise LedgerError(
                    f"incident {incident.id} ended as {known.state} and can't become {incident.state}"
                )
            await tx.execute(
                update(tables.incidents).where(tables.incidents.c.id == incident.id).values(_row(incident))
            )

        await self._write(work, lease)

    async def incident(self, incident_id: str) -> Incident | None:
        """Give one incident."""

        async def work(tx: AsyncConnection) -> Incident | None:
            table = tables.incidents
            body = (
                await tx.execute(select(table.c.body).where(table.c.id == incident_id))
            ).scalar_one_or_none()
            return None if body is None else tables.load(Incident, body)

        return await self._read(work)

    async def incidents(
        self, job_key: str | None = None, open_only: bool = False, limit: int = 100
    ) -> list[Incident]:
        """Give incidents of one job or of all, newest first."""

        async def work(tx: AsyncConnection) -> list[Incident]:
            table = tables.incidents
            found = select(table.c.body).order_by(table.c.detected_at.desc(), table.c.id).limit(limit)
            if job_key is not None:
                found = found.where(table.c.job_key == job_key)
            if open_only:
                found = found.where(table.c.closed.is_(False))
            return [tables.load(Incident, body) for body in (await tx.execute(found)).scalars()]

        return await self._read(work)

    async def add_diagnosis(self, lease: Lease, incident_id: str, diagnosis: Diagnosis, at: float) -> None:
        """Add what was found to be the cause; earlier ones are kept."""

        async def work(tx: AsyncConnection) -> None:
            await own_incident(tx, lease, incident_id)
            values = {
                "incident": incident_id,
                "at": at,
                "fault": diagnosis.fault.value,
                "fingerprint": diagnosis.fingerprint,
                "body": tables.dump(diagnosis),
            }
            await tx.execute(insert(tables.diagnoses).values(values))

        await self._write(work, lease)

    async def diagnosis(self, incident_id: str) -> Diagnosis | None:
        """Give the newest diagnosis."""
        found = await self.diagnoses(incident_id)
        return found[-1] if found else None

    async def diagnoses(self, incident_id: str) -> list[Diagnosis]:
        """Give all diagnoses, oldest first."""
        bodies = await self._bodies(tables.diagnoses, incident_id)
        return [tables.load(Diagnosis, body) for body in bodies]

    async def add_decisions(self, lease: Lease, incident_id: str, plan: Plan) -> None:
        """Add what was decided; earlier plans are kept."""

        async def work(tx: AsyncConnection) -> None:
            await own_incident(tx, lease, incident_id)
            values = {"incident": incident_id, "verdict": plan.verdict.value, "body": tables.dump(plan)}
            await tx.execute(insert(tables.plans).values(values))

        await self._write(work, lease)

    async def plan(self, incident_id: str) -> Plan | None:
        """Give the newest plan."""
        found = await self._bodies(tables.plans, incident_id)
        return tables.load(Plan, found[-1]) if found else None

    async def _bodies(self, table: Table, incident_id: str) -> list[str]:
        async def work(tx: AsyncConnection) -> list[str]:
            found = select(table.c.body).where(table.c.incident == incident_id).order_by(table.c.id)
            return list((await tx.execute(found)).scalars())

        return await self._read(work)


def _row(incident: Incident) -> dict[str, Any]:
    return {
        "state": incident.state.value,
        "closed": incident.state.closed,
        "detected_at": incident.detected_at,
        "fingerprint": incident.fingerprint,
        "body": tables.dump(incident),
    }
