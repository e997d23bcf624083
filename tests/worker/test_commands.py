"""The worker as users start it: from a plain shell."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from uuid import UUID, uuid4

import httpx
import pytest
from prefect.client.orchestration import get_client

from tests.flows.test_survival import Trial
from tests.worker.pool import Pool, reached, state_of
from trainguard.cli.prefect_server import free_port
from trainguard.core.policy import Policy, Preset
from trainguard.flows.guard import guard

pytestmark = pytest.mark.usefixtures("prefect_api")

PREFECT = str(Path(sys.executable).with_name("prefect"))


@asynccontextmanager
async def prefect(*words: str, **environment: str) -> AsyncIterator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(
        PREFECT, *words, env={**os.environ, "PREFECT_WORKER_QUERY_SECONDS": "0.5", **environment},
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def test_the_pools_type_is_known_to_prefect_and_offers_only_the_settings_that_matter() -> None:
    name = f"guards-{uuid4().hex[:8]}"
    async with prefect("work-pool", "create", name, "--type", "trainguard") as process:
        output, _ = await process.communicate()
    assert process.returncode == 0, output.decode()
    async with get_client() as client:
        made = await client.read_work_pool(name)
    assert made.type == "trainguard"
    assert set(made.base_job_template["variables"]["properties"]) == {
        "starts_a_second",
        "watch_seconds",
        "adopt_seconds",
        "silent_seconds",
        "drain_seconds",
    }


async def _guarded(trial: Trial, pool: Pool) -> UUID:
    """Start a job that goes on for long and schedule its guard."""
    job = await trial.start(steps=1000, fail_at=0)
    policy = Policy(preset=Preset.AUTONOMOUS)
    parameters = {"job": job, "cluster": "trainguard-local-host/this-machine", "policy": policy}
    return await pool.schedule(guard, parameters)


async def test_the_first_sigterm_hands_over_and_the_health_endpoint_answers(tmp_path: Path) -> None:
    trial, pool, port = Trial(tmp_path, "stopped"), await Pool().create(), free_port()
    run = await _guarded(trial, pool)
    environment = {"TRAINGUARD_LEDGER_URL": trial.ledger, "PREFECT_WORKER_WEBSERVER_PORT": str(port)}
    async with prefect("worker", "start", "--pool", pool.name, "--with-healthcheck", **environment) as worker:
        await reached(run, "Enabled", patience=120)
        assert httpx.get(f"http://127.0.0.1:{port}/health").status_code == 200
        worker.send_signal(signal.SIGTERM)
        output, _ = await worker.communicate()
    assert (await state_of(run)).name == "Resuming", output.decode()
    assert b"its worker stops" in output
    assert trial.starts() == [0]


async def test_a_second_sigterm_stops_at_once_and_the_job_goes_on(tmp_path: Path) -> None:
    trial, pool = Trial(tmp_path, "twice"), await Pool().create()
    run = await _guarded(trial, pool)
    async with prefect("worker", "start", "--pool", pool.name, TRAINGUARD_LEDGER_URL=trial.ledger) as worker:
        await reached(run, "Enabled", patience=120)
        worker.send_signal(signal.SIGTERM)
        worker.send_signal(signal.SIGTERM)
        assert await worker.wait() in {0, -signal.SIGKILL}
    assert trial.starts() == [0]


async def test_the_same_deployment_runs_under_a_stock_process_worker(tmp_path: Path) -> None:
    trial, pool = Trial(tmp_path, "stock"), await Pool().create("process")
    job = await trial.start(steps=140, fail_at=45)
    policy = Policy(preset=Preset.AUTONOMOUS)
    run = await pool.schedule(
        guard, {"job": job, "cluster": "trainguard-local-host/this-machine", "policy": policy}
    )
    words = ("worker", "start", "--pool", pool.name, "--type", "process")
    async with prefect(*words, TRAINGUARD_LEDGER_URL=trial.ledger) as worker:
        state = await reached(run, "Completed", "Failed", "Crashed", patience=180)
        worker.send_signal(signal.SIGTERM)
        await worker.communicate()
    assert state.message == "succeeded, recovered 1 time"
    assert trial.starts() == [0, 40]
