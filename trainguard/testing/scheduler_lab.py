"""The cluster under a contract test: a real or a faked one, driven by the test, watched by the adapter.

An adapter's test file writes one `Lab`, hands it out as the fixture `lab` and inherits
`trainguard.testing.scheduler_contract.SchedulerContract`. The lab is the cluster's side: it starts jobs,
breaks them and counts what really ran. It must never answer from the adapter that is being tested.
"""

from __future__ import annotations

import asyncio
import time
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from enum import StrEnum
from typing import ClassVar, TypeVar

import pytest

from trainguard.core.job import Job, Resume, ResumeBy
from trainguard.schedulers.base import Scheduler

T = TypeVar("T")

CRASH_LINE = "tgcrash: the injected failure"
"""What a crashing workload prints last."""
LINE_MARK = "tgline-"
"""How every line begins that a test writes into a log; whatever else is in the log is not looked at."""


class Workload(StrEnum):
    """What a lab's job does once it runs."""

    HEALTHY = "healthy"
    """Prints `step N/100000` several times a second until it is ended."""
    QUIET = "quiet"
    """Runs until it is ended and prints nothing but what `append_log` writes."""
    CRASHING = "crashing"
    """Prints `CRASH_LINE` and exits with code 3."""
    FINISHING = "finishing"
    """Prints a step and exits with code 0."""


class Ability(StrEnum):
    """What a lab or its scheduler may lack. Everything not named in `Lab.lacks` is tested."""

    NATIVE_WORD = "native_word"
    """`say`: the cluster can be made to use a word nobody has heard of."""
    RECREATE = "recreate"
    """`recreate`: ids or names can be used again for another job."""
    LOSE_ANSWER = "lose_answer"
    """`answers_lost`: a request arrives, its answer does not."""
    OWN_RESTART = "own_restart"
    """`begin_own_restart`: the scheduler brings jobs back by itself."""
    OWNER_HOLD = "owner_hold"
    """`hold_by_owner`: the owner can put a job on hold."""
    TRUNCATE_LOG = "truncate_log"
    ROTATE_LOG = "rotate_log"
    UNREADABLE_LOG = "unreadable_log"
    LIVE_BARS = "live_bars"
    """Progress bars that end in a carriage return are seen before a newline comes."""
    RAW_BYTES = "raw_bytes"
    """The log can hold bytes that are not UTF-8."""
    LONG_LINES = "long_lines"
    """The log can hold a line of a megabyte."""
    CONCURRENT_FENCE = "concurrent_fence"
    """Two processes that use one fence at the same instant act once: the cluster decides."""
    DISCOVER = "discover"


class Lab(ABC):
    """A cluster with one adapter on it. Seconds everywhere."""

    patience: ClassVar[float] = 20.0
    """How long a thing that must happen may take."""
    settle: ClassVar[float] = 0.5
    """How long to wait before believing that a thing did not happen."""
    tick: ClassVar[float] = 0.05
    """How often to look while waiting; a real cluster wants a second."""
    lacks: ClassVar[Mapping[Ability, str]] = {}
    """What can't be tested here, and why: the tests that need it skip with that reason."""
    resume_ways: ClassVar[frozenset[ResumeBy]] = frozenset({ResumeBy.ENVIRONMENT})
    """The ways in which a restart can be told where to resume."""

    @property
    @abstractmethod
    def scheduler(self) -> Scheduler:
        """The adapter under test; always the same one."""

    @abstractmethod
    def twin(self) -> Scheduler:
        """Make another adapter of the same cluster, as another process would, nothing shared in memory. The lab closes it."""

    @abstractmethod
    async def start(self, workload: Workload, resume: Resume | None = None) -> Job:
        """Start a job and return once the cluster has accepted it. It may still be pending.

        `resume` goes into the job's `CheckpointSpec`; None leaves the job without one. The cluster must not
        restart the job by itself.
        """

    @abstractmethod
    def unheard_of(self) -> Job:
        """Name a job with a well-formed id that never existed. A new one on each call."""

    @abstractmethod
    async def crash(self, job: Job) -> None:
        """Make the running job fail (a signal, an exit code other than 0), as an accident would."""

    @abstractmethod
    async def stop_by_owner(self, job: Job) -> None:
        """End the running job as its owner does, with the scheduler's own tools, behind the adapter's back."""

    @abstractmethod
    async def append_log(self, job: Job, data: bytes) -> None:
        """Add exactly these bytes to the log of a running QUIET job."""

    @abstractmethod
    async def starts(self, job: Job) -> int:
        """Count how often the job's workload was really started, as the workload or the cluster counts."""

    @abstractmethod
    async def alive(self, job: Job) -> int:
        """Count how many incarnations of the job run now, as the cluster sees it."""

    @abstractmethod
    async def resumed_from(self, job: Job) -> str | None:
        """Say what the newest incarnation was told to resume from, as its workload saw it."""

    @abstractmethod
    def unreachable(self) -> AbstractAsyncContextManager[None]:
        """Cut the way to the cluster for the adapter and its twins; the jobs run on."""

    def answers_lost(self) -> AbstractAsyncContextManager[None]:
        """Let requests that change something reach the cluster and lose their answers."""
        raise NotImplementedError

    async def say(self, job: Job, word: str) -> None:
        """Make the cluster report `word` as the job's state."""
        raise NotImplementedError

    async def recreate(self, job: Job) -> None:
        """Remove the job and start another HEALTHY one under the same id."""
        raise NotImplementedError

    async def begin_own_restart(self, job: Job) -> None:
        """Bring the crashed job into the state in which the scheduler is already restarting it."""
        raise NotImplementedError

    async def hold_by_owner(self, job: Job) -> None:
        """Put the job on hold as its owner would, behind the adapter's back."""
        raise NotImplementedError

    async def truncate_log(self, job: Job) -> None:
        """Cut the log of a running QUIET job to nothing; later `append_log` calls go on at its start."""
        raise NotImplementedError

    async def rotate_log(self, job: Job) -> None:
        """Rotate the log as its writer does; later `append_log` calls write to the new file."""
        raise NotImplementedError

    async def make_log_unreadable(self, job: Job) -> None:
        """Take the adapter's means to read the job's log away, not its means to observe the job."""
        raise NotImplementedError

    def selector(self) -> str:
        """Give the selector that finds the lab's jobs."""
        return "*"

    def needs(self, ability: Ability) -> None:
        """Skip the test where this lab lacks the ability."""
        if ability in self.lacks:
            pytest.skip(f"{ability}: {self.lacks[ability]}")

    async def until(self, look: Callable[[], Awaitable[T | None]], what: str) -> T:
        """Ask until the answer is not None, at most `patience` seconds; then fail, naming `what`."""
        deadline = time.monotonic() + self.patience
        while True:
            answer = await look()
            if answer is not None:
                return answer
            if time.monotonic() > deadline:
                pytest.fail(f"not within {self.patience} s: {what}")
            await asyncio.sleep(self.tick)
