"""A cluster that is away, slow, talks garbage or denies a job: nothing is done, its owner is told, it is over one day."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any
from uuid import UUID

import pytest
from prefect.client.orchestration import get_client

from tests.flows.simulation import SimulatedClusterBlock, Simulation
from tests.survival.scene import Channel, until
from trainguard.blocks.notifier import SlackWebhook
from trainguard.core import health
from trainguard.core.action import Action, Fence, Outcome
from trainguard.core.decision import Lease, Plan
from trainguard.core.errors import UnreachableError
from trainguard.core.incident import IncidentState
from trainguard.core.job import Job, JobRef
from trainguard.core.observation import Liveness, LogBatch, Observation
from trainguard.ledger.ledger import Ledger
from trainguard.schedulers.sharing import ClusterWatch
from trainguard.tasks import act, durable
from trainguard.testing.simulated import CLUSTERS, FaultKind, SimulatedScheduler

pytestmark = [
    pytest.mark.usefixtures("prefect_api", "ledger_url", "short_times"),
    pytest.mark.timeout(600),
]
HANG = 3600.0


class FaultyScheduler(SimulatedScheduler):
    """A simulated cluster's adapter with the faults of the real world, by the cluster's name in `faults`."""

    poll_seconds = 0.1
    faults: dict[str, str] = {}  # noqa: RUF012 - set by each test for its own cluster

    async def _meet(self, what: str) -> None:
        fault = self.faults.get(f"{self.cluster} {what}", self.faults.get(self.cluster, ""))
        if fault == "unreachable":
            raise UnreachableError("connection refused")
        if fault == "slow":
            await asyncio.sleep(HANG)
        if fault == "garbage":
            raise KeyError("JobState")

    async def observe(self, jobs: Sequence[Job]) -> Mapping[JobRef, Observation]:
        await self._meet("observe")
        seen = await super().observe(jobs)
        fault = self.faults.get(self.cluster, "")
        if fault == "no such job":
            return {ref: _denied(ref) for ref in seen}
        if fault == "a word never heard of":
            return {ref: _odd(known) for ref, known in seen.items()}
        return seen

    async def logs(self, job: Job, cursor: str = "", limit: int = 1_000_000) -> LogBatch:
        await self._meet("logs")
        return await super().logs(job, cursor, limit)

    async def perform(self, job: Job, action: Action, fence: Fence) -> Outcome:
        await self._meet("perform")
        done = await super().perform(job, action, fence)
        await self._meet("answer")
        return done

    async def find(self, job: Job, fence: Fence) -> Outcome | None:
        await self._meet("find")
        return await super().find(job, fence)


def _denied(ref: JobRef) -> Observation:
    return Observation(job=ref, at=time.time(), source="simulated", liveness=Liveness.GONE)


def _odd(seen: Observation) -> Observation:
    return seen.model_copy(update={"liveness": Liveness.UNKNOWN, "native": "WOBBLING"})


@pytest.fixture
def short_times(monkeypatch: pytest.MonkeyPatch) -> None:
    """Patience in seconds instead of minutes."""
    monkeypatch.setattr(health, "_BLIND_SECONDS", 1.0)
    monkeypatch.setattr(act, "RETRY_SECONDS", 0.2)
    monkeypatch.setattr(durable, "RETRY_SECONDS", 0.2)
    monkeypatch.setattr(act, "PERFORM_SECONDS", 1.0)
    monkeypatch.setattr(act, "FIND_SECONDS", 1.0)
    monkeypatch.setattr("trainguard.tasks.log_reading.ANSWER_SECONDS", 0.5)
    monkeypatch.setattr(ClusterWatch.__init__, "__kwdefaults__", {"patience": 0.5})
    monkeypatch.setattr(SimulatedClusterBlock, "make_scheduler", lambda self: FaultyScheduler(self.cluster))


Trial = Callable[["Sight", str], Coroutine[Any, Any, None]]


class Sight:
    """A job on a cluster of its own, its guard, and where its owner is told."""

    def __init__(self, channel: Channel, ledger: Ledger) -> None:
        self.simulation = Simulation(total=100_000)
        self.ledger = ledger
        self.cluster = self.simulation.cluster
        self.channel = channel

    def guard(self) -> asyncio.Task[Any]:
        """Begin to guard the job."""
        return self.simulation.guard(notifiers=[SlackWebhook(url=self.channel.url, allow_any_host=True)])

    def told(self, title: str) -> int:
        """How often the owner of this job was told so."""
        return self.channel.count(f"{title}: {self.simulation.job.name}")

    async def shown(self, wanted: str) -> bool | None:
        """Whether the guard's state in Prefect has that name."""
        lease = await self.ledger.lease(self.simulation.job.key)
        if lease is None:
            return None
        async with get_client() as client:
            state = (await client.read_flow_run(UUID(lease.holder.rpartition(":")[2]))).state
        return (state is not None and state.name == wanted) or None

    async def acting(self) -> bool | None:
        """Whether an action is on record."""
        found = await self.ledger.incidents(self.simulation.job.key)
        return (bool(found) and bool(await self.ledger.intents(found[0].id))) or None

    async def recovered(self) -> bool | None:
        """Whether the newest incident ended well."""
        found = await self.ledger.incidents(self.simulation.job.key)
        return (bool(found) and found[0].state is IncidentState.RECOVERED) or None

    async def finish(self, guarding: asyncio.Task[Any]) -> None:
        """The job came back exactly once; its owner ends it."""
        await until(self.recovered, "recovery", 120)
        assert self.simulation.starts == 2
        self.cluster.stop("job")
        assert "recovered 1 time" in (await guarding).message
        assert self.simulation.starts == 2


async def try_all(trial: Trial, channel: Channel, faults: Sequence[str]) -> None:
    """Try all faults at the same time, each on a job and a cluster of its own."""
    clusters = []
    await SimulatedClusterBlock.register_type_and_schema()
    try:
        async with await Ledger.open() as ledger, asyncio.TaskGroup() as trials:
            for fault in faults:
                sight = Sight(channel, ledger)
                clusters.append(sight.cluster.name)
                trials.create_task(trial(sight, fault), name=fault)
                await asyncio.sleep(0.5)
    finally:
        FaultyScheduler.faults.clear()
        for name in clusters:
            CLUSTERS.pop(name)


MIDDLE = (
    "perform: unreachable",
    "perform: slow",
    "answer: slow",
    "answer: garbage",
    "logs: slow",
    "find: unreachable",
)
"""What fails in an action: the call is never sent; it hangs; it happens and its answer is lost; and so on."""
FAULTS = ("unreachable", "slow", "garbage", "no such job", "a word never heard of")


async def _told(sight: Sight, title: str) -> bool | None:
    return sight.told(title) > 0 or None


async def test_a_job_out_of_sight_is_left_alone_and_its_owner_told_once(channel: Channel) -> None:
    async def trial(sight: Sight, fault: str) -> None:
        guarding = sight.guard()
        await until(lambda: sight.shown("Enabled"), "the guard", 120)
        FaultyScheduler.faults[sight.cluster.name] = fault
        await until(lambda: sight.shown("Degraded"), f"{fault}: status Degraded", 120)
        await until(lambda: _told(sight, "Can't see the job"), f"{fault}: the owner told", 120)
        sight.cluster.crash("job", FaultKind.NCCL)  # unseen
        await asyncio.sleep(2)  # twenty looks
        assert not await sight.simulation.incidents()
        assert sight.simulation.starts == 1
        assert not guarding.done()
        del FaultyScheduler.faults[sight.cluster.name]
        await sight.finish(guarding)
        assert sight.told("Can't see the job") == 1, fault
        assert sight.told("Can see the job again") == 1, fault

    await try_all(trial, channel, FAULTS)


async def test_a_cluster_that_fails_in_the_middle_of_a_recovery_costs_time_alone(channel: Channel) -> None:
    async def trial(sight: Sight, fault: str) -> None:
        where, _, kind = fault.partition(": ")
        FaultyScheduler.faults[f"{sight.cluster.name} {where}"] = kind
        guarding = sight.guard()
        await until(lambda: sight.shown("Enabled"), "the guard", 120)
        sight.cluster.crash("job", FaultKind.NCCL)
        await until(sight.acting, f"{fault}: an intent", 120)
        await asyncio.sleep(1.5)  # longer than a perform's patience
        assert sight.simulation.starts <= 2
        del FaultyScheduler.faults[f"{sight.cluster.name} {where}"]
        await sight.finish(guarding)

    await try_all(trial, channel, MIDDLE)


async def test_sight_lost_between_decision_and_action_is_waited_for(
    channel: Channel, monkeypatch: pytest.MonkeyPatch
) -> None:
    deciding = Ledger.add_decisions
    blinding: dict[str, tuple[str, str]] = {}

    async def blinded(self: Ledger, lease: Lease, incident: str, plan: Plan) -> None:
        name, fault = blinding[lease.job_key]
        FaultyScheduler.faults[name] = fault
        await deciding(self, lease, incident, plan)

    async def trial(sight: Sight, fault: str) -> None:
        blinding[sight.simulation.job.key] = (sight.cluster.name, fault)
        guarding = sight.guard()
        await until(lambda: sight.shown("Enabled"), "the guard", 120)
        sight.cluster.crash("job", FaultKind.NCCL)

        await until(lambda: _told(sight, "Can't see the job"), f"{fault}: the owner told", 120)
        assert sight.simulation.starts == 1
        assert not await sight.acting()
        del FaultyScheduler.faults[sight.cluster.name]
        await sight.finish(guarding)
        assert sight.told("Can't see the job") == 1, fault
        assert sight.told("Can see the job again") == 1, fault

    monkeypatch.setattr(Ledger, "add_decisions", blinded)
    await try_all(trial, channel, ("unreachable", "slow", "no such job"))
