"""kill -9 of the worker between any two durable writes: the next worker goes on, nothing lost, nothing twice.

Real jobs under their supervisors, a real Prefect server, a real worker process each time. All points one by
one where TRAINGUARD_ALL_CRASH_POINTS=1, else one point of each kind.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from pathlib import Path
from uuid import UUID

import pytest
from prefect.flow_runs import aresume_flow_run
from prefect.input.actions import aread_flow_run_input
from prefect.input.run_input import keyset_from_base_key

from tests.flows.simulation import until
from tests.flows.test_survival import Trial
from tests.worker.pool import Pool, children_of, run_of, state_of
from trainguard.blocks.local_host import LocalHost
from trainguard.core.cadence import Cadence
from trainguard.core.decision import ApprovalRequest
from trainguard.core.incident import IncidentState
from trainguard.core.policy import Policy, Preset
from trainguard.flows.guard import guard
from trainguard.ledger.ledger import Ledger

pytestmark = [pytest.mark.usefixtures("prefect_api"), pytest.mark.timeout(7200)]

ROOT = Path(__file__).parents[2]
DIED = -signal.SIGKILL
LAST_WRITES = 5.0
"""Seconds in which a worker still writes after the state of a run is final."""
ALL = int(os.environ.get("TRAINGUARD_ALL_CRASH_POINTS", "0"))
"""From which point on to try all; 0 for one of each kind."""
QUICK = Cadence(settle=1, young=(1, 2), steady=2, uncertain=1, least=0.1)


class Nursery:
    """A process that forks workers; one at a time."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def start(self, case: Case, point: int = 0) -> int:
        """Start a worker that dies after its write number `point`; give its pid."""
        wanted = {
            "pool": case.pool.name,
            "point": point,
            "notes": str(case.trial.points),
            "environment": {"TRAINGUARD_LEDGER_URL": case.trial.ledger},
        }
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(wanted).encode() + b"\n")
        return int(await self._line())

    async def ended(self) -> int:
        """Wait until the worker has ended; give its exit status."""
        return int(await self._line())

    async def _line(self) -> bytes:
        assert self._process.stdout is not None
        line = await self._process.stdout.readline()
        assert line, "the nursery has ended"
        return line


@asynccontextmanager
async def nursery(log: Path) -> AsyncIterator[Nursery]:
    environment = {**os.environ, "PREFECT_WORKER_QUERY_SECONDS": "0.5"}
    with log.open("wb") as errors:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "tests.worker.nursery", cwd=ROOT, env=environment,
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=errors,
        )  # fmt: skip
        try:
            yield Nursery(process)
        finally:
            assert process.stdin is not None
            process.stdin.close()
            await process.wait()


class Case:
    """One job that fails once, its guard's flow run, and the pool it is served from."""

    def __init__(self, folder: Path, name: str) -> None:
        self.trial = Trial(folder, name)
        self.pool = Pool()
        self.run: UUID | None = None

    async def begin(self, preset: Preset = Preset.AUTONOMOUS) -> Case:
        job = await self.trial.start(steps=140, fail_at=45)
        await self.pool.create()
        block = LocalHost()
        await block.save("this-machine", overwrite=True)
        self.run = await self.pool.schedule(
            guard,
            {"job": job, "cluster": "trainguard-local-host/this-machine",
             "policy": Policy(preset=preset), "cadence": QUICK},
        )  # fmt: skip
        return self

    async def finished(self, patience: float = 120) -> str:
        """Wait for the guard's last word."""

        async def final() -> str | None:
            assert self.run is not None
            state = await state_of(self.run)
            return f"{state.name}: {state.message}" if state.is_final() else None

        return await until(final, f"the end of {self.trial.name}", patience)

    async def check(self, said: str) -> None:
        """The job came back once, from its checkpoint; one page tells it; nothing looks alive."""
        assert said == "Completed: succeeded, recovered 1 time", (self.trial.name, said)
        assert self.trial.starts() == [0, 40], (self.trial.name, self.trial.starts())
        async with await Ledger.open(self.trial.ledger) as ledger:
            (job,) = await ledger.jobs()
            (incident,) = await ledger.incidents(job.key)
            assert incident.state is IncidentState.RECOVERED
            assert len([r for r in await ledger.intents(incident.id) if r.intent.action.kind.restarts]) == 1
            assert not await ledger.pending_intents(job.key)
            assert not await ledger.open_requests(job.key)
        assert self.run is not None
        for run in [await run_of(self.run), *await children_of(self.run)]:
            assert run.state is not None and run.state.is_final(), (self.trial.name, run.name, run.state)

    async def survive(self, workers: Nursery, *points: int) -> None:
        """Kill a worker at each point in turn; the last one brings it to its end."""
        for point in points:
            pid = await workers.start(self, point)
            ended, finished = asyncio.create_task(workers.ended()), asyncio.create_task(self.finished())
            await asyncio.wait({ended, finished}, return_when=asyncio.FIRST_COMPLETED)
            await asyncio.wait({ended}, timeout=LAST_WRITES)
            if not ended.done():  # this run made fewer writes than the one that was counted
                assert ALL, (self.trial.name, point, "was not reached")
                await self._end(pid, await finished, ended)
                return
            finished.cancel()
            assert ended.result() == DIED, (self.trial.name, point)
        pid = await workers.start(self)
        await self._end(pid, await self.finished(), workers.ended())

    async def _end(self, pid: int, said: str, ended: Awaitable[int]) -> None:
        """Stop the worker that brought it to its end."""
        os.kill(pid, signal.SIGTERM)
        assert await ended == 0
        await self.check(said)


def _chosen(notes: list[str]) -> list[int]:
    """All points, or the last of each kind before the incident was closed: later ones are nearer the deed."""
    names = [line.split()[1] for line in notes if line]
    closing = max(i for i, name in enumerate(names) if name == "update_incident")
    if ALL:
        return list(range(ALL, len(names) + 1))
    kinds = ("open_incident", "write_intent", "perform")
    return [closing - names[: closing + 1][::-1].index(kind) + 1 for kind in kinds]


async def test_a_worker_killed_after_any_write_is_followed_by_one_that_loses_and_repeats_nothing(
    tmp_path: Path,
) -> None:
    async with nursery(tmp_path / "first.log") as first, nursery(tmp_path / "second.log") as second:
        dry = await Case(tmp_path, "dry").begin()
        await dry.survive(first)
        points = _chosen(dry.trial.points.read_text().split("\n"))
        assert len(points) >= 3
        queue = list(reversed(points))
        failed: list[str] = []

        async def work(workers: Nursery) -> None:
            while queue:
                point = queue.pop()
                try:
                    await (await Case(tmp_path, f"point-{point}").begin()).survive(workers, point)
                except AssertionError as problem:
                    failed.append(f"{point}: {problem}")

        await asyncio.gather(work(first), work(second))
    assert not failed, "\n".join(failed)


async def test_a_worker_killed_while_it_adopts_leaves_the_orphan_to_the_next(tmp_path: Path) -> None:
    async with nursery(tmp_path / "workers.log") as workers:
        for point in range(1, 8) if ALL else (2,):
            case = await Case(tmp_path, f"adopting-{point}").begin()
            opened = await _killed_with_an_incident(case, workers)
            assert opened
            await case.survive(workers, point)


async def _killed_with_an_incident(case: Case, workers: Nursery) -> bool:
    pid = await workers.start(case)

    async def open_incident() -> bool | None:
        async with await Ledger.open(case.trial.ledger) as ledger:
            return True if [i for j in await ledger.jobs() for i in await ledger.incidents(j.key)] else None

    await until(open_incident, "an incident")
    os.kill(pid, signal.SIGKILL)
    return await workers.ended() == DIED


async def test_an_approval_given_while_no_worker_lives_is_honoured_once_by_the_next(tmp_path: Path) -> None:
    case = await Case(tmp_path, "paused").begin(Preset.ASSIST)
    async with nursery(tmp_path / "workers.log") as workers:
        pid = await workers.start(case)

        async def asked() -> ApprovalRequest | None:
            async with await Ledger.open(case.trial.ledger) as ledger:
                found = await ledger.open_requests()
            return found[0] if found else None

        question = await until(asked, "a question")
        await until(lambda: _has_its_form(question), "the form")
        os.kill(pid, signal.SIGKILL)
        assert await workers.ended() == DIED
        answer = {"decision": "approve", "decided_by": "uma"}
        await aresume_flow_run(UUID(question.flow_run_id), run_input=answer)
        await case.survive(workers)


async def _has_its_form(question: ApprovalRequest) -> bool | None:
    """Prefect shows the pause a moment before its form can be filled in."""
    run = UUID(question.flow_run_id)
    if not (await state_of(run)).is_paused():
        return None
    schema = keyset_from_base_key(f"paused-{question.keyset}")["schema"]
    return await aread_flow_run_input(schema, flow_run_id=run) is not None or None
