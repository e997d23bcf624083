"""Observations, thinned: every change is kept, sameness at most once per quarter of an hour."""

from __future__ import annotations

import hashlib
import json
import math
import re

from sqlalchemy import insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from trainguard.core.decision import Lease
from trainguard.core.observation import Observation
from trainguard.ledger import tables
from trainguard.ledger.store import Store

KEEP_ONE_PER = 900.0
"""Seconds in which observations equal in kind leave one row, the newest of them."""
_NUMBER = re.compile(r"\d+(?:\.\d+)?")
_PASSING = {"at", "progress", "heartbeat_age", "log_age", "utilisation"}
"""What may differ between two looks at a job to which nothing happened."""


def kind(observation: Observation) -> str:
    """Give a word that is equal for two looks between which nothing happened."""
    facts = observation.model_dump(mode="json", exclude=_PASSING)
    for words in ("reason", "warning", "stuck"):
        facts[words] = _NUMBER.sub("#", facts[words])  # "timed out after 3.2 s" is no news after 3.1 s
    progress = observation.progress
    loss = None if progress is None else progress.loss
    facts["unsound"] = loss is not None and not math.isfinite(loss)
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


class Observations(Store):
    """What was seen of each job."""

    async def record_observation(self, lease: Lease, observation: Observation, status_line: str) -> None:
        """Keep one look and its line. One equal in kind to the last replaces it within a quarter of an hour."""
        seen = kind(observation)
        slot = int(observation.at // KEEP_ONE_PER)
        values = {
            "job_key": observation.job.key,
            "at": observation.at,
            "kind": seen,
            "slot": slot,
            "step": tables.step_column(observation.progress.step if observation.progress else None),
            "status_line": status_line,
            "body": tables.dump(observation, brief=True),
        }

        async def work(tx: AsyncConnection) -> None:
            table = tables.observations
            found = (
                select(table.c.id, table.c.kind, table.c.slot, table.c.changed)
                .where(table.c.job_key == observation.job.key)
                .order_by(table.c.id.desc())
                .limit(1)
            )
            last = (await tx.execute(found)).one_or_none()
            changed = last is None or last.kind != seen
            if last is not None and not changed and not last.changed and last.slot == slot:
                await tx.execute(update(table).where(table.c.id == last.id).values(values))
            else:
                await tx.execute(insert(table).values(changed=changed, **values))

        await self._write(work, lease)

    async def observations(self, job_key: str, limit: int = 100) -> list[Observation]:
        """Give what was kept of a job, newest first."""

        async def work(tx: AsyncConnection) -> list[Observation]:
            table = tables.observations
            found = select(table.c.body).where(table.c.job_key == job_key)
            rows = await tx.execute(found.order_by(table.c.id.desc()).limit(limit))
            return [tables.load(Observation, body) for body in rows.scalars()]

        return await self._read(work)

    async def latest_observation(self, job_key: str) -> Observation | None:
        """Give the newest look at a job."""
        found = await self.observations(job_key, 1)
        return found[0] if found else None

    async def status_lines(self, job_key: str, limit: int = 100) -> list[str]:
        """Give the lines of what was kept of a job, newest first."""

        async def work(tx: AsyncConnection) -> list[str]:
            table = tables.observations
            found = select(table.c.status_line).where(table.c.job_key == job_key)
            rows = await tx.execute(found.order_by(table.c.id.desc()).limit(limit))
            return list(rows.scalars())

        return await self._read(work)
