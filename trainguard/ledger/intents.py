"""Intents and outcomes: what makes an action happen at most once."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Select, or_, select
from sqlalchemy.ext.asyncio import AsyncConnection

from trainguard.core.action import Outcome, OutcomeStatus
from trainguard.core.decision import Intent, Lease
from trainguard.core.errors import IntentExistsError, IntentPendingError, LeaseLostError, LedgerError
from trainguard.core.history import IntentRecord
from trainguard.ledger import tables
from trainguard.ledger.incidents import own_incident, own_job
from trainguard.ledger.store import Store, insert_missing, missing, require, upsert


class Intents(Store):
    """The rows written before and after every action."""

    async def write_intent(self, lease: Lease, intent: Intent) -> None:
        """Say durably what is about to be done: only then may it be done.

        Raises IntentExistsError for a fence used before, IntentPendingError while an earlier restart of
        the job has no known outcome (`find` it, write the outcome, then come again), and LeaseLostError
        also for a lease that expired before `intent.at`: renew it first.
        """
        if intent.fence.lease != lease.number:
            raise LedgerError(f"fence {intent.fence.token} was made under another lease than {lease.number}")

        async def work(tx: AsyncConnection) -> None:
            own_job(lease, intent.job_key)
            row = await require(tx, lease)
            if row.expires_at <= intent.at:
                raise LeaseLostError(f"the lease of {lease.job_key} expired: renew it before acting")
            await own_incident(tx, lease, intent.fence.incident)
            if await insert_missing(tx, tables.intents, _row(intent)):
                await _refuse_second_restart(tx, intent)
            else:
                raise IntentExistsError(f"fence {intent.fence.token} was used before")

        await self._write(work)

    async def write_outcome(self, lease: Lease, outcome: Outcome) -> None:
        """Say what came of an intent. UNKNOWN may be replaced; a final outcome stands (LedgerError)."""

        async def work(tx: AsyncConnection) -> None:
            intent = (
                await tx.execute(select(tables.intents).where(tables.intents.c.token == outcome.fence))
            ).one_or_none()
            if intent is None:
                raise missing("intent", outcome.fence)
            own_job(lease, intent.job_key)
            known = (
                await tx.execute(select(tables.outcomes).where(tables.outcomes.c.token == outcome.fence))
            ).one_or_none()
            if known is not None and known.status != OutcomeStatus.UNKNOWN:
                if known.status == outcome.status:
                    return
                raise LedgerError(f"{outcome.fence} is {known.status} and can't become {outcome.status}")
            values = {"status": outcome.status.value, "at": outcome.at, "body": tables.dump(outcome)}
            await upsert(tx, tables.outcomes, {"token": outcome.fence}, values)

        await self._write(work, lease)

    async def pending_intents(self, job_key: str) -> list[Intent]:
        """Give the intents whose outcome nobody knows, oldest first."""

        async def work(tx: AsyncConnection) -> list[Intent]:
            rows = await tx.execute(_pending(job_key).order_by(tables.intents.c.id))
            return [tables.load(Intent, row.body) for row in rows]

        return await self._read(work)

    async def job_intents(self, job_key: str) -> list[Intent]:
        """Give everything that was ever to be done to a job, oldest first."""

        async def work(tx: AsyncConnection) -> list[Intent]:
            table = tables.intents
            found = select(table.c.body).where(table.c.job_key == job_key).order_by(table.c.id)
            return [tables.load(Intent, body) for body in (await tx.execute(found)).scalars()]

        return await self._read(work)

    async def intents(self, incident_id: str) -> list[IntentRecord]:
        """Give an incident's intents with their outcomes, oldest first."""

        async def work(tx: AsyncConnection) -> list[IntentRecord]:
            return await records(tx, [incident_id])

        return await self._read(work)


async def records(tx: AsyncConnection, incident_ids: list[str]) -> list[IntentRecord]:
    """Give the intents of some incidents with their outcomes, oldest first."""
    intents, outcomes = tables.intents, tables.outcomes
    found = (
        select(intents.c.body, outcomes.c.body.label("outcome"))
        .outerjoin(outcomes, outcomes.c.token == intents.c.token)
        .where(intents.c.incident.in_(incident_ids))
        .order_by(intents.c.id)
    )
    return [_record(row.body, row.outcome) for row in await tx.execute(found)]


def _record(intent: str, outcome: str | None) -> IntentRecord:
    return IntentRecord(
        intent=tables.load(Intent, intent),
        outcome=None if outcome is None else tables.load(Outcome, outcome),
    )


def _pending(job_key: str) -> Select[Any]:
    intents, outcomes = tables.intents, tables.outcomes
    return (
        select(intents)
        .outerjoin(outcomes, outcomes.c.token == intents.c.token)
        .where(intents.c.job_key == job_key)
        .where(or_(outcomes.c.status.is_(None), outcomes.c.status == OutcomeStatus.UNKNOWN.value))
    )


async def _refuse_second_restart(tx: AsyncConnection, intent: Intent) -> None:
    """Never start a job again while it is in doubt whether it was started."""
    if not intent.action.kind.restarts:
        return
    doubt = _pending(intent.job_key).where(tables.intents.c.restarts.is_(True))
    row = (await tx.execute(doubt.where(tables.intents.c.token != intent.fence.token).limit(1))).one_or_none()
    if row is not None:
        raise IntentPendingError(f"what came of {row.token} ({row.kind}) is not known yet", row.token)


def _row(intent: Intent) -> dict[str, Any]:
    return {
        "token": intent.fence.token,
        "incident": intent.fence.incident,
        "job_key": intent.job_key,
        "kind": intent.action.kind.value,
        "restarts": intent.action.kind.restarts,
        "at": intent.at,
        "body": tables.dump(intent),
    }
