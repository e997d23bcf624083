"""Evidence: the rows that say where an excerpt came from, and the texts themselves."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncConnection

from trainguard.core.decision import Lease
from trainguard.core.evidence import Evidence
from trainguard.ledger import tables, texts
from trainguard.ledger.incidents import own_incident
from trainguard.ledger.store import Store, insert_missing, require

LOST = "(the stored text is missing or was changed)"


class Exhibits(Store):
    """Evidence of incidents. An excerpt given twice is kept once."""

    async def add_evidence(self, lease: Lease, incident_id: str, evidence: Sequence[Evidence]) -> None:
        """Keep masked excerpts: all of them or, where that fails, none."""
        contents = {item.sha256: texts.encode(item.text) for item in evidence}
        rows = [_row(incident_id, item, len(contents[item.sha256])) for item in evidence]
        path = self.location.path

        async def check(tx: AsyncConnection) -> None:
            await require(tx, lease)
            await own_incident(tx, lease, incident_id)

        async def work(tx: AsyncConnection) -> None:
            await own_incident(tx, lease, incident_id)
            if path is None:
                for sha256, content in contents.items():
                    await insert_missing(tx, tables.evidence_texts, {"sha256": sha256, "text": content})
            for row in rows:
                await insert_missing(tx, tables.evidence, row)

        if path is not None:
            # Files first: a crash in between leaves a text without a row, never a row without its text.
            await self._read(check)
            await asyncio.to_thread(texts.write_files, path, contents)
        await self._write(work, lease)

    async def evidence(self, incident_id: str) -> list[Evidence]:
        """Give an incident's evidence in the order it was added.

        Where a text was removed or changed since, the excerpt says so and is marked truncated.
        """
        path = self.location.path

        async def work(tx: AsyncConnection) -> tuple[list[tuple[str, str]], dict[str, bytes]]:
            table = tables.evidence
            rows = await tx.execute(
                select(table.c.sha256, table.c.body)
                .where(table.c.incident == incident_id)
                .order_by(table.c.id)
            )
            found = [(row.sha256, row.body) for row in rows]
            if path is not None:
                return found, {}
            stored = tables.evidence_texts
            contents = await tx.execute(
                select(stored).where(stored.c.sha256.in_([sha256 for sha256, _ in found]))
            )
            return found, {row.sha256: row.text for row in contents}

        found, contents = await self._read(work)
        if path is not None:
            contents = await asyncio.to_thread(texts.read_files, path, [sha256 for sha256, _ in found])
        return [_whole(body, sha256, contents) for sha256, body in found]


def _row(incident_id: str, item: Evidence, size: int) -> dict[str, Any]:
    return {
        "incident": incident_id,
        "sha256": item.sha256,
        "source": f"{item.kind}:{tables.dump(item.source, brief=True)}",
        "size": size,
        "body": tables.dump(item.model_copy(update={"text": ""})),
    }


def _whole(body: str, sha256: str, contents: Mapping[str, bytes]) -> Evidence:
    item = tables.load(Evidence, body)
    text = texts.decode(contents[sha256], sha256) if sha256 in contents else None
    if text is None:
        return item.model_copy(update={"text": LOST, "truncated": True})
    return item.model_copy(update={"text": text})
