"""The form of a diagnosis: what failed, shown by which lines, and what fits."""

from __future__ import annotations

from enum import StrEnum

from trainguard.core.action import ActionKind
from trainguard.core.evidence import Citation
from trainguard.core.fact import Fact

CERTAIN_ENOUGH = 0.5
"""Confidence under which nothing destructive rests on a diagnosis, and no node is held to be at fault."""


class FaultClass(StrEnum):
    """Classes of root cause. Stable contract: stored, scored, written into policies."""

    HEALTHY = "healthy"
    UNKNOWN = "unknown"
    GPU_HARDWARE = "gpu_hardware"
    GPU_OOM = "gpu_oom"
    HOST_OOM = "host_oom"
    NCCL_COMM = "nccl_comm"
    NODE_FAILURE = "node_failure"
    STORAGE_IO = "storage_io"
    CHECKPOINT_CORRUPTION = "checkpoint_corruption"
    TIME_LIMIT = "time_limit"
    PREEMPTION = "preemption"
    SCHEDULING = "scheduling"
    IMAGE_ENV = "image_env"
    CONFIG_PERMISSION = "config_permission"
    DEPENDENCY = "dependency"
    CODE_BUG = "code_bug"
    DATA = "data"
    NUMERICAL = "numerical"
    NETWORK_EXTERNAL = "network_external"
    TPU_XLA = "tpu_xla"
    HANG_STALL = "hang_stall"


class SaidBy(StrEnum):
    """Who says so."""

    RULE = "rule"
    MODEL = "model"
    PERSON = "person"
    NOBODY = "nobody"


class Suspect(Fact):
    """A rank, a node or a device that the evidence points at."""

    rank: int | None = None
    node: str = ""
    device: str = ""
    """PCI address or GPU index."""
    why: Citation | None = None


class Finding(Fact):
    """One rule that matched, and where."""

    rule: str
    """Its id, such as GPU-079."""
    name: str
    fault: FaultClass
    citation: Citation
    count: int = 1
    """How often it matched over all streams."""
    why_not: str = ""
    """For runners-up and consequences: why it is not the root."""


class Diagnosis(Fact):
    """The root cause of one incident. Each claim cites its line; a claim without one is a hypothesis."""

    fault: FaultClass
    cause: str
    """One sentence for the owner."""
    rule: str = ""
    by: SaidBy = SaidBy.NOBODY
    confidence: float = 0.0
    """0 to 1; under 0.5 no destructive action rests on it."""
    transient: bool | None = None
    """Would an unchanged restart plausibly help?"""
    citations: tuple[Citation, ...] = ()
    """The root's line first."""
    suspects: tuple[Suspect, ...] = ()
    actions: tuple[ActionKind, ...] = ()
    """The ladder that fits, best first."""
    consequences: tuple[Finding, ...] = ()
    """What was set aside as following from the root."""
    runners_up: tuple[Finding, ...] = ()
    look_next: tuple[str, ...] = ()
    """What to look at where this is not certain."""
    fingerprint: str = ""
    """Equal for the same root cause of the same job: budgets are counted by it."""
    code_location: str = ""
    """`file.py:123` for errors of the owner's code."""
    model_opinion: str = ""
    """What the advisor said where it disagreed."""
