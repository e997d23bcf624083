"""A simulated cluster: thousands of jobs with logs, progress, nodes and faults by seed, under any clock.

Nothing runs: what a job has done is computed from when its incarnations began, so that weeks pass in
seconds under a virtual clock and a thousand jobs cost what is asked about them. `SimulatedCluster` is the
cluster's side (it is what a test drives), `SimulatedScheduler` the adapter that a guard uses.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import ClassVar

from trainguard.core.action import Access, Action, ActionKind, Fence, Outcome, OutcomeStatus
from trainguard.core.checkpoint import Checkpoint
from trainguard.core.errors import NotFoundError, RefusedError, UnreachableError
from trainguard.core.evidence import Evidence, EvidenceKind
from trainguard.core.job import Incarnation, Job, JobRef
from trainguard.core.observation import (
    Liveness,
    LogBatch,
    LogChunk,
    LogSource,
    Observation,
    Utilisation,
)
from trainguard.schedulers.base import Scheduler

CHECKPOINT_FOLDER = "/checkpoints"


class FaultKind(StrEnum):
    """What may happen to a simulated job."""

    NCCL = "nccl"
    GPU_LOST = "gpu_lost"
    HOST_OOM = "host_oom"
    CODE_BUG = "code_bug"
    HANG = "hang"
    NAN = "nan"
    NODE_DOWN = "node_down"


_LAST_WORDS: Mapping[FaultKind, tuple[str, ...]] = {
    FaultKind.NCCL: (
        "[rank3]:[E1121 10:00:00.000000000 ProcessGroupNCCL.cpp:1895] [PG ID 0 PG GUID 0 Rank 3] "
        "Process group watchdog thread terminated with exception: NCCL error: remote process exited or "
        "there was a network error, NCCL version 2.21.5",
        "ncclRemoteError: A call failed possibly due to a network error or a remote process exiting prematurely.",
    ),
    FaultKind.GPU_LOST: (
        "NVRM: Xid (PCI:0000:3b:00): 79, pid=4242, name=python, GPU has fallen off the bus.",
        "RuntimeError: CUDA error: unspecified launch failure",
    ),
    FaultKind.HOST_OOM: (
        "slurmstepd: error: Detected 1 oom_kill event in StepId=1.0. Some of the step tasks have been OOM Killed.",
    ),
    FaultKind.CODE_BUG: (
        "Traceback (most recent call last):",
        '  File "/home/alice/train.py", line 120, in train_step',
        "    scale = schedule[step]",
        "KeyError: 120",
    ),
    FaultKind.NODE_DOWN: ("srun: error: Node failure on sim-node-1",),
}


@dataclass(frozen=True)
class Fault:
    """What happens once the job first reaches `at_step`; `times` incarnations meet it."""

    kind: FaultKind
    at_step: int
    times: int = 1


@dataclass
class Run:
    """One incarnation."""

    number: int
    began: float
    from_step: int = 0
    nodes: tuple[str, ...] = ()
    told: str | None = None
    fault: Fault | None = None
    ended: float | None = None
    liveness: Liveness = Liveness.RUNNING
    native: str = "RUNNING"
    exit_code: int | None = None


@dataclass
class SimulatedJob:
    """One job and all its incarnations."""

    id: str
    total: int = 1_000_000
    step_seconds: float = 1.0
    checkpoint_every: int = 100
    print_steps: bool = True
    faults: tuple[Fault, ...] = ()
    runs: list[Run] = field(default_factory=list)
    nodes: tuple[str, ...] = ("sim-node-1", "sim-node-2")
    held: bool = False
    serial: int = 0
    met: dict[int, int] = field(default_factory=dict)
    """How many incarnations met which fault, by its index."""
    marks: dict[str, Outcome] = field(default_factory=dict)
    """Fences of actions that happened."""
    extra_log: list[tuple[float, str]] = field(default_factory=list)

    @property
    def run(self) -> Run:
        """The newest incarnation."""
        return self.runs[-1]


class SimulatedCluster:
    """The cluster's side. All times come from `clock`."""

    def __init__(self, name: str, *, seed: int = 0, clock: Callable[[], float] = time.time) -> None:
        self.name = name
        self.clock = clock
        self.random = random.Random(seed)  # noqa: S311 - a simulation wants to repeat itself
        self.jobs: dict[str, SimulatedJob] = {}
        self.reachable = True
        self.lose_answers = False
        self.queries = 0
        self.starts: dict[str, int] = {}
        CLUSTERS[name] = self

    def start(self, job: SimulatedJob) -> JobRef:
        """Start a job; another of the same id is replaced, as a recreated name would be."""
        before = self.jobs.get(job.id)
        job.serial = before.serial + 1 if before else 0
        self.jobs[job.id] = job
        self._begin(job, 0, None, job.nodes)
        return JobRef(scheduler="simulated", cluster=self.name, id=job.id)

    def stop(self, job_id: str) -> None:
        """End a job as its owner does."""
        self._end(self.settled(job_id), Liveness.STOPPED, "CANCELLED", None)

    def crash(self, job_id: str, kind: FaultKind | None = None) -> None:
        """Make the running incarnation fail now."""
        job = self.settled(job_id)
        if kind is not None:
            job.extra_log += [(self.clock(), line) for line in _LAST_WORDS.get(kind, ())]
        self._end(job, Liveness.FAILED, "FAILED", 1)

    def restart(self, job: SimulatedJob, action: Action) -> Run:
        """Begin the next incarnation where `action` says."""
        nodes = tuple(node for node in job.nodes if node not in action.nodes)
        if job.run.liveness is Liveness.RUNNING:
            self._end(job, Liveness.STOPPED, "CANCELLED", None)
        step = action.checkpoint_step if action.checkpoint_step is not None else self.newest_checkpoint(job)
        return self._begin(
            job, step, action.checkpoint or None, (*nodes, *("sim-spare",) * len(action.nodes))
        )

    def settled(self, job_id: str) -> SimulatedJob:
        """Give a job as it is now: what was to happen until now has happened."""
        job = self.jobs[job_id]
        run = job.run
        if run.ended is not None:
            return job
        step = self.step(job, run)
        if run.fault is not None and step >= run.fault.at_step and run.fault.kind not in _SILENT:
            self._meet(job, run)
        elif step >= job.total:
            run.ended = run.began + (job.total - run.from_step) * job.step_seconds
            run.liveness, run.native, run.exit_code = Liveness.SUCCEEDED, "COMPLETED", 0
        return job

    def step(self, job: SimulatedJob, run: Run) -> int:
        """The step an incarnation has reached."""
        until = run.ended if run.ended is not None else self.clock()
        step = run.from_step + int(max(0.0, until - run.began) / job.step_seconds)
        if run.fault is not None and run.fault.kind is not FaultKind.NAN:
            step = min(step, run.fault.at_step)
        return min(step, job.total)

    def newest_checkpoint(self, job: SimulatedJob) -> int:
        """The step of the newest checkpoint any incarnation wrote."""
        reached = max(self.step(job, run) for run in job.runs)
        return reached // job.checkpoint_every * job.checkpoint_every

    def _begin(self, job: SimulatedJob, step: int, told: str | None, nodes: tuple[str, ...]) -> Run:
        waiting = [
            (i, f) for i, f in enumerate(job.faults) if f.at_step > step and job.met.get(i, 0) < f.times
        ]
        run = Run(number=len(job.runs) + 1, began=self.clock(), from_step=step, nodes=nodes, told=told)
        if waiting:
            index, run.fault = min(waiting, key=lambda item: item[1].at_step)
            job.met[index] = job.met.get(index, 0) + 1
        job.runs.append(run)
        self.starts[job.id] = self.starts.get(job.id, 0) + 1
        return run

    def _meet(self, job: SimulatedJob, run: Run) -> None:
        assert run.fault is not None
        run.ended = run.began + (run.fault.at_step - run.from_step) * job.step_seconds
        run.liveness, run.exit_code = Liveness.FAILED, 1
        run.native = "NODE_FAIL" if run.fault.kind is FaultKind.NODE_DOWN else "FAILED"
        job.extra_log += [(run.ended, line) for line in _LAST_WORDS.get(run.fault.kind, ())]

    def _end(self, job: SimulatedJob, liveness: Liveness, native: str, code: int | None) -> None:
        if job.run.ended is None:
            job.run.ended = self.clock()
            job.run.liveness, job.run.native, job.run.exit_code = liveness, native, code


_SILENT = {FaultKind.HANG, FaultKind.NAN}
CLUSTERS: dict[str, SimulatedCluster] = {}
"""Clusters by name: how an adapter finds the one it is for."""


class SimulatedScheduler(Scheduler):
    """The adapter of a simulated cluster."""

    name = "simulated"
    supports: ClassVar[frozenset[ActionKind]] = frozenset(
        {
            ActionKind.RESTART,
            ActionKind.RESTART_EXCLUDING_NODE,
            ActionKind.RESTART_WITH_MORE_MEMORY,
            ActionKind.RESTART_FROM_EARLIER_CHECKPOINT,
            ActionKind.CANCEL,
        }
    )
    poll_seconds = 1.0

    def __init__(self, cluster: str) -> None:
        super().__init__(cluster)
        self._cluster = CLUSTERS[cluster]

    async def validate(self, job: Job) -> Access:
        """Everything is allowed that the adapter can do."""
        self._ask()
        if job.ref.id not in self._cluster.jobs:
            raise NotFoundError(f"no job {job.ref.id} on {self.cluster}")
        return Access(job_seen=True, logs_readable=True, possible=self.supports)

    async def observe(self, jobs: Sequence[Job]) -> Mapping[JobRef, Observation]:
        """Compute where each job is."""
        self._ask()
        return {job.ref: self._observation(job) for job in jobs}

    def _observation(self, job: Job) -> Observation:
        now = self._cluster.clock()
        if job.ref.id not in self._cluster.jobs:
            return Observation(job=job.ref, at=now, source="simulated", liveness=Liveness.GONE)
        known = self._cluster.settled(job.ref.id)
        run = known.run
        hung = run.ended is None and run.fault is not None and self._hangs(known, run)
        age = now - (run.began + (self._cluster.step(known, run) - run.from_step) * known.step_seconds)
        return Observation(
            job=job.ref,
            at=now,
            source="simulated",
            liveness=run.liveness,
            native="HELD" if known.held and run.ended is not None else run.native,
            incarnation=_incarnation(job.ref, known, run),
            exit_code=run.exit_code,
            nodes=run.nodes,
            heartbeat_age=age if run.ended is None else None,
            log_age=age if run.ended is None else None,
            utilisation=Utilisation(
                gpu_percent=(0.0 if hung else 95.0,) if run.ended is None else None,
                cpu_percent=0.0 if hung else 100.0,
                memory_bytes=2**30,
            ),
        )

    def _hangs(self, job: SimulatedJob, run: Run) -> bool:
        assert run.fault is not None
        return run.fault.kind is FaultKind.HANG and self._cluster.step(job, run) >= run.fault.at_step

    async def logs(self, job: Job, cursor: str = "", limit: int = 1_000_000) -> LogBatch:
        """Give the lines since the cursor. A line is at most 100 bytes; old ones beyond `limit` are skipped."""
        self._ask()
        known = self._cluster.settled(job.ref.id)
        number, step, extra = (
            (int(part) for part in cursor.split(".")) if cursor else (known.run.number, -1, 0)
        )
        lines: list[str] = []
        room = max(1, limit // 100)
        for run in known.runs[number - 1 :]:
            if run.number != number:
                number, step = run.number, -1
            reached = self._cluster.step(known, run)
            first = max(step + 1, run.from_step, reached - room)
            if known.print_steps:
                lines += [_line(known, run, at) for at in range(first, reached + 1)]
            step = reached
        fresh = known.extra_log[extra:]
        lines += [text for _, text in fresh]
        text = "".join(f"{line}\n" for line in lines)
        chunk = LogChunk(source=LogSource(name=f"{job.ref.id}.log"), text=text)
        return LogBatch(chunks=(chunk,) if text else (), cursor=f"{number}.{step}.{extra + len(fresh)}")

    async def collect(self, job: Job, observation: Observation) -> Sequence[Evidence]:
        """Give the log's tail."""
        del observation
        self._ask()
        known = self._cluster.settled(job.ref.id)
        reached = self._cluster.step(known, known.run)
        steps = range(max(known.run.from_step, reached - 50), reached + 1)
        began = known.run.began
        lines = [_line(known, known.run, at) for at in steps]
        lines += [text for at, text in known.extra_log if at >= began]
        return [
            Evidence(
                source=LogSource(name=f"{job.ref.id}.log"),
                kind=EvidenceKind.LOG,
                text="\n".join(lines) + "\n",
                at=self._cluster.clock(),
            )
        ]

    async def checkpoints(self, job: Job) -> tuple[Checkpoint, ...] | None:
        """Every checkpoint ever written is good."""
        known = self._cluster.settled(job.ref.id)
        newest = self._cluster.newest_checkpoint(known)
        steps = [step for step in (newest, newest - known.checkpoint_every) if step > 0]
        return tuple(Checkpoint(path=f"{CHECKPOINT_FOLDER}/step-{s}", step=s, good=True) for s in steps)

    async def _perform(self, job: Job, action: Action, fence: Fence) -> Outcome:
        self._ask()
        known = self._cluster.settled(job.ref.id)
        if known.run.liveness is Liveness.STOPPED or known.held:
            raise RefusedError("its owner stopped or held it")
        if _incarnation(job.ref, known, known.run).token != action.incarnation.token:
            raise RefusedError("another incarnation is current")
        if action.kind is ActionKind.CANCEL:
            self._cluster.stop(job.ref.id)
        else:
            self._cluster.restart(known, action)
        outcome = Outcome(
            fence=fence.token,
            status=OutcomeStatus.DONE,
            at=self._cluster.clock(),
            incarnation=_incarnation(job.ref, known, known.run),
        )
        known.marks[fence.token] = outcome
        if self._cluster.lose_answers:
            return outcome.model_copy(update={"status": OutcomeStatus.UNKNOWN, "incarnation": None})
        return outcome

    async def find(self, job: Job, fence: Fence) -> Outcome | None:
        """Look for the mark an action left."""
        self._ask()
        known = self._cluster.jobs.get(job.ref.id)
        return None if known is None else known.marks.get(fence.token)

    async def discover(self, selector: str) -> Sequence[JobRef]:
        """Every job whose id contains the selector; `*` is all of them."""
        self._ask()
        wanted = "" if selector == "*" else selector
        return [
            JobRef(scheduler=self.name, cluster=self.cluster, id=job)
            for job in self._cluster.jobs
            if wanted in job
        ]

    def _ask(self) -> None:
        self._cluster.queries += 1
        if not self._cluster.reachable:
            raise UnreachableError(f"{self.cluster} does not answer")


def _incarnation(ref: JobRef, job: SimulatedJob, run: Run) -> Incarnation:
    return Incarnation(
        job=ref,
        token=f"{job.id}.{job.serial}.{run.number}",
        attempt=run.number,
        native_id=job.id,
        started_at=run.began,
    )


def _line(job: SimulatedJob, run: Run, step: int) -> str:
    bad = run.fault is not None and run.fault.kind is FaultKind.NAN and step >= run.fault.at_step
    loss = float("nan") if bad else 2.0 + 8.0 / (1 + step / 500)
    return f"step {step}/{job.total} loss {loss:.4f}"
