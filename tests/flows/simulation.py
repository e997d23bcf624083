"""A guard on a simulated cluster, for tests that watch what it does."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any, ClassVar, TypeVar
from uuid import uuid4

from pydantic import HttpUrl

from trainguard.blocks.scheduler_block import SchedulerBlock
from trainguard.core.cadence import Cadence
from trainguard.core.decision import Answer, ApprovalAnswer, ApprovalRequest
from trainguard.core.incident import Incident
from trainguard.core.job import CheckpointSpec, Job, Resume, ResumeBy, Watching
from trainguard.core.policy import Policy, Preset
from trainguard.flows.guard import guard
from trainguard.ledger.ledger import Ledger
from trainguard.testing.simulated import Fault, SimulatedCluster, SimulatedJob, SimulatedScheduler

T = TypeVar("T")
QUICK = Cadence(settle=2, young=(2, 2), steady=3, uncertain=2, least=0.1)


class QuickScheduler(SimulatedScheduler):
    """Looks often, so that tests are short."""

    poll_seconds: ClassVar[float] = 0.1


class SimulatedClusterBlock(SchedulerBlock):
    """A simulated cluster's block."""

    scheduler_name: ClassVar[str] = SimulatedScheduler.name
    _block_type_slug: ClassVar[str] = "simulated-cluster"
    _logo_url: ClassVar[HttpUrl | None] = None

    cluster: str

    def cluster_name(self) -> str:
        return self.cluster

    def make_scheduler(self) -> QuickScheduler:
        return QuickScheduler(self.cluster)


class Simulation:
    """One job on one cluster, and the guard under test."""

    def __init__(self, *faults: Fault, total: int = 400, **job: Any) -> None:
        self.cluster = SimulatedCluster(f"sim-{uuid4().hex[:8]}")
        settings = {"step_seconds": 0.02, "checkpoint_every": 10, **job}
        self.native = SimulatedJob(id="job", total=total, faults=faults, **settings)
        self.job = Job(
            ref=self.cluster.start(self.native),
            name=self.cluster.name,
            checkpoints=CheckpointSpec(
                directory="/checkpoints", resume=Resume(by=ResumeBy.ARGUMENT, name="--resume")
            ),
            watching=Watching(stall_after=1.5),
        )

    @property
    def starts(self) -> int:
        """How often the job was really started."""
        return self.cluster.starts["job"]

    def guard(self, policy: Policy | None = None, **parameters: Any) -> asyncio.Task[Any]:
        """Start a guard; its task gives the flow run's final state."""

        async def run() -> Any:
            block = SimulatedClusterBlock(cluster=self.cluster.name)
            await block.save(self.cluster.name, overwrite=True)
            return await guard(
                job=self.job,
                cluster=f"simulated-cluster/{self.cluster.name}",
                policy=policy or Policy(preset=Preset.AUTONOMOUS),
                cadence=QUICK,
                return_state=True,
                **parameters,
            )

        return asyncio.create_task(run())

    async def incidents(self) -> list[Incident]:
        """All incidents, oldest first."""
        async with await Ledger.open() as ledger:
            return list(reversed(await ledger.incidents(self.job.key)))

    async def question(self) -> ApprovalRequest:
        """Wait until the guard asks."""

        async def asked() -> ApprovalRequest | None:
            async with await Ledger.open() as ledger:
                found = await ledger.open_requests(self.job.key)
            return found[0] if found else None

        return await until(asked, "a question")

    async def answer(self, question: ApprovalRequest, answer: Answer, **changes: Any) -> bool:
        """Answer as the command line does."""
        current = question.incarnation.token if question.incarnation else None
        given = ApprovalAnswer(request=question.id, answer=answer, by="tess", via="cli", at=time.time())
        async with await Ledger.open() as ledger:
            result = await ledger.answer(given.model_copy(update=changes), current, time.time())
        return result.accepted


async def until(ask: Callable[[], Awaitable[T | None]], what: str, patience: float = 60.0) -> T:
    """Ask until there is an answer; fail, naming `what`, when patience ends."""
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        found = await ask()
        if found is not None:
            return found
        await asyncio.sleep(0.05)
    raise AssertionError(f"not within {patience:.0f} s: {what}")
