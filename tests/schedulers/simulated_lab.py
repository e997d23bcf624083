"""A simulated cluster under the contract suite: real time, jobs computed."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import ClassVar
from uuid import uuid4

from trainguard.core.job import CheckpointSpec, Job, JobRef, Resume, ResumeBy
from trainguard.core.observation import Liveness
from trainguard.testing.scheduler_lab import CRASH_LINE, Ability, Lab, Workload
from trainguard.testing.simulated import SimulatedCluster, SimulatedJob, SimulatedScheduler

_SETTINGS: Mapping[Workload, Mapping[str, object]] = {
    Workload.HEALTHY: {"total": 100_000, "step_seconds": 0.05},
    Workload.QUIET: {"total": 100_000, "step_seconds": 0.05, "print_steps": False},
    Workload.CRASHING: {"total": 100_000},
    Workload.FINISHING: {"total": 1, "step_seconds": 0.02},
}


class SimulatedLab(Lab):
    """Drives the cluster's own side; the adapter is never asked."""

    lacks: ClassVar[Mapping[Ability, str]] = {
        Ability.ROTATE_LOG: "a simulated log is one stream, not files",
    }
    resume_ways: ClassVar[frozenset[ResumeBy]] = frozenset(ResumeBy) - {ResumeBy.NOTHING}
    settle: ClassVar[float] = 0.02
    tick: ClassVar[float] = 0.01
    patience: ClassVar[float] = 5.0

    def __init__(self) -> None:
        self.cluster = SimulatedCluster(f"contract-{uuid4().hex[:8]}")
        self._scheduler = SimulatedScheduler(self.cluster.name)

    @property
    def scheduler(self) -> SimulatedScheduler:
        return self._scheduler

    def twin(self) -> SimulatedScheduler:
        return SimulatedScheduler(self.cluster.name)

    async def start(self, workload: Workload, resume: Resume | None = None) -> Job:
        native = SimulatedJob(id=f"{workload}-{uuid4().hex[:8]}", **_SETTINGS[workload])  # type: ignore[arg-type]
        ref = self.cluster.start(native)
        if workload is Workload.CRASHING:
            native.run.write(f"{CRASH_LINE}\n".encode())
            self.cluster.crash(native.id, exit_code=3)
        checkpoints = CheckpointSpec(directory="/checkpoints", resume=resume) if resume else None
        return Job(ref=ref, name=native.id, checkpoints=checkpoints)

    def unheard_of(self) -> Job:
        ref = JobRef(scheduler="simulated", cluster=self.cluster.name, id=uuid4().hex)
        return Job(ref=ref, name="unheard of")

    def _job(self, job: Job) -> SimulatedJob:
        return self.cluster.settled(job.ref.id)

    async def crash(self, job: Job) -> None:
        self.cluster.crash(job.ref.id)

    async def stop_by_owner(self, job: Job) -> None:
        self.cluster.stop(job.ref.id)

    async def append_log(self, job: Job, data: bytes) -> None:
        self._job(job).run.write(data)

    async def starts(self, job: Job) -> int:
        return self.cluster.starts[job.ref.id]

    async def alive(self, job: Job) -> int:
        runs = self._job(job).runs
        return sum(run.ended is None and run.liveness is Liveness.RUNNING for run in runs)

    async def resumed_from(self, job: Job) -> str | None:
        return self._job(job).run.told

    @asynccontextmanager
    async def unreachable(self) -> AsyncIterator[None]:
        self.cluster.reachable = False
        try:
            yield
        finally:
            self.cluster.reachable = True

    @asynccontextmanager
    async def answers_lost(self) -> AsyncIterator[None]:
        self.cluster.lose_answers = True
        try:
            yield
        finally:
            self.cluster.lose_answers = False

    async def say(self, job: Job, word: str) -> None:
        self._job(job).word = word

    async def recreate(self, job: Job) -> None:
        self.cluster.start(SimulatedJob(id=job.ref.id, total=100_000, step_seconds=0.05))

    async def begin_own_restart(self, job: Job) -> None:
        self.cluster.begin_own_restart(job.ref.id)

    async def hold_by_owner(self, job: Job) -> None:
        self._job(job).held = True

    async def truncate_log(self, job: Job) -> None:
        self._job(job).run.truncate()

    async def make_log_unreadable(self, job: Job) -> None:
        self._job(job).log_readable = False
