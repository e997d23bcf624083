"""What one guard holds while it watches its job, reached by the flows and tasks it runs."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from socket import gethostname
from typing import TYPE_CHECKING

from psutil import pid_exists

from trainguard.core.action import Access
from trainguard.core.health import Health
from trainguard.core.job import Job
from trainguard.core.observation import Liveness, Observation, Progress, furthest
from trainguard.core.policy import Policy
from trainguard.core.progress import Reading
from trainguard.core.signal import Signal
from trainguard.supervisor.supervisor import boot_id, start_of, stat_of
from trainguard.tasks.outbox import Outbox

if TYPE_CHECKING:
    from trainguard.advisors import Advisor
    from trainguard.blocks.language_model import LanguageModel
    from trainguard.blocks.notifier import NotifierBlock
    from trainguard.core.decision import Lease
    from trainguard.core.diagnosis import Catalogue
    from trainguard.core.handlers import FailureHandler
    from trainguard.ledger.ledger import Ledger
    from trainguard.schedulers.base import Scheduler
    from trainguard.schedulers.sharing import ClusterWatch


@dataclass
class GuardContext:
    """One guard's hold on its job. Everything durable in it is also in the ledger."""

    job: Job
    policy: Policy
    watch: ClusterWatch
    ledger: Ledger
    lease: Lease
    catalogue: Catalogue
    handlers: tuple[FailureHandler, ...] = ()
    """The owner's scripts by exit code."""
    notifiers: tuple[NotifierBlock, ...] = ()
    model: LanguageModel | None = None
    advisor: Advisor | None = None
    """Made when first asked; one for the guard, because its limits are counted in it."""
    flow_run_id: str = ""
    clock: Callable[[], float] = time.time

    access: Access = field(default_factory=lambda: Access(job_seen=False, logs_readable=False))
    observation: Observation | None = None
    looks: int = 0
    health: Health = field(default_factory=Health)
    reading: Reading = field(default_factory=Reading)
    cursor: str = ""
    log_read_at: float = 0.0
    log_read: asyncio.Task[None] | None = None
    """The latest read of the log, which may be under way."""
    started_at: float = 0.0
    """When the current incarnation was first seen: the cadence counts from it."""
    status: str = "Pending"
    checks: int = 0
    shown_at: float = 0.0
    shown_as: Liveness | None = None
    """When a check was last shown in Prefect, and in which state the job was then."""
    news: bool = False
    """The latest look ended the wait: the next check answers it, without waiting for another look."""
    unanswered: list[Signal] = field(default_factory=list)
    """Signals seen between checks, for the next check to answer."""
    gone_since: float | None = None
    until: float | None = None
    """When the guard's time is up, whatever it is doing."""
    cancel_asked_at: float = 0.0
    pages: dict[str, str] = field(default_factory=dict)
    """Artifact ids by what they show: `guard`, or an incident's id."""
    faults: dict[str, str] = field(default_factory=dict)
    """The classes of closed incidents, which their page lists and the ledger need not be asked for again."""
    untidy: bool = False
    """The end of a subflow run could not be shown: it looks alive."""
    not_shown: set[str] = field(default_factory=set)
    """Incidents whose report Prefect was not there for."""
    shown_status: str = ""
    """The status that Prefect shows; empty where that is not known."""
    changing_status: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held while the status is set: the ledger and Prefect get them in their order."""
    blind_since: float | None = None
    fenced: str = ""
    """Why this guard was stopped: another one owns the job."""
    unrecorded_since: float | None = None
    """Since when the ledger is away."""
    unrecorded_told: bool = False
    outbox: Outbox = field(default_factory=Outbox)
    subflows: set[asyncio.Task[None]] = field(default_factory=set)
    """Prefect's engines of this guard's subflows; one may outlive its steps while Prefect is away."""

    @property
    def tags(self) -> tuple[str, ...]:
        """What a person filters by in the UI: scheduler, project, job."""
        return tuple(
            dict.fromkeys(
                filter(None, ("trainguard", self.job.ref.scheduler, self.job.project, self.job.name))
            )
        )

    @property
    def progress(self) -> Progress | None:
        """How far the incarnation that is there is: by its log or by its heartbeat, whichever is further."""
        return furthest(self.reading.progress, self.observation.progress if self.observation else None)

    @property
    def step(self) -> int | None:
        """The step it has reached; None where nothing tells."""
        return self.progress.step if self.progress is not None else None

    @property
    def scheduler(self) -> Scheduler:
        """The adapter that the guards of this cluster share."""
        return self.watch.scheduler


_current: ContextVar[GuardContext] = ContextVar("trainguard_guard")


def current_guard() -> GuardContext:
    """Give the guard that the running flow belongs to. Raises LookupError outside one."""
    return _current.get()


@contextmanager
def guarding(context: GuardContext) -> Iterator[GuardContext]:
    """Make `context` the current guard for the flows and tasks called within."""
    token = _current.set(context)
    try:
        yield context
    finally:
        _current.reset(token)


_FIRST_PID_NAMESPACE = 0xEFFFFFFC
"""Inode of the machine's own process numbers (Linux: include/linux/proc_ns.h); containers have others."""


def _machine() -> str:
    """Name where this process' number is valid: this boot of a machine, in a container its own processes."""
    name = f"{gethostname()}/{boot_id()[:8]}"
    try:
        space = os.stat("/proc/self/ns/pid").st_ino  # noqa: PTH116
    except OSError:
        return name
    return name if space == _FIRST_PID_NAMESPACE else f"{name}/{space}"


def lease_holder(flow_run_id: str) -> str:
    """Name this guard so that another process on this machine can tell whether it still lives.

    A process is told by its number and its start in ticks since boot, which no change of the clock moves.
    """
    return f"{_machine()}:{os.getpid()}:{start_of(os.getpid()) or 0}:{flow_run_id}"


def holder_is_dead(holder: str) -> bool:
    """Whether a holder was a process of this machine that is gone. On doubt it lives."""
    host, _, rest = holder.partition(":")
    pid, _, rest = rest.partition(":")
    born = rest.partition(":")[0]
    if host != _machine() or not pid.isdigit() or not born.isdigit():
        return False
    now = start_of(int(pid))
    if now is not None:
        return now != int(born)
    # A zombie can be seen; a living process of another user may be hidden (hidepid).
    return stat_of(int(pid)) is not None or not pid_exists(int(pid))


def holder_flow_run(holder: str) -> str:
    """Give the flow run id in a holder's name."""
    return holder.rpartition(":")[2]
