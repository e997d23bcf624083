"""The contract of every scheduler adapter. `trainguard.testing.scheduler_contract` holds each to it.

Notes for who writes an adapter; the numbers are those of the contract suite's tests.

1. `observe` answers for every job asked, in one round trip a cluster. What can't be read is UNKNOWN,
   with the reason; it never raises for a single job.
2. A job the scheduler does not know is GONE, not failed and not finished.
3. `native` keeps the scheduler's own word; a word never heard of is UNKNOWN.
4. An incarnation's token never repeats, also when ids are reused or names recreated.
5. `logs` gives only what is new since the cursor, whole lines, at most `limit` bytes, any encoding
   (invalid bytes replaced), and survives truncation and rotation. An unreadable log raises.
6. `perform` is idempotent by its fence: the same fence twice acts once and answers the same.
7. `perform` refuses (`RefusedError`) where the current incarnation is not the action's, where the owner
   stopped or held the job, and where the scheduler is already bringing it back.
8. `find` tells whether a fence's action happened: an outcome, or None for "it did not, and no trace of
   it is under way". Where it can't be told it raises `UnreachableError`.
9. Refused and unreachable are different: an action whose answer was lost gives Outcome UNKNOWN.
10. No shell string is built from outside data.
11. `close` frees connections and tasks; using the adapter again after it is an error.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar

from trainguard.core.action import Access, Action, ActionKind, Fence, Outcome
from trainguard.core.checkpoint import Checkpoint
from trainguard.core.errors import RefusedError
from trainguard.core.evidence import Evidence
from trainguard.core.job import Job, JobRef
from trainguard.core.observation import LogBatch, Observation


class Scheduler(ABC):
    """One cluster, as one process reaches it. Guards of the same cluster share one instance."""

    name: ClassVar[str]
    """The word in `JobRef.scheduler`."""
    supports: ClassVar[frozenset[ActionKind]]
    """What the adapter can do at all; what this user may do is `validate`'s answer."""
    least_seconds: ClassVar[float] = 0.25
    """Between two looks, whoever is in a hurry: a burst of questions is answered by one."""
    poll_seconds: ClassVar[float] = 10.0
    """How often the shared watch should look. Cost must not grow with the number of jobs."""

    def __init__(self, cluster: str) -> None:
        self.cluster = cluster

    @abstractmethod
    async def validate(self, job: Job) -> Access:
        """Say whether the job and its logs can be seen and which actions are possible, with proof.

        Raises AccessRefusedError, UnreachableError or NotFoundError, each with what to fix.
        """

    @abstractmethod
    async def observe(self, jobs: Sequence[Job]) -> Mapping[JobRef, Observation]:
        """Look at many jobs in one round trip. Raises UnreachableError only where nothing could be read."""

    @abstractmethod
    async def logs(self, job: Job, cursor: str = "", limit: int = 1_000_000) -> LogBatch:
        """Give what is new since `cursor`; an empty cursor starts at most `limit` bytes before the end."""

    @abstractmethod
    async def collect(self, job: Job, observation: Observation) -> Sequence[Evidence]:
        """Gather what a diagnosis needs: log tails of all ranks, events, node state, accounting, kernel log.

        A source that can't be read becomes Evidence of kind STATUS that says so.
        """

    async def perform(self, job: Job, action: Action, fence: Fence) -> Outcome:
        """Act once. Raises RefusedError (nothing changed), AccessRefusedError or UnreachableError (not sent)."""
        if action.kind not in self.supports:
            raise RefusedError(f"{self.name} can't do {action.kind}")
        found = await self.find(job, fence)
        return found if found is not None else await self._perform(job, action, fence)

    @abstractmethod
    async def _perform(self, job: Job, action: Action, fence: Fence) -> Outcome:
        """Act; `perform` has checked that the action is supported and the fence not yet used."""

    @abstractmethod
    async def find(self, job: Job, fence: Fence) -> Outcome | None:
        """Say what became of a fence after a crash or a lost answer."""

    @abstractmethod
    async def discover(self, selector: str) -> Sequence[JobRef]:
        """Find the jobs a selector names (`user=alice`, `namespace=ml`, `*`). Raises ConfigError where it is none."""

    async def checkpoints(self, job: Job) -> tuple[Checkpoint, ...] | None:
        """Look at the job's checkpoints where they lie (`supervisor/checkpoints.py` does the looking).

        None means that nothing could be learnt: no directory declared, or no way to look.
        """
        del job
        return None

    def clock(self) -> float:
        """Give the time that the guards of this cluster go by, in seconds since the epoch.

        A simulated cluster may have a time of its own.
        """
        return time.time()

    async def close(self) -> None:
        """Free what is held. The default holds nothing."""
        return


class Wakes(ABC):
    """Optional: schedulers that push changes (a watch) instead of being polled."""

    @abstractmethod
    async def wait(self, since: int, timeout: float) -> int:
        """Return a new sequence number as soon as anything changed, or `since` after `timeout` seconds."""
