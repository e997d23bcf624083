"""What one source said about a job at one time."""

from __future__ import annotations

from enum import StrEnum

from trainguard.core.fact import AnyFloat, Fact
from trainguard.core.job import Incarnation, JobRef


class Liveness(StrEnum):
    """Three-valued truth and its terminal forms. Stable contract: stored in ledgers, do not rename."""

    PENDING = "pending"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    STOPPED = "stopped"
    """Ended by its owner, an operator or a policy: not a failure, never revived."""
    GONE = "gone"
    """The scheduler answered and no longer knows it. Not finished, not failed: gone."""
    UNKNOWN = "unknown"
    """The source could not be read. Never healthy, never failed."""

    @property
    def terminal(self) -> bool:
        """Whether this incarnation will not run again by itself."""
        return self in {Liveness.SUCCEEDED, Liveness.FAILED, Liveness.STOPPED}


class Progress(Fact):
    """How far the training is, read from its log or its heartbeat."""

    step: int
    total: int | None = None
    """The exact maximum. A rounded one (`5.16k`) is no maximum."""
    loss: AnyFloat | None = None
    """May be NaN or infinite: that is a signal."""
    step_seconds: float | None = None
    """Time of one step where the log or two steps tell it."""
    at: float | None = None

    def __str__(self) -> str:
        """`~4600/5155`, or `~4600/unknown`."""
        return f"~{self.step}/{'unknown' if self.total is None else self.total}"


def furthest(*told: Progress | None) -> Progress | None:
    """Give the progress that is furthest, of what several sources tell; the first of equals."""
    return max((one for one in told if one is not None), key=lambda one: one.step, default=None)


class Utilisation(Fact):
    """What the machine says of the job. None means it could not be read."""

    gpu_percent: tuple[float, ...] | None = None
    gpu_memory_percent: tuple[float, ...] | None = None
    cpu_percent: float | None = None
    """Of the whole process tree; 100 is one core."""
    memory_bytes: int | None = None


class Observation(Fact):
    """One look at one job. Fields that the source can't tell are None, never guessed."""

    job: JobRef
    at: float
    source: str
    """Who says so: `squeue`, `sacct`, `supervisor`, `watch`."""
    liveness: Liveness
    native: str = ""
    """The scheduler's own word (`NODE_FAIL`, `CrashLoopBackOff`), always kept."""
    reason: str = ""
    incarnation: Incarnation | None = None
    exit_code: int | None = None
    exit_signal: int | None = None
    oom_killed: bool | None = None
    ended_at: float | None = None
    """When the incarnation ended, where its scheduler says."""
    memory_limit: int | None = None
    """Bytes the job may use in the scheduler's own count (a node, a container, a process tree)."""
    time_limit: float | None = None
    """Seconds one incarnation may run."""
    nodes: tuple[str, ...] = ()
    bad_nodes: tuple[str, ...] = ()
    """Nodes of the job that the scheduler itself holds for down, drained or not ready."""
    progress: Progress | None = None
    heartbeat_age: float | None = None
    """Seconds since the training itself last showed life (its step, its own heartbeat file): never the
    age of what a supervisor or an agent writes of itself."""
    log_age: float | None = None
    """Seconds since its log last grew."""
    utilisation: Utilisation = Utilisation()
    restart_underway: bool = False
    """The scheduler is bringing the job back by itself (requeue, retries left): hands off."""
    stuck: str = ""
    """Why it will not move by itself though its state says pending or completing; empty if it will."""
    warning: str = ""
    """A fact worth telling that is not a failure (retries used, a pod restarted)."""
    fix: str = ""
    """The last cheap fix that the supervisor applied."""


class LogSource(Fact):
    """Where log text comes from. Equal sources are one stream."""

    name: str
    """Path, `pod/container`, journal unit: what a person would open."""
    kind: str = "log"
    """log, kernel, events, status, accounting."""
    rank: int | None = None
    node: str = ""


class LogChunk(Fact):
    """New text of one stream, whole lines where the stream allows it."""

    source: LogSource
    text: str
    first_line: int | None = None
    """Line number of the first line in the stream, from 1; None if the beginning was skipped."""
    skipped_bytes: int = 0
    """Bytes between the last chunk and this one that were left out (budget, rotation)."""


class LogBatch(Fact):
    """What is new since a cursor, over all streams of a job."""

    chunks: tuple[LogChunk, ...] = ()
    cursor: str = ""
    """Opaque; give it back to read on. Survives a restart of the guard."""
    more: bool = False
    """The limit was reached: ask again."""
