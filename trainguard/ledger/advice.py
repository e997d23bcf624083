"""Answers of a language model that passed every check, so that the same failure is paid for once, and what was paid."""

from __future__ import annotations

from sqlalchemy import delete, select
from sqlalchemy.ext.asyncio import AsyncConnection

from trainguard.ledger import tables
from trainguard.ledger.store import Store

KEPT = 5_000
"""Answers that are kept; the oldest go."""


class AdviceStore(Store):
    """Answers by key. Nothing depends on one: where it is lost, the model is asked again."""

    async def advice(self, key: str) -> str | None:
        """Give the answer kept under a key, None where there is none."""

        async def work(tx: AsyncConnection) -> str | None:
            found = select(tables.advice.c.answer).where(tables.advice.c.key == key)
            answer: str | None = await tx.scalar(found)
            return answer

        return await self._read(work)

    async def keep_advice(self, key: str, answer: str, at: float) -> None:
        """Keep an answer, in place of an older one under the same key."""

        async def work(tx: AsyncConnection) -> None:
            table = tables.advice
            await tx.execute(delete(table).where(table.c.key == key))
            await tx.execute(table.insert().values(key=key, answer=answer, at=at))
            newest = select(table.c.key).order_by(table.c.at.desc(), table.c.key).limit(KEPT)
            await tx.execute(delete(table).where(table.c.key.not_in(newest)))

        await self._write(work)
