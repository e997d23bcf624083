"""Jobs: what is guarded, under which policy, how it stands, and what a successor needs to go on."""

from __future__ import annotations

from sqlalchemy import Column, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from trainguard.core.decision import Lease
from trainguard.core.history import JobStatus
from trainguard.core.job import Job
from trainguard.ledger import tables
from trainguard.ledger.store import Store, missing, upsert


class Jobs(Store):
    """Jobs and their guards' state."""

    async def register_job(self, job: Job, policy: str, at: float) -> None:
        """Add a job, or change what is known of it and its policy (JSON) and keep its history."""
        changing = {
            "scheduler": job.ref.scheduler,
            "cluster": job.ref.cluster,
            "name": job.name,
            "project": job.project,
            "policy": policy,
            "body": tables.dump(job),
        }

        async def work(tx: AsyncConnection) -> None:
            changed = await tx.execute(
                update(tables.jobs).where(tables.jobs.c.key == job.key).values(changing)
            )
            if not changed.rowcount:
                first = {"registered_at": at, "status": "", "outcome": "", "status_at": at}
                await upsert(tx, tables.jobs, {"key": job.key}, {**changing, **first})

        await self._write(work)

    async def job(self, key: str) -> Job | None:
        """Give one job."""
        body = await self._job_value(tables.jobs.c.body, key)
        return None if body is None else tables.load(Job, body)

    async def jobs(self) -> list[Job]:
        """Give all jobs, in the order in which they were registered."""

        async def work(tx: AsyncConnection) -> list[Job]:
            found = select(tables.jobs.c.body).order_by(tables.jobs.c.registered_at, tables.jobs.c.key)
            return [tables.load(Job, body) for body in (await tx.execute(found)).scalars()]

        return await self._read(work)

    async def policy(self, key: str) -> str:
        """Give the policy as registered. LedgerError for an unknown job: no policy is not an empty one."""
        policy = await self._job_value(tables.jobs.c.policy, key)
        if policy is None:
            raise missing("job", key)
        return policy

    async def set_job_status(
        self, key: str, status: str, outcome: str, at: float, lease: Lease | None = None
    ) -> None:
        """Say how a job stands; a guard gives its lease. LedgerError for an unknown job."""

        async def work(tx: AsyncConnection) -> None:
            values = {"status": status, "outcome": outcome, "status_at": at}
            changed = await tx.execute(update(tables.jobs).where(tables.jobs.c.key == key).values(values))
            if not changed.rowcount:
                raise missing("job", key)

        await self._write(work, lease)

    async def job_status(self, key: str) -> JobStatus | None:
        """Give how a job stands; None where nobody said so yet."""

        async def work(tx: AsyncConnection) -> JobStatus | None:
            row = (await tx.execute(select(tables.jobs).where(tables.jobs.c.key == key))).one_or_none()
            if row is None or not row.status:
                return None
            return JobStatus(status=row.status, outcome=row.outcome, at=row.status_at)

        return await self._read(work)

    async def cursor(self, job_key: str) -> str:
        """Give the saved cursor, empty where there is none."""
        return await self._state_value(tables.job_state.c.cursor, job_key)

    async def save_health(self, lease: Lease, job_key: str, health: str, cursor: str | None = None) -> None:
        """Keep what the guard has made of the observations so far (JSON), with how far it has read the logs.

        Together: a log read again would count twice.
        """
        values = {"health": health} if cursor is None else {"health": health, "cursor": cursor}

        async def work(tx: AsyncConnection) -> None:
            await _keep(tx, job_key, values)

        await self._write(work, lease)

    async def health(self, job_key: str) -> str:
        """Give what was kept last, empty where nothing was."""
        return await self._state_value(tables.job_state.c.health, job_key)

    async def _job_value(self, column: Column[str], key: str) -> str | None:
        async def work(tx: AsyncConnection) -> str | None:
            found = await tx.execute(select(column).where(tables.jobs.c.key == key))
            return found.scalar_one_or_none()

        return await self._read(work)

    async def _state_value(self, column: Column[str], key: str) -> str:
        async def work(tx: AsyncConnection) -> str:
            found = await tx.execute(select(column).where(tables.job_state.c.job_key == key))
            return found.scalar_one_or_none() or ""

        return await self._read(work)


async def _keep(tx: AsyncConnection, job_key: str, values: dict[str, str]) -> None:
    changed = await tx.execute(
        update(tables.job_state).where(tables.job_state.c.job_key == job_key).values(values)
    )
    if not changed.rowcount:
        await upsert(tx, tables.job_state, {"job_key": job_key}, {"cursor": "", "health": "", **values})
