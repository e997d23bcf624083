"""What a user does at a Prefect server before a measurement: pool, block, deployment, flow runs.

A process of its own, because Prefect reads its settings when it is first imported. It prints JSON.

    python -m benchmarks.pool_client guards '{"fleet": {...}, "runs": 300, "parameters": {...}}'
    python -m benchmarks.pool_client naive '{"runs": 10, "parameters": {...}}'
    python -m benchmarks.pool_client states '{}'
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterDeploymentId
from prefect.deployments.runner import RunnerDeployment
from prefect.exceptions import ObjectAlreadyExists, PrefectHTTPStatusError

from benchmarks.naive import poll_job
from trainguard.flows.guard import guard
from trainguard.testing.simulated_fleet import SimulatedFleet
from trainguard.worker import GuardWorker

ROOT = Path(__file__).parents[1]
AT_ONCE = 2
TRIES = 30


async def guards(wanted: dict[str, Any]) -> dict[str, Any]:
    """Deploy the guard to a pool of type `trainguard` and ask for a guard for each job of the fleet."""
    fleet = SimulatedFleet.model_validate(wanted["fleet"])
    await fleet.save(fleet.cluster, overwrite=True)
    template = GuardWorker.get_default_base_job_template()
    async with get_client() as client:
        await _pool(client, WorkPoolCreate(name="guards", type="trainguard", base_job_template=template))
        # For each run that it makes, the server checks the flow's whole schema of parameters anew: 0.1 s of
        # processor time. docs/scaling.md names this switch for whoever starts guards by the thousand.
        deployed = await guard.ato_deployment(
            "guard", work_pool_name="guards", enforce_parameter_schema=False
        )
        deployed.entrypoint = "flows/guard.py:guard"
        deployment = await _applied(deployed)
        each = (
            {
                "job": fleet.job(number).model_dump(mode="json"),
                "cluster": f"simulated-fleet/{fleet.cluster}",
                **wanted["parameters"],
                **_cadence(number / wanted["runs"], wanted.get("steady_seconds")),
            }
            for number in range(wanted["runs"])
        )
        return await _ask_for(client, deployment, each)


def _cadence(part: float, steady: float | None) -> dict[str, Any]:
    """Let the guards' checks fall evenly over the steady interval, as those of guards begun at any time do."""
    if steady is None:
        return {}
    return {"cadence": {"settle": 30.0 + part * (steady - 30.0), "young": (), "steady": steady}}


async def naive(wanted: dict[str, Any]) -> dict[str, Any]:
    """Deploy the baseline to a pool of type `process` and ask for its flow runs."""
    async with get_client() as client:
        await _pool(client, WorkPoolCreate(name="naive", type="process"))
        source = await poll_job.from_source(  # type: ignore[misc]
            source=str(ROOT), entrypoint="benchmarks/naive.py:poll_job"
        )
        deployed = await source.ato_deployment("naive", work_pool_name="naive")
        deployment = await _applied(deployed)
        each = ({"number": number, **wanted["parameters"]} for number in range(wanted["runs"]))
        return await _ask_for(client, deployment, each)


async def states(wanted: dict[str, Any]) -> dict[str, Any]:
    """Count the deployed flow runs by the type of their state."""
    del wanted
    found: Counter[str] = Counter()
    top = FlowRunFilter(deployment_id=FlowRunFilterDeploymentId(is_null_=False))
    async with get_client() as client:
        offset = 0
        while page := await client.read_flow_runs(flow_run_filter=top, limit=200, offset=offset):
            offset += len(page)
            found.update(f"{run.state_type}" if run.state_type else "none" for run in page)
    return {word.rpartition(".")[2]: count for word, count in found.items()}


async def _applied(deployed: RunnerDeployment) -> UUID:
    made: Any = deployed.apply()
    return UUID(str(await made))


async def _pool(client: PrefectClient, pool: WorkPoolCreate) -> None:
    try:
        await client.create_work_pool(pool)
    except ObjectAlreadyExists:
        return


async def _ask_for(
    client: PrefectClient, deployment: UUID, parameters: Iterable[dict[str, Any]]
) -> dict[str, Any]:
    """Create flow runs as fast as the server lets two of us."""
    began, gate, errors = time.monotonic(), asyncio.Semaphore(AT_ONCE), 0

    async def one(values: dict[str, Any]) -> None:
        nonlocal errors
        async with gate:
            for attempt in range(TRIES):
                try:
                    await client.create_flow_run_from_deployment(deployment, parameters=values)
                    return
                except (httpx.HTTPError, PrefectHTTPStatusError):
                    errors += 1
                    await asyncio.sleep(0.5 * (attempt + 1))
            raise RuntimeError("the server takes no flow run")

    await asyncio.gather(*(one(values) for values in parameters))
    return {"seconds": time.monotonic() - began, "retried": errors}


def main() -> None:
    what = {"guards": guards, "naive": naive, "states": states}[sys.argv[1]]
    print(json.dumps(asyncio.run(what(json.loads(sys.argv[2])))))


if __name__ == "__main__":
    main()
