"""Who was told what, and what happened on which node."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

from sqlalchemy import Row, Select, delete, func, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from trainguard.core.alerts import GIVEN_UP, admitted, due
from trainguard.core.decision import Lease
from trainguard.core.fact import Fact
from trainguard.core.history import NodeEvent
from trainguard.core.job import JobRef
from trainguard.core.messages import Message
from trainguard.core.verdict import FaultClass
from trainguard.ledger import tables
from trainguard.ledger.incidents import own_incident
from trainguard.ledger.store import Store, insert_missing, lock_job


class Posted(Fact):
    """A message that is to be sent."""

    about: str
    """What it is about: the id of an incident or a question, or an episode."""
    message: Message


class Notices(Store):
    """Messages to people and node history."""

    async def post_message(self, job_key: str, about: str, message: Message, at: float, limit: int) -> bool:
        """Put a message on record, to be sent: `take_message`, then `mark_notified`.

        False where it is on record already, or where the job's `limit` has no room for its kind.
        """

        async def work(tx: AsyncConnection) -> bool:
            await lock_job(tx, job_key)
            table = tables.notifications
            used = await tx.scalar(select(func.count()).select_from(table).where(table.c.job_key == job_key))
            fits = admitted(message, used or 0, limit)
            if fits is None:
                return False
            values = {
                "job_key": job_key,
                "incident": about,
                "kind": message.kind.value,
                "noted_at": 0.0,
                "posted_at": at,
                "body": tables.dump(fits),
            }
            return await insert_missing(tx, table, values)

        return await self._write(work)

    async def take_message(self, job_key: str, at: float) -> Posted | None:
        """Claim the oldest message that is due. Whoever dies before it is marked leaves it to the next, later.

        A message may come twice after a crash between sending and marking, never not.
        """

        async def work(tx: AsyncConnection) -> Posted | None:
            await lock_job(tx, job_key)
            for row in await _unsent(tx, job_key, at):
                if due(row.posted_at, row.noted_at, at) > at:
                    continue
                await tx.execute(_one(update, job_key, row.incident, row.kind).values(noted_at=at))
                return Posted(about=row.incident, message=tables.load(Message, row.body))
            return None

        return await self._write(work)

    async def message_due(self, job_key: str, at: float) -> float | None:
        """Say when the next message is due, None where all are sent or given up."""

        async def work(tx: AsyncConnection) -> float | None:
            return min(
                (due(row.posted_at, row.noted_at, at) for row in await _unsent(tx, job_key, at)), default=None
            )

        return await self._read(work)

    async def mark_notified(self, job_key: str, about: str, kind: str, at: float) -> None:
        """Say that a message went out."""

        async def work(tx: AsyncConnection) -> None:
            await tx.execute(_one(update, job_key, about, kind).values(sent_at=at))

        await self._write(work)

    async def withdraw_message(self, job_key: str, about: str, kind: str) -> None:
        """Forget a message that nobody took and that is no longer true; it does not count."""

        async def work(tx: AsyncConnection) -> None:
            await tx.execute(
                _one(delete, job_key, about, kind).where(tables.notifications.c.sent_at.is_(None))
            )

        await self._write(work)

    async def add_node_events(
        self, lease: Lease, incident_id: str, nodes: Collection[str], fault: FaultClass, at: float
    ) -> None:
        """Lay a fault of an incident at the door of nodes; again, it changes nothing."""

        async def work(tx: AsyncConnection) -> None:
            await own_incident(tx, lease, incident_id)
            for node in nodes:
                values = {
                    "node": node,
                    "job_key": lease.job_key,
                    "incident": incident_id,
                    "fault": fault.value,
                    "at": at,
                }
                await insert_missing(tx, tables.node_events, values)

        await self._write(work, lease)

    async def node_events(self, node: str, since: float = 0.0) -> list[NodeEvent]:
        """Give what was laid at a node's door at or after `since`, newest first, on whichever cluster."""
        table = tables.node_events
        return await self._node_events(select(table).where(table.c.node == node, table.c.at >= since))

    async def node_history(self, job: JobRef, incident_id: str, since: float) -> list[NodeEvent]:
        """Give what was laid at the door of the nodes that an incident of `job` names, by itself and by others.

        Of the job's cluster, at or after `since`, newest first.
        """
        table = tables.node_events
        named = select(table.c.node).where(table.c.incident == incident_id)
        found = select(table).where(table.c.node.in_(named), table.c.at >= since)
        cluster = f"{job.scheduler}/{job.cluster}/"
        return await self._node_events(found.where(table.c.job_key.startswith(cluster, autoescape=True)))

    async def _node_events(self, found: Select[Any]) -> list[NodeEvent]:
        """Newest first."""
        table = tables.node_events

        async def work(tx: AsyncConnection) -> list[NodeEvent]:
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


async def _unsent(tx: AsyncConnection, job_key: str, at: float) -> Sequence[Row[Any]]:
    """Messages that nobody took yet and that are still news, oldest first."""
    table = tables.notifications
    found = select(table).where(
        table.c.job_key == job_key,
        table.c.sent_at.is_(None),
        table.c.body.is_not(None),
        table.c.posted_at > at - GIVEN_UP,
    )
    return (await tx.execute(found.order_by(table.c.posted_at, table.c.incident, table.c.kind))).all()


def _one(change: Callable[..., Any], job_key: str, about: str, kind: str) -> Any:
    table = tables.notifications
    return change(table).where(table.c.job_key == job_key, table.c.incident == about, table.c.kind == kind)
