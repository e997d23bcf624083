"""The adapter of a simulated cluster: thousands of jobs with logs, progress, nodes and faults by seed."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import ClassVar

from trainguard.core.action import Access, Action, ActionKind, Fence, Outcome, OutcomeStatus
from trainguard.core.checkpoint import Checkpoint
from trainguard.core.errors import (
    AccessRefusedError,
    ConfigError,
    NotFoundError,
    RefusedError,
    UnreachableError,
)
from trainguard.core.evidence import Evidence, EvidenceKind
from trainguard.core.job import Incarnation, Job, JobRef
from trainguard.core.observation import Liveness, LogBatch, LogChunk, LogSource, Observation, Utilisation
from trainguard.schedulers.base import Scheduler
from trainguard.testing import simulated_log
from trainguard.testing.simulated_cluster import (
    CLUSTERS,
    Fault,
    FaultKind,
    Run,
    SimulatedCluster,
    SimulatedJob,
)

CHECKPOINT_FOLDER = "/checkpoints"
TAIL_STEPS = 50
TAIL_BYTES = 1_000_000


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
        self._closed = False

    async def validate(self, job: Job) -> Access:
        """Everything is allowed that the adapter can do."""
        await self._ask()
        known = self._known(job)
        return Access(job_seen=True, logs_readable=known.log_readable, possible=self.supports)

    async def observe(self, jobs: Sequence[Job]) -> Mapping[JobRef, Observation]:
        """Compute where each job is."""
        await self._ask()
        self._cluster.queries += 1
        return {job.ref: self._observation(job) for job in jobs}

    def _observation(self, job: Job) -> Observation:
        now = self._cluster.clock()
        if job.ref.id not in self._cluster.jobs:
            return Observation(job=job.ref, at=now, source="simulated", liveness=Liveness.GONE)
        known = self._cluster.settled(job.ref.id)
        run = known.run
        age = self._silence(known, run) if run.ended is None else None
        return Observation(
            job=job.ref,
            at=now,
            source="simulated",
            liveness=_liveness(known, run, now),
            native=_native(known, run),
            reason=f"{known.word} is no state known here" if known.word else "",
            incarnation=_incarnation(job.ref, known, run),
            exit_code=run.exit_code,
            ended_at=run.ended,
            nodes=run.nodes,
            bad_nodes=tuple(node for node in run.nodes if node in self._cluster.bad_nodes),
            heartbeat_age=age,
            log_age=age,
            utilisation=self._utilisation(known, run),
            restart_underway=run.restart_underway,
        )

    def _silence(self, job: SimulatedJob, run: Run) -> float:
        """Seconds since the last step."""
        since = run.began + (self._cluster.step(job, run) - run.from_step) * job.step_seconds
        return max(0.0, self._cluster.clock() - since)

    def _utilisation(self, job: SimulatedJob, run: Run) -> Utilisation:
        hung = self._hangs(job, run)
        return Utilisation(
            gpu_percent=(0.0 if hung else 95.0,) if run.ended is None else None,
            cpu_percent=0.0 if hung else 100.0,
            memory_bytes=2**30,
        )

    def _hangs(self, job: SimulatedJob, run: Run) -> bool:
        if run.ended is not None or run.fault is None or run.fault.kind is not FaultKind.HANG:
            return False
        return self._cluster.step(job, run) >= run.fault.at_step

    async def logs(self, job: Job, cursor: str = "", limit: int = 1_000_000) -> LogBatch:
        """Give the lines since the cursor."""
        await self._ask()
        self._cluster.log_reads += 1
        known = self._known(job)
        if not known.log_readable:
            raise AccessRefusedError(f"the log of {job.ref.id} may not be read")
        text, place, more = simulated_log.read(self._cluster, known, cursor, limit)
        chunk = LogChunk(source=self._log_of(job), text=text)
        return LogBatch(chunks=(chunk,) if text else (), cursor=place, more=more)

    async def collect(self, job: Job, observation: Observation) -> Sequence[Evidence]:
        """Give the log's tail."""
        del observation
        await self._ask()
        known, at = self._known(job), self._cluster.clock()
        if not known.log_readable:
            words, kind = f"the log of {job.ref.id} may not be read", EvidenceKind.STATUS
        else:
            words, kind = simulated_log.tail(self._cluster, known, TAIL_STEPS, TAIL_BYTES), EvidenceKind.LOG
        return [Evidence(source=self._log_of(job), kind=kind, text=words, at=at)]

    def _log_of(self, job: Job) -> LogSource:
        return LogSource(name=f"{job.ref.id}.log")

    async def checkpoints(self, job: Job) -> tuple[Checkpoint, ...] | None:
        """Every checkpoint ever written is good."""
        await self._ask()
        known = self._known(job)
        newest = self._cluster.newest_checkpoint(known)
        steps = [step for step in (newest, newest - known.checkpoint_every) if step > 0]
        return tuple(Checkpoint(path=f"{CHECKPOINT_FOLDER}/step-{s}", step=s, good=True) for s in steps)

    async def _perform(self, job: Job, action: Action, fence: Fence) -> Outcome:
        await self._ask()
        known = self._known(job)
        if fence.token in known.marks:
            return known.marks[fence.token]
        _refuse(job, known, action)
        if action.kind is ActionKind.CANCEL:
            self._cluster.stop(job.ref.id)
        else:
            self._cluster.restart(known, action, fence.token)
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
        await self._ask()
        known = self._cluster.jobs.get(job.ref.id)
        return None if known is None else known.marks.get(fence.token)

    async def discover(self, selector: str) -> Sequence[JobRef]:
        """Every job whose id contains the selector; `*` is all of them."""
        if "=" in selector:
            raise ConfigError("selector", f"{selector!r} is none: give a part of an id, or *")
        await self._ask()
        self._cluster.queries += 1
        wanted = "" if selector == "*" else selector
        return [
            JobRef(scheduler=self.name, cluster=self.cluster, id=job)
            for job in self._cluster.jobs
            if wanted in job
        ]

    async def close(self) -> None:
        """Take no further question."""
        self._closed = True

    async def _ask(self) -> None:
        await asyncio.sleep(self._cluster.answer_seconds)
        if self._closed:
            raise RuntimeError(f"the adapter of {self.cluster} is closed")
        if not self._cluster.reachable:
            raise UnreachableError(f"{self.cluster} does not answer")

    def _known(self, job: Job) -> SimulatedJob:
        if job.ref.id not in self._cluster.jobs:
            raise NotFoundError(f"no job {job.ref.id} on {self.cluster}")
        return self._cluster.settled(job.ref.id)


def _refuse(job: Job, known: SimulatedJob, action: Action) -> None:
    run = known.run
    if run.liveness in {Liveness.STOPPED, Liveness.SUCCEEDED} or known.held:
        raise RefusedError("it is done, or its owner stopped or held it")
    if run.restart_underway:
        raise RefusedError("the cluster is bringing it back")
    if _incarnation(job.ref, known, run).token != action.incarnation.token:
        raise RefusedError("another incarnation is current")


def _liveness(job: SimulatedJob, run: Run, now: float) -> Liveness:
    if job.word:
        return Liveness.UNKNOWN
    return Liveness.PENDING if now < run.began else run.liveness


def _native(job: SimulatedJob, run: Run) -> str:
    return job.word or ("HELD" if job.held and run.ended is not None else run.native)


def _incarnation(ref: JobRef, job: SimulatedJob, run: Run) -> Incarnation:
    return Incarnation(
        job=ref,
        token=f"{job.id}.{job.serial}.{run.number}",
        attempt=run.number,
        native_id=job.id,
        started_at=run.began,
    )


__all__ = [
    "CLUSTERS",
    "Fault",
    "FaultKind",
    "Run",
    "SimulatedCluster",
    "SimulatedJob",
    "SimulatedScheduler",
]
