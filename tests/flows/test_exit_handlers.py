"""The owner's scripts by exit code, on a real job under a real supervisor."""

from __future__ import annotations

import asyncio
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.flows.simulation import QUICK, until
from trainguard.blocks.local_host import LocalHost
from trainguard.core.action import ActionKind
from trainguard.core.decision import Answer, ApprovalAnswer, ApprovalRequest
from trainguard.core.job import CheckpointSpec, Job, Resume, ResumeBy
from trainguard.core.policy import Allow, Policy, Preset
from trainguard.flows.guard import guard
from trainguard.ledger.ledger import Ledger
from trainguard.schedulers.local.starting import LocalJob, start_job

pytestmark = pytest.mark.usefixtures("prefect_api", "ledger_url")
TRAINING = Path(__file__).parent / "locked_training.py"
ALLOWED = Policy(allow=(Allow(action=ActionKind.RUN_RECOVERY_SCRIPT), Allow(action=ActionKind.RESTART)))


async def start(folder: Path) -> Job:
    (folder / "lock").touch()
    config = LocalJob(
        command=(sys.executable, str(TRAINING), str(folder), "90", "55"),
        name=folder.name,
        state=folder / "job",
        checkpoints=CheckpointSpec(
            directory=str(folder / "checkpoints"),
            format="glob",
            glob="step-{step}.json",
            resume=Resume(by=ResumeBy.ARGUMENT, name="--resume"),
        ),
    )
    return await start_job(config)


def handlers(folder: Path, script: str, max_retries: int = 2) -> Path:
    path = folder / "recover.sh"
    path.write_text(f'#!/bin/sh\necho "$TRAINGUARD_EXIT_CODE $TRAINGUARD_ATTEMPT" >>uses\n{script}\n')
    path.chmod(0o755)
    file = folder / "handlers.yaml"
    rule = f"{{exit_codes: [42], recovery_script: ./recover.sh, max_retries: {max_retries}}}"
    file.write_text(f"failure_handlers:\n  - name: locks\n    rules: [{rule}]\n")
    return file


async def guarded(job: Job, rules: Path, policy: Policy = ALLOWED) -> Any:
    return await guard(
        job=job, cluster=LocalHost(), policy=policy, cadence=QUICK, rules=[rules], return_state=True
    )


def starts(folder: Path) -> list[str]:
    return (folder / "starts").read_text().split()


async def test_the_script_for_an_exit_code_runs_and_the_job_goes_on_from_its_checkpoint(
    tmp_path: Path,
) -> None:
    state = await guarded(await start(tmp_path), handlers(tmp_path, "rm lock"))
    assert (state.name, state.message) == ("Completed", "succeeded, recovered 1 time")
    assert starts(tmp_path) == ["0", "50"]
    assert (tmp_path / "uses").read_text() == "42 1\n"


async def test_after_a_script_that_failed_the_job_is_not_started_again(tmp_path: Path) -> None:
    state = await guarded(await start(tmp_path), handlers(tmp_path, "echo the lock is held; exit 3"))
    assert "the recovery script exited with 3; it said: the lock is held" in state.message
    assert starts(tmp_path) == ["0"]


async def test_a_script_runs_no_more_often_than_its_owner_said(tmp_path: Path) -> None:
    state = await guarded(await start(tmp_path), handlers(tmp_path, "true", max_retries=2))
    assert "exit code 42 came back although its recovery script ran" in state.message
    assert "(2 of 2)" in state.message
    assert starts(tmp_path) == ["0", "50", "50"]
    assert (tmp_path / "uses").read_text() == "42 1\n42 2\n"


async def test_a_script_that_is_not_whitelisted_waits_for_a_person(tmp_path: Path) -> None:
    job = await start(tmp_path)
    guarding = asyncio.create_task(
        guarded(job, handlers(tmp_path, "rm lock"), Policy(preset=Preset.AUTONOMOUS))
    )
    question = await until(lambda: _asked(job), "a question")
    first = question.plan.steps[0]
    assert (first.action.kind, first.action.exit_code) == (ActionKind.RUN_RECOVERY_SCRIPT, 42)
    assert first.would_allow == 'policy.allow = ["run_recovery_script"]'
    assert not (tmp_path / "uses").exists()
    await _approve(question)
    assert (await guarding).message == "succeeded, recovered 1 time"


async def _asked(job: Job) -> ApprovalRequest | None:
    async with await Ledger.open() as ledger:
        found = await ledger.open_requests(job.key)
    return found[0] if found else None


async def _approve(question: ApprovalRequest) -> None:
    assert question.incarnation is not None
    answer = ApprovalAnswer(request=question.id, answer=Answer.APPROVE, by="tess", via="cli", at=time.time())
    async with await Ledger.open() as ledger:
        assert (await ledger.answer(answer, question.incarnation.token, time.time())).accepted


async def test_a_rules_file_that_cannot_be_used_is_named_before_anything_is_guarded(tmp_path: Path) -> None:
    job = await start(tmp_path)
    file = tmp_path / "handlers.yaml"
    file.write_text("failure_handlers: [{name: a, rules: [{exit_codes: [0], recovery_script: x}]}]")
    state = await guarded(job, file)
    assert state.name == "Refused"
    assert "0 is success" in state.message
