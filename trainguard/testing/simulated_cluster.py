"""The cluster's side of the simulation: jobs, incarnations, nodes and faults under any clock.

Nothing runs: what a job has done is computed from when its incarnations began, so that weeks pass in
seconds under a virtual clock and a thousand jobs cost what is asked about them.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from trainguard.core.action import Action, Outcome
from trainguard.core.job import JobRef
from trainguard.core.observation import Liveness


class FaultKind(StrEnum):
    """What may happen to a simulated job."""

    NCCL = "nccl"
    GPU_LOST = "gpu_lost"
    HOST_OOM = "host_oom"
    CODE_BUG = "code_bug"
    HANG = "hang"
    NAN = "nan"
    NODE_DOWN = "node_down"


SILENT = frozenset({FaultKind.HANG, FaultKind.NAN})
"""Faults after which the scheduler still says that the job runs."""

LAST_WORDS: Mapping[FaultKind, tuple[str, ...]] = {
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
    FaultKind.NODE_DOWN: ("srun: error: Node failure on {node}",),
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
    """When it runs; before that it is pending."""
    from_step: int = 0
    nodes: tuple[str, ...] = ()
    told: str | None = None
    fault: Fault | None = None
    ended: float | None = None
    liveness: Liveness = Liveness.RUNNING
    native: str = "RUNNING"
    exit_code: int | None = None
    restart_underway: bool = False
    written: bytearray = field(default_factory=bytearray)
    """What it wrote beside its steps; they come before it in the log."""
    dropped: int = 0
    """Bytes of `written` that a truncation took away."""

    def write(self, data: bytes) -> None:
        """Add to the log."""
        self.written += data

    def truncate(self) -> None:
        """Take away what was written so far."""
        self.dropped += len(self.written)
        self.written.clear()


@dataclass
class SimulatedJob:
    """One job and all its incarnations."""

    id: str
    total: int = 1_000_000
    step_seconds: float = 1.0
    checkpoint_every: int = 100
    print_steps: bool = True
    queue_seconds: float = 0.0
    faults: tuple[Fault, ...] = ()
    runs: list[Run] = field(default_factory=list)
    nodes: tuple[str, ...] = ("sim-node-1", "sim-node-2")
    held: bool = False
    word: str = ""
    """What the scheduler says instead of the job's state."""
    log_readable: bool = True
    serial: int = 0
    met: dict[int, int] = field(default_factory=dict)
    """How many incarnations met which fault, by its index."""
    marks: dict[str, Outcome] = field(default_factory=dict)
    """Fences of actions that happened."""

    @property
    def run(self) -> Run:
        """The newest incarnation."""
        return self.runs[-1]


class SimulatedCluster:
    """The cluster's side. All times come from `clock`.

    `journal` is a file to which every start, end and action goes as a line of JSON with its true time,
    so that a measurement can compare what happened with what a guard saw and did.
    """

    def __init__(
        self,
        name: str,
        *,
        seed: int = 0,
        clock: Callable[[], float] = time.time,
        journal: Path | None = None,
    ) -> None:
        self.name = name
        self.clock = clock
        self.random = random.Random(seed)  # noqa: S311 - a simulation wants to repeat itself
        self.journal = journal
        self.jobs: dict[str, SimulatedJob] = {}
        self.bad_nodes: set[str] = set()
        self.reachable = True
        self.lose_answers = False
        self.answer_seconds = 0.0
        """Real seconds that every answer takes."""
        self.queries = 0
        """Questions to the scheduler: their number must not grow with the number of jobs."""
        self.log_reads = 0
        self.starts: dict[str, int] = {}
        self._spares = 0
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

    def crash(self, job_id: str, kind: FaultKind | None = None, exit_code: int = 1) -> None:
        """Make the running incarnation fail now."""
        job = self.settled(job_id)
        if kind is not None:
            job.run.write(_words(kind, job.run))
        self._end(job, Liveness.FAILED, "FAILED", exit_code)

    def begin_own_restart(self, job_id: str) -> None:
        """Fail a job that the cluster brings back by itself, and leave it at the moment before it does."""
        job = self.settled(job_id)
        self._end(job, Liveness.FAILED, "REQUEUED", 1)
        job.run.restart_underway = True

    def restart(self, job: SimulatedJob, action: Action, fence: str = "") -> Run:
        """Begin the next incarnation where `action` says, on nodes that are not bad."""
        avoided = self.bad_nodes.union(action.nodes)
        nodes = tuple(node for node in job.run.nodes if node not in avoided)
        spares = tuple(self._spare() for _ in range(len(job.run.nodes) - len(nodes)))
        if job.run.liveness is Liveness.RUNNING:
            self._end(job, Liveness.STOPPED, "CANCELLED", None)
        step = action.checkpoint_step if action.checkpoint_step is not None else self.newest_checkpoint(job)
        self.note("restart", job, fence=fence, kind=action.kind.value)
        return self._begin(job, step, action.checkpoint or None, (*nodes, *spares))

    def settled(self, job_id: str) -> SimulatedJob:
        """Give a job as it is now: what was to happen until now has happened."""
        job = self.jobs[job_id]
        run = job.run
        if run.ended is not None:
            return job
        step = self.step(job, run)
        if run.fault is not None and step >= run.fault.at_step and run.fault.kind not in SILENT:
            self._meet(job, run)
        elif step >= job.total:
            ended = run.began + (job.total - run.from_step) * job.step_seconds
            self._end(job, Liveness.SUCCEEDED, "COMPLETED", 0, ended)
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

    def note(self, event: str, job: SimulatedJob, at: float | None = None, **more: object) -> None:
        """Write what really happened into the journal."""
        if self.journal is None:
            return
        line = {
            "at": self.clock() if at is None else at,
            "event": event,
            "job": job.id,
            "run": len(job.runs),
            **more,
        }
        with self.journal.open("a") as journal:
            journal.write(json.dumps(line) + "\n")

    def _begin(self, job: SimulatedJob, step: int, told: str | None, nodes: tuple[str, ...]) -> Run:
        waiting = [
            (i, f) for i, f in enumerate(job.faults) if f.at_step > step and job.met.get(i, 0) < f.times
        ]
        began = self.clock() + job.queue_seconds
        run = Run(number=len(job.runs) + 1, began=began, from_step=step, nodes=nodes, told=told)
        if waiting:
            index, run.fault = min(waiting, key=lambda item: item[1].at_step)
            job.met[index] = job.met.get(index, 0) + 1
        job.runs.append(run)
        self.starts[job.id] = self.starts.get(job.id, 0) + 1
        self.note("started", job, began)
        return run

    def _spare(self) -> str:
        self._spares += 1
        return f"sim-spare-{self._spares}"

    def _meet(self, job: SimulatedJob, run: Run) -> None:
        assert run.fault is not None
        run.write(_words(run.fault.kind, run))
        down = run.fault.kind is FaultKind.NODE_DOWN
        if down:
            self.bad_nodes.update(run.nodes[:1])
        ended = run.began + (run.fault.at_step - run.from_step) * job.step_seconds
        self._end(job, Liveness.FAILED, "NODE_FAIL" if down else "FAILED", 1, ended)

    def _end(
        self, job: SimulatedJob, liveness: Liveness, native: str, code: int | None, at: float | None = None
    ) -> None:
        run = job.run
        if run.ended is not None:
            return
        run.ended = self.clock() if at is None else at
        run.liveness, run.native, run.exit_code = liveness, native, code
        fault = run.fault.kind.value if run.fault is not None and liveness is Liveness.FAILED else ""
        self.note(liveness.value, job, run.ended, fault=fault)


def _words(kind: FaultKind, run: Run) -> bytes:
    lines = "".join(f"{line}\n" for line in LAST_WORDS.get(kind, ()))
    return lines.replace("{node}", run.nodes[0] if run.nodes else "").encode()


CLUSTERS: dict[str, SimulatedCluster] = {}
"""Clusters by name: how an adapter finds the one it is for."""
