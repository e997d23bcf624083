"""One connection and one watch per cluster for all guards in a process, whatever their number."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TypeVar

from trainguard.core.errors import SchedulerError, UnreachableError
from trainguard.core.job import Job, JobRef
from trainguard.core.observation import Liveness, Observation
from trainguard.schedulers.base import Scheduler, Wakes

logger = logging.getLogger(__name__)

T = TypeVar("T")


_TELLING = ("liveness", "native", "reason", "incarnation", "restart_underway", "stuck", "warning", "nodes")


@dataclass
class _Seat:
    """One guarded job: its latest observation and how many looks there have been."""

    job: Job
    guards: int = 0
    """Two for a moment, while one guard takes the job over from another in this process."""
    waiting: int = 0
    looks: int = 0
    latest: Observation | None = None
    hurried: int = 0
    """Who waits for a look that began after their question."""
    news: asyncio.Event = field(default_factory=asyncio.Event)


class ClusterWatch:
    """Looks at all guarded jobs of one cluster together and hands each guard its observation.

    A cluster that can't be read gives every job an UNKNOWN observation that says why. A look takes at
    most `patience` seconds, so a slow cluster delays nobody else: each cluster has its own watch.
    """

    def __init__(self, scheduler: Scheduler, *, patience: float = 60.0) -> None:
        self.scheduler = scheduler
        self._patience = patience
        self._spacing = min(scheduler.least_seconds, scheduler.poll_seconds / 10)
        self._looking = False
        self._all_woken_at: float | None = None
        self._seats: dict[JobRef, _Seat] = {}
        self._poller: asyncio.Task[None] | None = None
        self._hurry = asyncio.Event()

    def add(self, job: Job) -> None:
        """Begin to look at a job."""
        seat = self._seats.setdefault(job.ref, _Seat(job))
        seat.job = job
        seat.guards += 1
        if self._poller is None or self._poller.done():
            self._poller = asyncio.create_task(self._poll(), name=f"watch {self.scheduler.cluster}")
        self._hurry.set()

    async def drop(self, ref: JobRef) -> None:
        """Stop looking at a job; after the last one the watch stops."""
        self._seats[ref].guards -= 1
        if self._seats[ref].guards == 0:
            del self._seats[ref]
        if not self._seats and self._poller is not None:
            poller, self._poller = self._poller, None
            poller.cancel()
            await asyncio.gather(poller, return_exceptions=True)

    async def next(self, ref: JobRef, *, after: int, timeout: float | None = None) -> tuple[int, Observation]:
        """Give the first look later than look number `after`, with its number. Raises TimeoutError."""
        seat = self._seats[ref]
        async with asyncio.timeout(timeout):
            while seat.looks <= after or seat.latest is None:
                seat.news.clear()
                seat.waiting += 1
                try:
                    await seat.news.wait()
                finally:
                    seat.waiting -= 1
        return seat.looks, seat.latest

    @property
    def size(self) -> int:
        """How many jobs are looked at."""
        return len(self._seats)

    @property
    def idle(self) -> bool:
        """Whether every guard has taken in the latest look and waits for the next."""
        return all(seat.waiting and not seat.news.is_set() for seat in self._seats.values())

    async def fresh(self, ref: JobRef) -> Observation:
        """Give a look that began after this call: what a decision may rest on."""
        seat = self._seats[ref]
        # A look under way may have begun before the call; the one after it can't have.
        before = seat.looks + self._looking
        seat.hurried += 1
        try:
            while seat.looks <= before:
                self._hurry.set()
                await self.next(ref, after=seat.looks)
        finally:
            seat.hurried -= 1
        assert seat.latest is not None
        return seat.latest

    async def _poll(self) -> None:
        seen = 0
        while True:
            self._hurry.clear()
            await self._look()
            await asyncio.sleep(self._spacing)
            seen = await self._wait(seen)

    async def _wait(self, seen: int) -> int:
        """Wait for the next look: a push from the cluster, the poll interval, or somebody in a hurry."""
        hurry = asyncio.create_task(self._hurry.wait())
        wakes = (
            self.scheduler.wait(seen, self.scheduler.poll_seconds)
            if isinstance(self.scheduler, Wakes)
            else None
        )
        push = asyncio.create_task(
            wakes if wakes is not None else asyncio.sleep(self.scheduler.poll_seconds, seen)
        )
        try:
            await asyncio.wait({hurry, push}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for waiting in (hurry, push):
                waiting.cancel()
            results = await asyncio.gather(push, hurry, return_exceptions=True)
        return results[0] if isinstance(results[0], int) else seen

    async def _look(self) -> None:
        seats = list(self._seats.values())
        jobs = [seat.job for seat in seats]
        self._looking = True
        try:
            async with asyncio.timeout(self._patience):
                found = dict(await self.scheduler.observe(jobs))
            why = "the scheduler said nothing about this job"
        except (SchedulerError, TimeoutError) as problem:
            found, why = {}, str(problem) or f"no answer within {self._patience:.0f} s"
        except Exception as bug:
            # An adapter's bug must blind its jobs, not silence their guards.
            logger.exception("looking at cluster %s failed", self.scheduler.cluster)
            found, why = {}, f"{type(bug).__name__}: {bug}"
        finally:
            self._looking = False
        now = self.scheduler.clock()
        all_due = self._all_are_due(now)
        for seat in seats:
            before, seat.latest = (
                seat.latest,
                found.get(seat.job.ref)
                or Observation(
                    job=seat.job.ref, at=now, source="watch", liveness=Liveness.UNKNOWN, reason=why
                ),
            )
            seat.looks += 1
            if all_due or seat.hurried or before is None or _differs(before, seat.latest):
                seat.news.set()

    def _all_are_due(self, now: float) -> bool:
        """Whether every guard is to take this look in, not only those who asked for it or have news.

        A look made for one of a thousand jobs wakes that one.
        """
        last = self._all_woken_at
        if last is not None and 0 <= now - last < self.scheduler.poll_seconds * 0.9:
            return False
        self._all_woken_at = now
        return True


def _differs(before: Observation, now: Observation) -> bool:
    """Whether the scheduler says something new of a job; its age and its use of the machine always change."""
    return any(getattr(before, name) != getattr(now, name) for name in _TELLING)


async def answered(call: Awaitable[T], seconds: float) -> T:
    """Wait for a cluster's answer to one question. Raises SchedulerErrors only.

    No answer in time is UnreachableError, and so is an adapter's bug or garbage that it can't read: both say
    nothing about the job.
    """
    try:
        async with asyncio.timeout(seconds):
            return await call
    except SchedulerError:
        raise
    except TimeoutError as silence:
        raise UnreachableError(f"no answer within {seconds:.0f} s") from silence
    except Exception as bug:
        logger.exception("a cluster's answer could not be understood")
        raise UnreachableError(f"{type(bug).__name__}: {bug}") from bug


_Key = tuple[int, str, str]
_shared: dict[_Key, tuple[ClusterWatch, list[Job]]] = {}


@asynccontextmanager
async def shared_watch(make: Callable[[], Scheduler], name: str, job: Job) -> AsyncIterator[ClusterWatch]:
    """Share the cluster's watch with every other guard of this event loop; the last one out closes it."""
    key = (id(asyncio.get_running_loop()), name, job.ref.cluster)
    if key not in _shared:
        _shared[key] = (ClusterWatch(make()), [])
    watch, jobs = _shared[key]
    jobs.append(job)
    watch.add(job)
    try:
        yield watch
    finally:
        jobs.remove(job)
        await watch.drop(job.ref)
        if not jobs and _shared.pop(key, None) is not None:
            await watch.scheduler.close()


def watch_of(cluster: str) -> ClusterWatch | None:
    """The watch that this event loop's guards of a cluster share; None while there is none."""
    loop = id(asyncio.get_running_loop())
    found = (watch for (where, _, name), (watch, _) in _shared.items() if (where, name) == (loop, cluster))
    return next(found, None)
