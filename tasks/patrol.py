"""Finding the jobs of a patrol, and those among them that need a guard."""

from __future__ import annotations

import logging
import time
from collections.abc import Collection
from dataclasses import dataclass, field

from trainguard.blocks.scheduler_block import SchedulerBlock
from trainguard.core.errors import ConfigError, LedgerUnavailableError, SchedulerError
from trainguard.core.job import Job, JobRef
from trainguard.core.observation import Liveness, Observation
from trainguard.ledger.ledger import Ledger
from trainguard.schedulers.base import Scheduler
from trainguard.tasks.context import holder_is_dead

logger = logging.getLogger(__name__)

LIVE = (Liveness.PENDING, Liveness.RUNNING)


@dataclass
class Rounds:
    """What a patrol remembers from one round to the next."""

    cluster: SchedulerBlock
    scheduler: Scheduler
    selector: str
    only_failed: bool = False
    first: bool = True
    done: dict[JobRef, str] = field(default_factory=dict)
    """Incarnations, by job, that need no guard of this patrol (any more)."""

    async def look(self, guarded: Collection[JobRef]) -> list[Job]:
        """Give the jobs that need a guard now. A cluster or ledger out of reach has none for now.

        Raises ConfigError before the first round that saw something: later it is about the moment.

        A job that failed before the patrol began is nobody's incident tonight: it is taken only by a patrol
        for failed jobs, and not again once a guard has ended with that incarnation.
        """
        try:
            refs = [ref for ref in await self.scheduler.discover(self.selector) if ref not in guarded]
            jobs = [self._job(ref) for ref in refs]
            seen = await self.scheduler.observe(jobs) if jobs else {}
            async with await Ledger.open() as ledger:
                wanted = [job for job in jobs if await self._wants(ledger, job, seen.get(job.ref))]
        except (SchedulerError, LedgerUnavailableError, ConfigError) as problem:
            if self.first and isinstance(problem, ConfigError):
                raise
            logger.warning("the patrol sees nothing now: %s", problem)
            return []
        self.first = False
        return wanted

    async def ended(self, job: Job) -> None:
        """Remember that this job's guard has ended, and with which incarnation."""
        try:
            async with await Ledger.open() as ledger:
                self.done[job.ref] = _token(await ledger.latest_observation(job.key))
        except LedgerUnavailableError as problem:
            logger.warning("how the guard of %s ended is not remembered: %s", job.name, problem)

    def _job(self, ref: JobRef) -> Job:
        try:
            return self.cluster.make_job(ref)
        except ConfigError as problem:
            logger.warning("%s is guarded without what its owner declared: %s", ref.id, problem)
            return Job(ref=ref, name=ref.id)

    async def _wants(self, ledger: Ledger, job: Job, seen: Observation | None) -> bool:
        if seen is None or self.done.get(job.ref) == _token(seen):
            return False
        if seen.liveness is Liveness.FAILED:
            wanted = await self._wants_failed(ledger, job, seen)
        else:
            wanted = seen.liveness in LIVE and not self.only_failed
        return wanted and not await _has_a_guard(ledger, job)

    async def _wants_failed(self, ledger: Ledger, job: Job, seen: Observation) -> bool:
        known = await ledger.latest_observation(job.key)
        status = await ledger.job_status(job.key)
        dealt_with = status is not None and status.status == "Completed" and _token(known) == _token(seen)
        if dealt_with or (self.first and not self.only_failed):
            self.done[job.ref] = _token(seen)
            return False
        return True


def _token(observation: Observation | None) -> str:
    incarnation = observation.incarnation if observation else None
    return incarnation.token if incarnation else ""


async def _has_a_guard(ledger: Ledger, job: Job) -> bool:
    lease = await ledger.lease(job.key)
    return (
        lease is not None
        and bool(lease.holder)
        and lease.expires_at > time.time()
        and not holder_is_dead(lease.holder)
    )
