"""The durable record: one class, the same on SQLite and Postgres."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from trainguard.ledger.advice import AdviceStore
from trainguard.ledger.approvals import Approvals
from trainguard.ledger.exhibits import Exhibits
from trainguard.ledger.incidents import Incidents
from trainguard.ledger.intents import Intents
from trainguard.ledger.jobs import Jobs
from trainguard.ledger.leases import Leases
from trainguard.ledger.location import locate
from trainguard.ledger.notices import Notices
from trainguard.ledger.observations import Observations
from trainguard.ledger.recoveries import Recoveries


class Ledger(
    Jobs, Leases, Observations, Incidents, Exhibits, Intents, Approvals, Notices, Recoveries, AdviceStore
):
    """All that must outlive a process. One instance serves all guards of an event loop.

    Every method raises LedgerUnavailableError (locked, full or gone for now) after a bounded retry and
    works again when the cause is gone. Those with a lease raise LeaseLostError, having changed nothing,
    once another guard owns the job. Times are the caller's, in seconds since the epoch.
    """

    @classmethod
    async def open(cls, url: str | None = None, *, patience: float = 10.0) -> Self:
        """Open the ledger at `url`, at TRAINGUARD_LEDGER_URL, or in the user's data folder; migrate it.

        `patience` is how many seconds a locked database is waited for. Raises ConfigError for an address
        that is none, LedgerVersionError and LedgerDamagedError (the file is left as it was), and
        LedgerUnavailableError.
        """
        ledger = cls(locate(url), patience)
        try:
            await ledger._prepare()
        except BaseException:
            await ledger._dispose()
            raise
        return ledger

    async def close(self) -> None:
        """Free the connections."""
        await self._dispose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()
