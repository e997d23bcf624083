"""A patrol from the command line guards like any other: it tells people, asks the model, and says what came of it."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import typer
from pydantic import SecretStr
from typer.testing import CliRunner

from tests.advisors.scripted_server import Answer, serving
from tests.flows.simulation import SimulatedClusterBlock, until
from trainguard.blocks.language_model import LanguageModel
from trainguard.blocks.notifier import SlackWebhook
from trainguard.cli.run import patrol
from trainguard.core.job import Job, JobRef
from trainguard.core.observation import Liveness
from trainguard.tasks import duty
from trainguard.testing.simulated import Fault, FaultKind, SimulatedCluster, SimulatedJob, SimulatedScheduler

pytestmark = pytest.mark.usefixtures("prefect_api", "ledger_url")


async def test_a_patrol_tells_people_and_prints_what_came_of_its_jobs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models: list[Any] = []
    on_duty = duty.on_duty

    def watched(*arguments: Any, **settings: Any) -> Any:
        models.append(settings["model"])
        return on_duty(*arguments, **settings)

    monkeypatch.setattr("trainguard.flows.guard.on_duty", watched)
    cluster = SimulatedCluster(f"sim-{uuid4().hex[:8]}")
    await SimulatedClusterBlock(cluster=cluster.name).save(cluster.name, overwrite=True)
    await LanguageModel(model="openai/none").save(f"model-{cluster.name}")
    ref = cluster.start(
        SimulatedJob(
            id="job",
            total=400,
            faults=(Fault(FaultKind.CODE_BUG, 95),),
            step_seconds=0.02,
            checkpoint_every=10,
        )
    )
    await until(lambda: _failed(cluster.name, ref), "the failure: a patrol of half a minute makes one round")
    async with serving(Answer()) as server:
        slack = SlackWebhook(url=SecretStr(f"{server.url}/services/T0/B0/x"), allow_any_host=True)
        await slack.save(f"team-{cluster.name}")
        settings = tmp_path / "trainguard.toml"
        settings.write_text(
            f'notifiers = ["trainguard-slack-webhook/team-{cluster.name}"]\n'
            f'model = "trainguard-language-model/model-{cluster.name}"\n'
            "[cadence]\nsettle = 2\nyoung = [2, 2]\nsteady = 3\nuncertain = 2\nleast = 0.1\n"
        )
        words = ["*", "--cluster", f"simulated-cluster/{cluster.name}", "--config", str(settings)]
        app = typer.Typer()
        app.command()(patrol)
        words += ["--only-failed", "--minutes", "0.5", "--json"]
        done = await asyncio.to_thread(CliRunner().invoke, app, words)
    assert done.exit_code == 0, (done.output, done.exception)
    told = json.loads(done.stdout)
    assert (told["selector"], told["outcome"]) == ("*", "1 guard stood")
    (job,) = told["jobs"]
    assert job["job"] == ref.key and job["status"] == "Completed"
    assert job["outcome"].startswith("unrecoverable")
    titles = [request.json["text"].partition(":")[0] for request in server.requests]
    assert titles == ["Job failure", "Not recoverable"]
    assert [model.model for model in models] == ["openai/none"]


async def _failed(cluster: str, ref: JobRef) -> bool | None:
    seen = await SimulatedScheduler(cluster).observe([Job(ref=ref)])
    return seen[ref].liveness is Liveness.FAILED or None
