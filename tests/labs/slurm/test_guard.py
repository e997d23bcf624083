"""The whole guard on a real Slurm: a real training is killed three ways in one night and finishes by the whitelist."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.flows.simulation import QUICK, until
from tests.labs.slurm.lab_cluster import Cluster
from tests.labs.slurm.test_actions import TRAINING, steps, until_step
from tests.labs.slurm.test_states import kill_controller
from trainguard.blocks.slurm_cluster import SlurmCluster
from trainguard.core.action import ActionKind
from trainguard.core.decision import Answer, ApprovalAnswer, ApprovalRequest
from trainguard.core.incident import IncidentState
from trainguard.core.job import Job
from trainguard.core.policy import Allow, Limits, Policy, Preset
from trainguard.core.verdict import FaultClass
from trainguard.flows.guard import guard
from trainguard.ledger.ledger import Ledger

pytestmark = [
    pytest.mark.lab("slurm"),
    pytest.mark.usefixtures("prefect_api", "ledger_url"),
    pytest.mark.timeout(290),
]

AWAY = float(os.environ.get("TRAINGUARD_OUTAGE_SECONDS", "20"))
NIGHT = Policy(
    preset=Preset.ASSIST,
    limits=Limits(memory_factor=4),
    allow=(
        Allow(action=ActionKind.RESTART),
        Allow(action=ActionKind.RESTART_EXCLUDING_NODE),
        Allow(action=ActionKind.RESTART_WITH_MORE_MEMORY, faults=(FaultClass.HOST_OOM,)),
        Allow(action=ActionKind.EXTEND_TIME_LIMIT, faults=(FaultClass.TIME_LIMIT,)),
    ),
)


def block_of(cluster: Cluster) -> SlurmCluster:
    facts = cluster.facts
    return SlurmCluster(
        cluster=cluster.name,
        host=facts["HOST"],
        port=int(facts["PORT"]),
        user=facts["USER_NAME"],
        key_file=facts["USER_KEY"],
        known_hosts=facts["KNOWN_HOSTS"],
        requeue_delay=3,
    )


@pytest.fixture
async def guards() -> AsyncIterator[Any]:
    """Starts guards, and lays down those that still stand at the end."""
    started: list[asyncio.Task[Any]] = []

    def start(cluster: Cluster, job: Job, policy: Policy = NIGHT) -> asyncio.Task[Any]:
        async def run() -> Any:
            block = block_of(cluster)
            await block.save(cluster.name, overwrite=True)
            return await guard(
                job=job,
                cluster=f"slurm-cluster/{cluster.name}",
                policy=policy,
                cadence=QUICK,
                return_state=True,
            )

        started.append(asyncio.create_task(run()))
        return started[-1]

    yield start
    for task in started:
        task.cancel()
    await asyncio.gather(*started, return_exceptions=True)


async def closed(job: Job, count: int) -> Any:
    """Wait until so many incidents have been closed; gives them, oldest first."""

    async def look() -> Any:
        async with await Ledger.open() as ledger:
            found = list(reversed(await ledger.incidents(job.key)))
        return found if sum(one.state.closed for one in found) >= count else None

    return await until(look, f"{count} closed incidents", 120)


async def test_a_night_of_node_failure_memory_and_time_limit_ends_with_a_finished_training(
    acct: Cluster, guards: Any
) -> None:
    folder: Path = acct.job_folder()
    (folder / "total").write_text("10000")
    options = ("--output=out-%j.txt", "--mem=100M", "--time=3", "--no-requeue")
    job = acct.job(acct.submit(folder, TRAINING, *options), folder)
    guarding = guards(acct, job)

    # the training outgrows its memory by itself after a few steps
    (memory,) = await closed(job, 1)
    assert memory.state is IncidentState.RECOVERED, memory.outcome

    # then its node goes down under it
    node = acct.run("squeue", "--noheader", "--format=%N", "--name=job.sh").strip()
    acct.run("scontrol", "update", f"nodename={node}", "state=down", "reason=lab", user="root")
    try:
        *_, down = await closed(job, 2)
        assert down.state is IncidentState.RECOVERED, down.outcome
        assert node not in acct.run("squeue", "--noheader", "--format=%N", "--name=job.sh")
    finally:
        acct.run("scontrol", "update", f"nodename={node}", "state=resume", user="root")

    # and then its time is over
    native = acct.run("squeue", "--noheader", "--format=%i", "--name=job.sh").strip()
    acct.run("scontrol", "update", f"jobid={native}", "EndTime=now+2", user=acct.facts["OPS_NAME"])
    *_, late = await closed(job, 3)
    assert late.state is IncidentState.RECOVERED, late.outcome

    await until_step(folder, steps(folder) + 2)
    (folder / "total").write_text(str(steps(folder) + 4))
    state = await guarding
    assert (state.name, state.message) == ("Completed", "succeeded, recovered 3 times")
    async with await Ledger.open() as ledger:
        faults = []
        for incident in reversed(await ledger.incidents(job.key)):
            found = await ledger.diagnosis(incident.id)
            faults.append(found.fault if found else None)
    assert faults == [FaultClass.HOST_OOM, FaultClass.NODE_FAILURE, FaultClass.TIME_LIMIT]
    runs = acct.run("sacct", "--noheader", "-X", "--format=JobID", "--name=job.sh", "-S", "now-1hour").split()
    assert len(runs) >= 1


async def asked(job: Job) -> ApprovalRequest:
    """Wait for the guard's question."""

    async def look() -> ApprovalRequest | None:
        async with await Ledger.open() as ledger:
            found = await ledger.open_requests(job.key)
        return found[0] if found else None

    return await until(look, "a question", 120)


async def test_while_the_controller_is_away_nothing_is_done_and_what_was_approved_is_done_once(
    acct: Cluster, guards: Any
) -> None:
    """One job has failed and its restart is approved meanwhile, another trains on."""
    failed, healthy = acct.job_folder(), acct.job_folder()
    jobs = []
    for folder in (failed, healthy):
        (folder / "total").write_text("10000")
        options = ("--output=out-%j.txt", "--mem=500M", "--no-requeue", "--exclusive")
        jobs.append(acct.job(acct.submit(folder, TRAINING, *options), folder))
    guarding = [guards(acct, job, Policy(preset=Preset.ASSIST)) for job in jobs]
    await asyncio.gather(until_step(failed, 4), until_step(healthy, 4))
    node = acct.run("squeue", "--noheader", "--format=%N", f"--jobs={jobs[0].ref.id}").strip()
    acct.run("scontrol", "update", f"nodename={node}", "state=down", "reason=lab", user="root")
    try:
        question = await asked(jobs[0])
        reached = steps(failed)
        kill_controller(acct)
        try:
            token = question.incarnation.token if question.incarnation else None
            answer = ApprovalAnswer(
                request=question.id, answer=Answer.APPROVE, by="tess", via="cli", at=time.time()
            )
            async with await Ledger.open() as ledger:
                assert (await ledger.answer(answer, token, time.time())).accepted
            before = steps(healthy)
            await asyncio.sleep(AWAY)
            assert steps(healthy) > before
            assert steps(failed) == reached
            async with await Ledger.open() as ledger:
                (incident,) = await ledger.incidents(jobs[0].key)
                assert not incident.state.closed, incident
                assert await ledger.incidents(jobs[1].key) == []
        finally:
            acct.start("slurmctld")
        (incident,) = await closed(jobs[0], 1)
        assert incident.state is IncidentState.RECOVERED, incident.outcome
    finally:
        acct.run("scontrol", "update", f"nodename={node}", "state=resume", user="root")
    for folder in (failed, healthy):
        (folder / "total").write_text(str(steps(folder) + 4))
    states = [await one for one in guarding]
    assert [state.message for state in states] == ["succeeded, recovered 1 time", "succeeded"]
    assert [len(list(folder.glob("out-*.txt"))) for folder in (failed, healthy)] == [2, 1]
