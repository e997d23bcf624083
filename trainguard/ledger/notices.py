"""Who was told what, and what happened on which node."""

from __future__ import annotations

from sqlalchemy import func, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from trainguard.core.history import NodeEvent
from trainguard.core.verdict import FaultClass
from trainguard.ledger import tables
from trainguard.ledger.store import Store, insert_missing, lock_job

CLAIM_SECONDS = 60.0
"""How long a claim to send holds before another may send in its place: the first one may have died."""


class Notices(Store):
    """Notifications sent and node history."""

    async def note_notification(
        self, job_key: str, incident_id: str, kind: str, at: float, limit: int
    ) -> bool:
        """Claim the right to send one message; afterwards `mark_notified`.

        False where it was sent, where somebody claimed it within the last 60 s, or where the job has used
        up its `limit` of messages. A crash between claim and mark may send a message twice, never not.
        """

        async def work(tx: AsyncConnection) -> bool:
            await lock_job(tx, job_key)
            table = tables.notifications
            this = (table.c.job_key == job_key, table.c.incident == incident_id, table.c.kind == kind)
            known = (await tx.execute(select(table).where(*this))).one_or_none()
            if known is not None:
                if known.sent_at is not None or 0 <= at - known.noted_at < CLAIM_SECONDS:
                    return False
                await tx.execute(update(table).where(*this).values(noted_at=at))
                return True
            used = await tx.scalar(select(func.count()).select_from(table).where(table.c.job_key == job_key))
            if (used or 0) >= limit:
                return False
            values = {"job_key": job_key, "incident": incident_id, "kind": kind, "noted_at": at}
            return await insert_missing(tx, table, values)

        return await self._write(work)

    async def mark_notified(self, job_key: str, incident_id: str, kind: str, at: float) -> None:
        """Say that a claimed message went out."""

        async def work(tx: AsyncConnection) -> None:
            table = tables.notifications
            this = (table.c.job_key == job_key, table.c.incident == incident_id, table.c.kind == kind)
            await tx.execute(update(table).where(*this).values(sent_at=at))

        await self._write(work)

    async def add_node_event(
        self, node: str, job_key: str, incident_id: str, fault: FaultClass, at: float
    ) -> None:
        """Lay a fault at a node's door; the same one of the same incident counts once."""
        values = {
            "node": node,
            "job_key": job_key,
            "incident": incident_id,
            "fault": fault.value,
            "at": at,
        }

        async def work(tx: AsyncConnection) -> None:
            await insert_missing(tx, tables.node_events, values)

        await self._write(work)

    async def node_events(self, node: str, since: float) -> list[NodeEvent]:
        """Give what happened on a node at or after `since`, newest first."""

        async def work(tx: AsyncConnection) -> list[NodeEvent]:
            table = tables.node_events
            found = select(table).where(table.c.node == node, table.c.at >= since)
            rows = await tx.execute(found.order_by(table.c.at.desc(), table.c.id.desc()))
            return [
                NodeEvent(
                    node=row.node,
                    job_key=row.job_key,
                    incident=row.incident,
                    fault=FaultClass(row.fault),
                    at=row.at,
                )
                for row in rows
            ]

        return await self._read(work)
