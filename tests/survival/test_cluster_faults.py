"""A cluster that is away, slow, talks garbage or denies a job: nothing is done, its owner is told, it is over one day."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any
from uuid import UUID

import pytest
from prefect.client.orchestration import get_client

from tests.flows.simulation import SimulatedClusterBlock, Simulation, until
from tests.survival.scene import Channel
from trainguard.blocks.notifier import SlackWebhook
from trainguard.core import health
from trainguard.core.action import Action, Fence, Outcome
from trainguard.core.errors import UnreachableError
from trainguard.core.incident import IncidentState
from trainguard.core.job import Job, JobRef
from trainguard.core.observation import Liveness, LogBatch, Observation
from trainguard.ledger.ledger import Ledger
from trainguard.schedulers.sharing import ClusterWatch
from trainguard.tasks import act, durable
from trainguard.testing.simulated import CLUSTERS, Fault, FaultKind, SimulatedScheduler

pytestmark = pytest.mark.usefixtures("prefect_api", "ledger_url", "short_times")
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
    monkeypatch.setattr("trainguard.tasks.check.LOG_ANSWER_SECONDS", 0.5)
    monkeypatch.setattr(ClusterWatch.__init__, "__kwdefaults__", {"patience": 0.5})
    monkeypatch.setattr(SimulatedClusterBlock, "make_scheduler", lambda self: FaultyScheduler(self.cluster))


@pytest.fixture
async def simulation(request: pytest.FixtureRequest) -> AsyncIterator[Simulation]:
    """A job that fails at its 150th step, three seconds after its start."""
    made = Simulation(Fault(FaultKind.NCCL, 150), total=100_000)
    yield made
    FaultyScheduler.faults = {}
    CLUSTERS.pop(made.cluster.name)


async def shown(simulation: Simulation, wanted: str) -> str | None:
    """The name of the guard's state in Prefect, if it is the wanted one."""
    async with await Ledger.open() as ledger:
        lease = await ledger.lease(simulation.job.key)
    if lease is None:
        return None
    async with get_client() as client:
        state = (await client.read_flow_run(UUID(lease.holder.rpartition(":")[2]))).state
    return state.name if state is not None and state.name == wanted else None


async def recovered(simulation: Simulation) -> bool | None:
    """Whether the newest incident ended well."""
    found = await simulation.incidents()
    return (bool(found) and found[-1].state is IncidentState.RECOVERED) or None


async def finish(simulation: Simulation, guarding: asyncio.Task[Any]) -> None:
    """The job came back exactly once; its owner ends it."""
    await until(lambda: recovered(simulation), "recovery")
    assert simulation.starts == 2
    simulation.cluster.stop("job")
    assert "recovered 1 time" in (await guarding).message
    assert simulation.starts == 2


@pytest.mark.parametrize("fault", ["unreachable", "slow", "garbage", "no such job", "a word never heard of"])
async def test_a_job_out_of_sight_is_left_alone_and_its_owner_told_once(
    simulation: Simulation, channel: Channel, fault: str
) -> None:
    guarding = simulation.guard(notifiers=[SlackWebhook(url=channel.url, allow_any_host=True)])
    await until(lambda: shown(simulation, "Enabled"), "the guard")
    FaultyScheduler.faults = {simulation.cluster.name: fault}
    await until(lambda: shown(simulation, "Degraded"), "status Degraded")
    assert channel.count("Can't see the job") == 1
    if fault != "no such job":  # ten more looks, and the job fails unseen
        await until(lambda: failed_unseen(simulation), "the failure")
    await asyncio.sleep(1)
    assert not await simulation.incidents()
    assert simulation.starts == 1
    assert not guarding.done()
    FaultyScheduler.faults = {}
    await finish(simulation, guarding)
    assert channel.count("Can't see the job") == 1
    assert channel.count("Can see the job again") == 1


async def failed_unseen(simulation: Simulation) -> bool | None:
    """Whether the job has met its fault."""
    return simulation.cluster.settled("job").run.ended is not None or None


@pytest.mark.parametrize("fault", ["unreachable", "slow", "garbage"])
@pytest.mark.parametrize("where", ["perform", "answer", "logs", "find"])
async def test_a_cluster_that_fails_in_the_middle_of_a_recovery_costs_time_alone(
    simulation: Simulation, where: str, fault: str
) -> None:
    FaultyScheduler.faults = {f"{simulation.cluster.name} {where}": fault}
    guarding = simulation.guard()
    await until(lambda: acting(simulation), "an intent")
    await asyncio.sleep(1.5)
    assert simulation.starts <= 2
    FaultyScheduler.faults = {}
    await finish(simulation, guarding)


async def acting(simulation: Simulation) -> bool | None:
    """Whether an action is on record."""
    found = await simulation.incidents()
    if not found:
        return None
    async with await Ledger.open() as ledger:
        return bool(await ledger.intents(found[-1].id)) or None


@pytest.mark.parametrize("fault", ["unreachable", "no such job", "a word never heard of"])
async def test_sight_lost_between_decision_and_action_is_waited_for(
    simulation: Simulation, channel: Channel, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    deciding = Ledger.add_decisions

    async def blinded(*arguments: Any) -> None:
        FaultyScheduler.faults = {simulation.cluster.name: fault}
        await deciding(*arguments)

    monkeypatch.setattr(Ledger, "add_decisions", blinded)
    guarding = simulation.guard(notifiers=[SlackWebhook(url=channel.url, allow_any_host=True)])
    await until(lambda: told(channel), "the owner told")
    assert simulation.starts == 1
    assert not await acting(simulation)
    FaultyScheduler.faults = {}
    await finish(simulation, guarding)
    assert channel.count("Can't see the job") == 1
    assert channel.count("Can see the job again") == 1


async def told(channel: Channel) -> bool | None:
    """Whether the owner knows."""
    return channel.count("Can't see the job") > 0 or None
