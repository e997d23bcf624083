"""What the owner asked to have guarded."""

from __future__ import annotations

from enum import StrEnum
from typing import Any

from pydantic import Field, field_validator, model_validator

from trainguard.core.fact import Fact
from trainguard.core.pattern import compile_pattern


class JobRef(Fact):
    """A job as its scheduler names it. It survives restarts; its incarnations do not."""

    scheduler: str = ""
    """Adapter name: local, slurm or kubernetes. Empty: the one of the cluster's block."""
    cluster: str = ""
    """The cluster as its block names it; empty: that block's. One connection and one watcher serve all its jobs."""
    id: str
    """Native name: state folder, Slurm job id, `namespace/Kind/name` or, given to a guard, its manifest."""

    @property
    def key(self) -> str:
        """The one string by which the ledger, locks and logs know the job."""
        return f"{self.scheduler}/{self.cluster}/{self.id}"


class Incarnation(Fact):
    """One run of a job as the scheduler sees it. Every action names the one it is meant for."""

    job: JobRef
    token: str
    """Opaque and unique for ever: Slurm `id+submit time+restarts`, Kubernetes `uid`, local `attempt+boot`."""
    attempt: int = 1
    """Counted from 1, for people."""
    native_id: str = ""
    """What to type into the scheduler's own tools to see it."""
    started_at: float | None = None


class ResumeBy(StrEnum):
    """How the training command is told where to resume."""

    ARGUMENT = "argument"
    ENVIRONMENT = "environment"
    SYMLINK = "symlink"
    NOTHING = "nothing"
    """The training finds its newest checkpoint itself."""


class Resume(Fact):
    """How a restart is told which checkpoint to use."""

    by: ResumeBy = ResumeBy.NOTHING
    name: str = ""
    """The option (`--resume`), the variable (`RESUME_FROM`) or the link's path. Empty for `nothing`."""


class CheckpointSpec(Fact):
    """Where checkpoints are, as the job's own machine sees them."""

    directory: str
    """Their folder."""
    format: str = "auto"
    """auto, torch, safetensors, dcp, orbax, deepspeed, huggingface, numpy or glob."""
    glob: str = ""
    """Only for format `glob`; `{step}` stands where the step number is."""
    resume: Resume = Resume()


class Watching(Fact):
    """How the job's health is read. Defaults fit a job that logs at least once a minute."""

    stall_after: float = Field(default=0.0, ge=0)
    """Seconds without a heartbeat before a stall; 0 means 3 step times, at least 60 s."""
    idle_gpu_percent: float = Field(default=5.0, ge=0, le=100)
    """GPU utilisation under which a GPU counts as idle."""
    low_gpu_percent: float = Field(default=0.0, ge=0, le=100)
    """Utilisation under which a running job is reported; 0 switches it off."""
    collapse_ratio: float = Field(default=0.3, gt=0, lt=1)
    """Throughput under this share of the job's own baseline is a collapse."""
    pending_deadline: float = Field(default=0.0, ge=0)
    """Seconds a job may wait for resources before it is reported; 0 means for ever."""
    auto_stop_min_steps: int = Field(default=0, ge=0)
    """A clean exit below this step is an early stop that is questioned."""
    progress_pattern: str = ""
    """Own regular expression with the group `step` and, if it has them, `total` and `loss`."""
    recover_before_first_step: bool = False
    """Failures before the first step or checkpoint are reported, not recovered, unless this is set."""

    @field_validator("progress_pattern")
    @classmethod
    def _compiles(cls, pattern: str) -> str:
        """Refuse a bad pattern where it is loaded. Raises ConfigError."""
        if pattern:
            compile_pattern(pattern)
        return pattern


class Job(Fact):
    """One guarded training job."""

    ref: JobRef
    name: str = ""
    """What people call it; by default the last part of its native name."""
    project: str = ""
    """To find it by: a tag of its runs."""
    kind: str = "training"
    """What reports call it."""
    checkpoints: CheckpointSpec | None = None
    """Without it nothing is known to resume from."""
    watching: Watching = Watching()
    max_steps: int | None = None
    """The exact number of steps, where the owner knows it; never used to decide completion."""
    extra_logs: tuple[str, ...] = ()
    """Further log files on the job's machine (paths, no patterns)."""

    @model_validator(mode="before")
    @classmethod
    def _named(cls, given: Any) -> Any:
        if isinstance(given, dict) and not given.get("name") and given.get("ref"):
            ref = JobRef.model_validate(given["ref"])
            return {**given, "name": ref.id.rstrip("/").rpartition("/")[2].partition("\n")[0]}
        return given

    @property
    def key(self) -> str:
        """Shorthand for `ref.key`."""
        return self.ref.key
