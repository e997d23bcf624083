"""kill -9 at every step of an incident, on a real job under a real supervisor: nothing lost, nothing twice."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from uuid import UUID

import pytest
from prefect.client.orchestration import get_client
from prefect.flow_runs import aresume_flow_run

from tests.flows.simulation import until
from trainguard.core.decision import Answer, ApprovalAnswer, ApprovalRequest
from trainguard.core.incident import IncidentState
from trainguard.core.job import CheckpointSpec, Job, Resume, ResumeBy, Watching
from trainguard.ledger.ledger import Ledger
from trainguard.schedulers.local.starting import LocalJob, start_job

ALL = "TRAINGUARD_ALL_CRASH_POINTS" in os.environ
"""All points instead of one after each durable step: the worker's tests do the same in a fraction of the time."""

pytestmark = [pytest.mark.usefixtures("prefect_api"), pytest.mark.timeout(900)]
HERE = Path(__file__).parent
DIED = -signal.SIGKILL


class Trial:
    """One job that fails once, and guards that may die."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder = folder / name
        self.folder.mkdir()
        self.name = name
        self.points = self.folder / "points"
        self.ledger = f"sqlite:///{self.folder / 'ledger.db'}"

    async def start(self, steps: int = 300, fail_at: int = 95) -> Job:
        """Start the training under its supervisor."""
        command = (sys.executable, str(HERE / "training.py"), str(self.folder), str(steps), str(fail_at))
        config = LocalJob(
            command=command,
            name=self.name,
            state=self.folder / "job",
            checkpoints=CheckpointSpec(
                directory=str(self.folder / "checkpoints"),
                format="glob",
                glob="step-{step}.json",
                resume=Resume(by=ResumeBy.ARGUMENT, name="--resume"),
            ),
            watching=Watching(stall_after=10),
        )
        return await start_job(config)

    async def guard(self, point: int = 0, preset: str = "autonomous") -> asyncio.subprocess.Process:
        """Start a guard that dies after its write number `point`."""
        environment = {
            **os.environ,
            "TRAINGUARD_LEDGER_URL": self.ledger,
            "TRAINGUARD_TEST_POINTS": str(self.points),
        }
        return await asyncio.create_subprocess_exec(
            sys.executable,
            str(HERE / "crashing_guard.py"),
            str(self.folder / "job"),
            str(point),
            preset,
            env=environment,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )

    async def finish(self, preset: str = "autonomous") -> str:
        """Run a guard to its end; give what it says."""
        process = await self.guard(preset=preset)
        output, _ = await process.communicate()
        return output.decode()

    def starts(self) -> list[int]:
        """The step from which each attempt of the training really began."""
        return [int(line) for line in (self.folder / "starts").read_text().split()]

    async def check_end(self, said: str) -> None:
        """The job came back once, from its checkpoint, and finished; no run is left that looks alive."""
        assert "succeeded, recovered 1 time" in said, said
        assert self.starts() == [0, 90], (self.name, self.starts())
        async with await Ledger.open(self.ledger) as ledger:
            (job,) = await ledger.jobs()
            (incident,) = await ledger.incidents(job.key)
            assert incident.state is IncidentState.RECOVERED
            assert len([r for r in await ledger.intents(incident.id) if r.intent.action.kind.restarts]) == 1
            assert not await ledger.pending_intents(job.key)
        await self.check_no_zombies()

    async def check_no_zombies(self) -> None:
        """No flow run of this job still shows as running."""
        async with get_client() as client:
            for run in await client.read_flow_runs():
                if run.name == f"guard {self.name}":
                    assert run.state is not None and run.state.is_final(), (run.name, run.state)


async def test_a_guard_killed_after_any_write_of_an_incident_loses_and_repeats_nothing(
    tmp_path: Path,
) -> None:
    dry = Trial(tmp_path, "dry")
    await dry.start()
    await dry.check_end(await dry.finish())
    notes = dry.points.read_text().split("\n")
    closing = max(i for i, line in enumerate(notes) if "update_incident" in line)
    points: Sequence[int] = range(1, closing + 2)
    assert len(points) >= 10
    if not ALL:
        kinds = ("open_incident", "add_diagnosis", "write_intent", "write_outcome")
        points = sorted(max(i for i, line in enumerate(notes) if kind in line) + 1 for kind in kinds)
    slots = asyncio.Semaphore(2)

    async def trial(point: int) -> None:
        async with slots:
            one = Trial(tmp_path, f"point-{point}")
            await one.start()
            first = await one.guard(point)
            output, _ = await first.communicate()
            assert first.returncode == DIED, (point, output.decode())
            await one.check_end(await one.finish())

    await asyncio.gather(*(trial(point) for point in points))


async def _question(trial: Trial) -> ApprovalRequest:
    async def asked() -> ApprovalRequest | None:
        async with await Ledger.open(trial.ledger) as ledger:
            found = await ledger.open_requests()
        return found[0] if found else None

    return await until(asked, "a question", patience=240)


async def _paused(flow_run_id: str) -> bool | None:
    async with get_client() as client:
        state = (await client.read_flow_run(UUID(flow_run_id))).state
    return True if state is not None and state.is_paused() else None


async def _killed_while_paused(trial: Trial) -> ApprovalRequest:
    await trial.start()
    guarding = await trial.guard(preset="assist")
    question = await _question(trial)
    await until(lambda: _paused(question.flow_run_id), "the pause")
    guarding.kill()
    await guarding.communicate()
    return question


async def test_an_answer_given_in_the_ui_to_a_dead_guard_is_honoured_once(tmp_path: Path) -> None:
    trial = Trial(tmp_path, "paused-ui")
    question = await _killed_while_paused(trial)
    form = {"decision": "approve", "decided_by": "uma"}
    await aresume_flow_run(UUID(question.flow_run_id), run_input=form)
    await trial.check_end(await trial.finish("assist"))
    async with await Ledger.open(trial.ledger) as ledger:
        answer = await ledger.answer_of(question.id)
    assert answer is not None and (answer.by, answer.via) == ("uma", "ui")


async def test_an_answer_given_on_the_command_line_to_a_dead_guard_is_honoured_once(tmp_path: Path) -> None:
    trial = Trial(tmp_path, "paused-cli")
    question = await _killed_while_paused(trial)
    token = question.incarnation.token if question.incarnation else None
    async with await Ledger.open(trial.ledger) as ledger:
        given = ApprovalAnswer(
            request=question.id, answer=Answer.APPROVE, by="tess", via="cli", at=time.time()
        )
        assert (await ledger.answer(given, token, time.time())).accepted
    await trial.check_end(await trial.finish("assist"))


async def test_a_question_of_a_dead_guard_is_asked_again_by_the_next(tmp_path: Path) -> None:
    trial = Trial(tmp_path, "paused-again")
    before = await _killed_while_paused(trial)
    guarding = await trial.guard(preset="assist")

    async def asked_again() -> ApprovalRequest | None:
        question = await _question(trial)
        return question if question.flow_run_id != before.flow_run_id else None

    question = await until(asked_again, "the question asked again")
    assert question.deadline == before.deadline
    await until(lambda: _paused(question.flow_run_id), "the pause")
    await aresume_flow_run(UUID(question.flow_run_id), run_input={"decision": "approve", "decided_by": "uma"})
    output, _ = await guarding.communicate()
    await trial.check_end(output.decode())


async def test_a_guard_killed_while_it_only_watches_is_followed_by_one_that_goes_on(tmp_path: Path) -> None:
    trial = Trial(tmp_path, "watching")
    job = await trial.start(fail_at=250)

    async def watched() -> bool | None:
        async with await Ledger.open(trial.ledger) as ledger:
            seen = await ledger.latest_observation(job.key)
        return True if seen is not None and seen.progress is not None else None

    guarding = await trial.guard()
    await until(watched, "a first observation")
    guarding.kill()
    await guarding.communicate()
    said = await trial.finish()
    assert "succeeded, recovered 1 time" in said, said
    assert trial.starts() == [0, 250]
