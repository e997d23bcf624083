"""What a patrol does: a guard for each job that needs one, none for the others, and no job touched when it stops."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any
from uuid import uuid4

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterName

from tests.flows.simulation import QUICK, SimulatedClusterBlock, Simulation, until
from trainguard.core.job import JobRef
from trainguard.core.policy import Policy, Preset
from trainguard.flows.patrol import patrol
from trainguard.ledger.ledger import Ledger
from trainguard.testing.simulated import Fault, FaultKind, SimulatedCluster, SimulatedJob

pytestmark = pytest.mark.usefixtures("prefect_api", "ledger_url")
AUTONOMOUS = Policy(preset=Preset.AUTONOMOUS)
ENDLESS = 10**6
Patrol = Callable[..., asyncio.Task[Any]]


@pytest.fixture
def cluster() -> SimulatedCluster:
    return SimulatedCluster(f"sim-{uuid4().hex[:8]}")


@pytest.fixture
async def start(cluster: SimulatedCluster) -> AsyncIterator[Patrol]:
    started: list[asyncio.Task[Any]] = []

    def begin(selector: str = "*", **parameters: Any) -> asyncio.Task[Any]:
        async def run() -> Any:
            block = SimulatedClusterBlock(cluster=cluster.name)
            await block.save(cluster.name, overwrite=True)
            settings = {"policy": AUTONOMOUS, "cadence": QUICK, "every": 0.5, **parameters}
            slug = f"simulated-cluster/{cluster.name}"
            return await patrol(cluster=slug, selector=selector, return_state=True, **settings)

        started.append(asyncio.create_task(run()))
        return started[-1]

    yield begin
    for task in started:
        task.cancel()
    await asyncio.gather(*started, return_exceptions=True)


def begin_job(cluster: SimulatedCluster, name: str, *faults: Fault, total: int = ENDLESS) -> JobRef:
    job = SimulatedJob(id=name, total=total, faults=faults, step_seconds=0.02, checkpoint_every=10)
    return cluster.start(job)


def status_is(ref: JobRef, wanted: str) -> Callable[[], Awaitable[bool | None]]:
    async def ask() -> bool | None:
        async with await Ledger.open() as ledger:
            known = await ledger.job_status(ref.key)
        return True if known is not None and known.status == wanted else None

    return ask


async def guards_of(name: str) -> list[str]:
    """Names of the states of all guard runs of a job."""
    async with get_client() as client:
        named = FlowRunFilter(name=FlowRunFilterName(any_=[f"guard {name}"]))
        return [run.state_name or "" for run in await client.read_flow_runs(flow_run_filter=named)]


async def test_each_job_that_is_selected_is_guarded_and_recovered_also_one_that_comes_later(
    cluster: SimulatedCluster, start: Patrol
) -> None:
    begin_job(cluster, "llama-1", Fault(FaultKind.NCCL, 495), total=800)
    other = begin_job(cluster, "bert-1")
    running = start("llama")
    later = begin_job(cluster, "llama-2", total=400)
    await until(status_is(later, "Completed"), "the later job's guard ended")
    await until(
        status_is(later.model_copy(update={"id": "llama-1"}), "Completed"), "the first one's guard ended"
    )
    assert cluster.starts["llama-1"] == 2
    async with await Ledger.open() as ledger:
        assert await ledger.job_status(other.key) is None
    assert not running.done()


async def test_a_job_that_failed_before_the_patrol_is_left_alone_unless_failures_are_asked_for(
    cluster: SimulatedCluster, start: Patrol
) -> None:
    old = begin_job(cluster, "old", total=200)
    await asyncio.sleep(0.3)
    cluster.crash("old", FaultKind.NCCL)
    live = begin_job(cluster, "live")
    running = start(minutes=0.1)
    await until(status_is(live, "Completed"), "the live job was guarded until the time was up")
    await running
    assert cluster.starts["old"] == 1
    again = start(only_failed=True)
    await until(status_is(old, "Completed"), "the failed job got its guard")
    assert not again.done()


async def test_a_job_is_guarded_again_only_when_a_new_incarnation_of_it_runs(
    cluster: SimulatedCluster, start: Patrol
) -> None:
    name = f"again-{uuid4().hex[:6]}"
    ref = begin_job(cluster, name)
    start(policy=Policy(preset=Preset.OBSERVE))
    await until(status_is(ref, "Enabled"), "a guard stands")
    cluster.crash(name, FaultKind.CODE_BUG)
    await until(status_is(ref, "Completed"), "the first guard ended")
    rounds = cluster.queries
    await until(lambda: _more(cluster, rounds + 6), "some more rounds")
    assert len(await guards_of(name)) == 1
    begin_job(cluster, name)
    await until(lambda: _count(name, 2), "a second guard")


async def _more(cluster: SimulatedCluster, count: int) -> bool | None:
    return True if cluster.queries > count else None


async def _count(name: str, wanted: int) -> bool | None:
    return True if len(await guards_of(name)) == wanted else None


async def test_a_guard_that_hands_over_to_its_successor_is_followed_by_it(
    cluster: SimulatedCluster, start: Patrol
) -> None:
    name = f"long-{uuid4().hex[:6]}"
    begin_job(cluster, name)
    start(checks_a_run=1)
    await until(lambda: _handed(name), "three guards after another")


async def _handed(name: str) -> bool | None:
    return True if (await guards_of(name)).count("HandedOver") >= 2 else None


async def test_a_job_that_has_a_guard_is_left_to_it(cluster: SimulatedCluster, start: Patrol) -> None:
    simulation = Simulation(total=ENDLESS)
    watching = simulation.guard()
    await until(status_is(simulation.job.ref, "Enabled"), "the first guard stands")
    block = SimulatedClusterBlock(cluster=simulation.cluster.name)
    await block.save(simulation.cluster.name, overwrite=True)
    settings: dict[str, Any] = {"cadence": QUICK, "every": 0.3, "minutes": 0.05}
    state = await patrol(
        cluster=f"simulated-cluster/{simulation.cluster.name}", return_state=True, **settings
    )
    assert state.message == "0 guards stood"
    watching.cancel()
    await asyncio.gather(watching, return_exceptions=True)


async def test_a_patrol_that_stops_lays_down_its_guards_and_leaves_the_jobs(
    cluster: SimulatedCluster, start: Patrol
) -> None:
    ref = begin_job(cluster, "job")
    running = start()
    await until(status_is(ref, "Enabled"), "a guard")
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    async with await Ledger.open() as ledger:
        lease = await ledger.lease(ref.key)
    assert lease is None or lease.holder == ""
    assert cluster.starts["job"] == 1 and cluster.jobs["job"].run.ended is None
