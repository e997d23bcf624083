"""A pool of guards on a real Prefect server, for tests: its deployments, its runs, its workers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID, uuid4

from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterParentFlowRunId
from prefect.client.schemas.objects import FlowRun, State
from prefect.settings import PREFECT_WORKER_QUERY_SECONDS, temporary_settings

from tests.flows.simulation import QUICK, SimulatedClusterBlock, Simulation, until
from trainguard.core.policy import Policy, Preset
from trainguard.flows.guard import guard
from trainguard.worker import GuardWorker

GUARD = "trainguard.flows.guard:guard"


class Pool:
    """One work pool of type trainguard."""

    def __init__(self) -> None:
        self.name = f"guards-{uuid4().hex[:8]}"
        self.deployment: UUID | None = None

    async def create(self, kind: str = "trainguard") -> Pool:
        """Make the pool and its deployment of the guard flow."""
        template = GuardWorker.get_default_base_job_template() if kind == "trainguard" else {}
        async with get_client() as client:
            await client.create_work_pool(
                WorkPoolCreate(name=self.name, type=kind, base_job_template=template)
            )
        self.deployment = await self.deploy(guard, GUARD)
        return self

    async def deploy(self, flow: Any, entrypoint: str) -> UUID:
        """Deploy a flow to this pool."""
        async with get_client() as client:
            flow_id = await client.create_flow(flow)
            return await client.create_deployment(
                flow_id=flow_id,
                name=f"{self.name}-{uuid4().hex[:4]}",
                entrypoint=entrypoint,
                work_pool_name=self.name,
                parameter_openapi_schema=flow.parameters.model_dump(),
            )

    async def guard(self, simulation: Simulation, policy: Policy | None = None, **more: Any) -> UUID:
        """Schedule a guard of a simulated job."""
        block = SimulatedClusterBlock(cluster=simulation.cluster.name)
        await block.save(simulation.cluster.name, overwrite=True)
        parameters = {
            "job": simulation.job,
            "cluster": f"simulated-cluster/{simulation.cluster.name}",
            "policy": policy or Policy(preset=Preset.AUTONOMOUS),
            "cadence": QUICK,
            **more,
        }
        return await self.schedule(guard, parameters)

    async def schedule(self, flow: Any, parameters: dict[str, Any], deployment: UUID | None = None) -> UUID:
        """Schedule a run of a deployment; the guard's if none is named."""
        wanted = deployment or self.deployment
        assert wanted is not None
        async with get_client() as client:
            run = await client.create_flow_run_from_deployment(
                wanted, parameters=flow.serialize_parameters(parameters)
            )
        return run.id

    @asynccontextmanager
    async def worker(self, **named: Any) -> AsyncIterator[GuardWorker]:
        """Run a worker as `prefect worker start` does, and stop it as its signal does."""
        worker = GuardWorker(self.name, **named)
        with temporary_settings({PREFECT_WORKER_QUERY_SECONDS: 0.5}):
            task = asyncio.create_task(worker.start(printer=lambda *_: None))
            try:
                yield worker
                assert not task.done(), "the worker ended by itself"
            finally:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)


async def run_of(run_id: UUID) -> FlowRun:
    """Read a flow run."""
    async with get_client() as client:
        return await client.read_flow_run(run_id)


async def state_of(run_id: UUID) -> State[Any]:
    """Read a flow run's state."""
    state = (await run_of(run_id)).state
    assert state is not None
    return state


async def reached(run_id: UUID, *names: str, patience: float = 60.0) -> State[Any]:
    """Wait until a flow run's state has one of these names."""

    async def there() -> State[Any] | None:
        state = await state_of(run_id)
        return state if state.name in names else None

    return await until(there, f"{run_id} {' or '.join(names)}", patience)


async def children_of(run_id: UUID) -> list[FlowRun]:
    """The subflow runs of a flow run."""
    async with get_client() as client:
        wanted = FlowRunFilter(parent_flow_run_id=FlowRunFilterParentFlowRunId(any_=[run_id]))
        return await client.read_flow_runs(flow_run_filter=wanted)
