"""One watch for all guards of a cluster: who is woken by which look."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import ClassVar
from uuid import uuid4

import pytest

from trainguard.core.job import Job, JobRef
from trainguard.core.observation import Liveness, Observation
from trainguard.schedulers.sharing import ClusterWatch
from trainguard.testing.simulated import SimulatedCluster, SimulatedJob, SimulatedScheduler

JOBS = 50


class SlowlyPolled(SimulatedScheduler):
    """Polled so rarely that a test sees only what it asks for; a look can be held up."""

    poll_seconds: ClassVar[float] = 600.0

    def __init__(self, cluster: str) -> None:
        super().__init__(cluster)
        self.open = asyncio.Event()
        self.open.set()
        self.began = 0

    async def observe(self, jobs: Sequence[Job]) -> Mapping[JobRef, Observation]:
        self.began += 1
        number = self.began
        found = await super().observe(jobs)
        await self.open.wait()
        return {ref: seen.model_copy(update={"exit_code": number}) for ref, seen in found.items()}


class Guards:
    """A watch with many jobs, and for each a guard that counts what it is woken for."""

    def __init__(self) -> None:
        self.cluster = SimulatedCluster(f"sim-{uuid4().hex[:8]}")
        self.scheduler = SlowlyPolled(self.cluster.name)
        self.watch = ClusterWatch(self.scheduler)
        self.refs = [self.cluster.start(SimulatedJob(id=f"job-{n}", total=10**6)) for n in range(JOBS)]
        self.woken = dict.fromkeys(self.refs, 0)
        self.tasks: list[asyncio.Task[None]] = []

    async def stand(self) -> None:
        for ref in self.refs:
            self.watch.add(Job(ref=ref))
        self.tasks = [asyncio.create_task(self._guard(ref)) for ref in self.refs]
        await self.until(lambda: all(self.woken.values()) and self.watch.idle)

    async def _guard(self, ref: JobRef) -> None:
        looks = 0
        while True:
            looks, _ = await self.watch.next(ref, after=looks)
            self.woken[ref] += 1

    async def until(self, true) -> None:  # type: ignore[no-untyped-def]
        async with asyncio.timeout(20):
            while not true():
                await asyncio.sleep(0.01)

    async def leave(self) -> None:
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        for ref in self.refs:
            await self.watch.drop(ref)
        await self.scheduler.close()


@pytest.fixture
async def guards() -> AsyncIterator[Guards]:
    made = Guards()
    await made.stand()
    yield made
    await made.leave()


async def test_a_look_made_for_one_job_wakes_that_one(guards: Guards) -> None:
    before, asked = dict(guards.woken), guards.scheduler.began
    seen = await guards.watch.fresh(guards.refs[3])
    assert seen.exit_code == guards.scheduler.began == asked + 1
    await guards.until(lambda: guards.watch.idle)
    woken = [ref for ref in guards.refs if guards.woken[ref] > before[ref]]
    assert woken == [guards.refs[3]]


async def test_a_job_with_news_is_woken_by_whatever_look_saw_it(guards: Guards) -> None:
    before = dict(guards.woken)
    guards.cluster.stop("job-7")
    seen = await guards.watch.fresh(guards.refs[3])
    assert seen.liveness is Liveness.RUNNING
    await guards.until(lambda: guards.woken[guards.refs[7]] > before[guards.refs[7]])
    assert sum(guards.woken[ref] > before[ref] for ref in guards.refs) == 2


async def test_a_look_under_way_is_not_fresh(guards: Guards) -> None:
    guards.scheduler.open.clear()
    began = guards.scheduler.began
    early = asyncio.create_task(guards.watch.fresh(guards.refs[0]))
    await guards.until(lambda: guards.scheduler.began == began + 1)
    late = asyncio.create_task(guards.watch.fresh(guards.refs[1]))
    await asyncio.sleep(0)
    guards.scheduler.open.set()
    assert (await early).exit_code == began + 1
    assert (await late).exit_code == began + 2


async def test_many_in_a_hurry_share_a_look(guards: Guards) -> None:
    began = guards.scheduler.began
    await asyncio.gather(*(guards.watch.fresh(ref) for ref in guards.refs))
    assert guards.scheduler.began <= began + 2
