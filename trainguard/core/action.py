"""The closed vocabulary of what a guard can do, and what came of it."""

from __future__ import annotations

from enum import StrEnum

from pydantic import Field

from trainguard.core.fact import Fact
from trainguard.core.job import Incarnation


class Scope(StrEnum):
    """How far an action reaches."""

    NOTHING = "nothing"
    JOB = "job"
    WORKSPACE = "workspace"
    NODE = "node"
    CLUSTER = "cluster"
    MONEY = "money"


class ActionKind(StrEnum):
    """Every action there is. Stable contract: owners write these words into policies."""

    NONE = "none"
    WAIT_EXTERNAL = "wait_external"
    FIX_CODE_OR_CONFIG = "fix_code_or_config"

    RESTART = "restart"
    """A new incarnation from the newest good checkpoint, by the scheduler's own way."""
    RESTART_EXCLUDING_NODE = "restart_excluding_node"
    RESTART_WITH_MORE_MEMORY = "restart_with_more_memory"
    RESTART_FROM_EARLIER_CHECKPOINT = "restart_from_earlier_checkpoint"
    EXTEND_TIME_LIMIT = "extend_time_limit"
    """Restart with a longer time limit."""
    REDUCE_EVAL_SIZE = "reduce_eval_size"
    """Restart with the evaluation size reduced by the owner's declared override."""
    HOLD = "hold"
    RELEASE = "release"
    SUSPEND = "suspend"
    RESUME = "resume"
    CANCEL = "cancel"
    DELETE_POD = "delete_pod"

    SET_ASIDE_CHECKPOINT = "set_aside_checkpoint"
    FREE_DISK = "free_disk"
    INSTALL_DEPENDENCY = "install_dependency"
    RUN_RECOVERY_SCRIPT = "run_recovery_script"

    DRAIN_NODE = "drain_node"
    CORDON_NODE = "cordon_node"
    UNCORDON_NODE = "uncordon_node"
    REBOOT_NODE = "reboot_node"

    RESTART_CLUSTER = "restart_cluster"
    DESTROY_INSTANCE = "destroy_instance"

    @property
    def scope(self) -> Scope:
        """How far it reaches."""
        return _SCOPES.get(self, Scope.JOB)

    @property
    def restarts(self) -> bool:
        """Whether it replaces the job's incarnation by a new one."""
        return self in _RESTARTS

    @property
    def names_nodes(self) -> bool:
        """Whether it needs the nodes that it is about."""
        return self is ActionKind.RESTART_EXCLUDING_NODE or self.scope is Scope.NODE

    @property
    def advice(self) -> bool:
        """Whether it is said, never performed."""
        return self.scope is Scope.NOTHING


_SCOPES = {
    **dict.fromkeys(
        (ActionKind.NONE, ActionKind.WAIT_EXTERNAL, ActionKind.FIX_CODE_OR_CONFIG), Scope.NOTHING
    ),
    **dict.fromkeys(
        (
            ActionKind.SET_ASIDE_CHECKPOINT,
            ActionKind.FREE_DISK,
            ActionKind.INSTALL_DEPENDENCY,
            ActionKind.RUN_RECOVERY_SCRIPT,
        ),
        Scope.WORKSPACE,
    ),
    **dict.fromkeys(
        (
            ActionKind.DRAIN_NODE,
            ActionKind.CORDON_NODE,
            ActionKind.UNCORDON_NODE,
            ActionKind.REBOOT_NODE,
        ),
        Scope.NODE,
    ),
    ActionKind.RESTART_CLUSTER: Scope.CLUSTER,
    ActionKind.DESTROY_INSTANCE: Scope.MONEY,
}
_RESTARTS = frozenset(
    {
        ActionKind.RESTART,
        ActionKind.RESTART_EXCLUDING_NODE,
        ActionKind.RESTART_WITH_MORE_MEMORY,
        ActionKind.RESTART_FROM_EARLIER_CHECKPOINT,
        ActionKind.EXTEND_TIME_LIMIT,
        ActionKind.REDUCE_EVAL_SIZE,
    }
)


class Action(Fact):
    """One action with everything it needs. Nothing in it may come from the text of a log."""

    kind: ActionKind
    incarnation: Incarnation
    """The one it is meant for; the adapter refuses if another is current."""
    nodes: tuple[str, ...] = ()
    """Scheduler-known node names only."""
    memory_bytes: int | None = None
    time_limit: float | None = None
    checkpoint: str = ""
    """Path to resume from, or to set aside, as the checkpoint gate named it."""
    checkpoint_step: int | None = None
    package: str = ""
    script: str = ""
    """Absolute path of the owner's recovery script."""
    handler: str = ""
    """Which of the owner's exit-code handlers names the script: uses are counted by it."""
    exit_code: int | None = None
    """The exit code that the script is for."""
    note: str = ""
    """For people; never interpreted."""


class Fence(Fact):
    """What makes an action happen at most once."""

    token: str
    """`tg-<incident>-<n>`, characters [a-z0-9-], at most 48: stored where the action leaves its mark."""
    incident: str
    lease: int
    """The guard's fencing number when the intent was written."""


class OutcomeStatus(StrEnum):
    """What came of an action."""

    DONE = "done"
    REFUSED = "refused"
    """Nothing was changed."""
    UNKNOWN = "unknown"
    """The answer was lost: `find(fence)` must decide before anything else is done."""


class Outcome(Fact):
    """What came of one action."""

    fence: str
    status: OutcomeStatus
    at: float
    detail: str = ""
    incarnation: Incarnation | None = None
    """The new one, where the action made one and it is known."""
    stale: bool = False
    """Not tried: the job was no longer as it was diagnosed, so there was nothing to do any more."""


class Access(Fact):
    """What `validate` found: may we see the job, and what may we do to it?"""

    job_seen: bool
    logs_readable: bool
    possible: frozenset[ActionKind] = frozenset()
    impossible: dict[ActionKind, str] = Field(default_factory=dict)
    """Why not, and what would allow it (an RBAC rule, a Slurm AdminLevel)."""
    warnings: tuple[str, ...] = ()
