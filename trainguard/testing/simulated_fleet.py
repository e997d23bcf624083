"""Thousands of simulated jobs by seed, and the block through which guards in any process reach them."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from time import time
from typing import ClassVar

from pydantic import Field, HttpUrl

from trainguard.blocks.scheduler_block import SchedulerBlock
from trainguard.core.job import CheckpointSpec, Job, JobRef, Resume, ResumeBy
from trainguard.testing.simulated import (
    CLUSTERS,
    Fault,
    FaultKind,
    SimulatedCluster,
    SimulatedJob,
    SimulatedScheduler,
)
from trainguard.testing.simulated_clock import PacedScheduler, VirtualClock

DAY = 86400.0
HORIZON = 120 * DAY
"""Faults are drawn for so long."""
MOST_FAULTS = 200
"""At most so many for one job, since a thousand jobs keep theirs in memory."""


class SimulatedFleet(SchedulerBlock):
    """A cluster whose jobs, nodes and faults follow from a seed. The first process that asks makes it."""

    scheduler_name: ClassVar[str] = SimulatedScheduler.name
    _block_type_name: ClassVar[str | None] = "Simulated fleet"
    _block_type_slug: ClassVar[str] = "simulated-fleet"
    _description: ClassVar[str] = "Jobs that only exist on paper, to measure guards on."
    _logo_url: ClassVar[HttpUrl | None] = None

    cluster: str = Field(description="Name of the cluster.")
    jobs: int = Field(default=100, description="How many jobs there are.", ge=1)
    seed: int = Field(default=0, description="What nodes, speeds and faults are drawn from.")
    fault_seconds: float = Field(
        default=0.0, description="Mean time between two faults of one job; 0 for none.", ge=0
    )
    healthy_seconds: float = Field(
        default=60.0, description="How long a job runs before anything can happen.", ge=0
    )
    step_seconds: float = Field(default=1.0, description="Mean time of a training step.", gt=0)
    faults: tuple[FaultKind, ...] = Field(
        default=(FaultKind.NCCL, FaultKind.GPU_LOST, FaultKind.NODE_DOWN), description="What may happen."
    )
    poll_seconds: float = Field(default=5.0, description="How often the shared watch looks.", gt=0)
    virtual: bool = Field(default=False, description="Whether time passes as fast as the guards keep up.")
    journal: Path | None = Field(default=None, description="File for what really happened, as JSON lines.")

    def cluster_name(self) -> str:
        """Name the cluster."""
        return self.cluster

    def make_scheduler(self) -> SimulatedScheduler:
        """Make the adapter, and the cluster where this process has none of that name."""
        if self.cluster not in CLUSTERS:
            self.build()
        kind = PacedScheduler if self.virtual else SimulatedScheduler
        paced = type(kind.__name__, (kind,), {"poll_seconds": self.poll_seconds, "name": kind.name})
        made: SimulatedScheduler = paced(self.cluster)
        return made

    def build(self, clock: Callable[[], float] | None = None) -> SimulatedCluster:
        """Start all jobs now, by `clock` where one is given."""
        time_of = clock or (VirtualClock() if self.virtual else time)
        cluster = SimulatedCluster(self.cluster, seed=self.seed, clock=time_of, journal=self.journal)
        for number in range(self.jobs):
            cluster.start(self._native(number))
        return cluster

    def job(self, number: int) -> Job:
        """Give the job of that number as a guard is told of it."""
        ref = JobRef(scheduler="simulated", cluster=self.cluster, id=job_id(number))
        return Job(
            ref=ref,
            name=ref.id,
            project=f"project-{number % 10}",
            checkpoints=CheckpointSpec(
                directory="/checkpoints", resume=Resume(by=ResumeBy.ARGUMENT, name="--resume")
            ),
        )

    def _native(self, number: int) -> SimulatedJob:
        chance = random.Random(f"{self.seed}/{number}")  # noqa: S311 - a simulation wants to repeat itself
        step_seconds = self.step_seconds * chance.uniform(0.8, 1.2)
        return SimulatedJob(
            id=job_id(number),
            total=10**9,
            step_seconds=step_seconds,
            checkpoint_every=max(1, round(30 / step_seconds)),
            nodes=tuple(f"sim-node-{node}" for node in chance.sample(range(1, 1 + 2 * self.jobs), 2)),
            faults=tuple(self._faults(chance, step_seconds)),
        )

    def _faults(self, chance: random.Random, step_seconds: float) -> Iterator[Fault]:
        if not self.fault_seconds:
            return
        at = self.healthy_seconds
        for _ in range(MOST_FAULTS):
            at += chance.expovariate(1 / self.fault_seconds)
            if at >= HORIZON:
                return
            yield Fault(chance.choice(self.faults), int(at / step_seconds))


def job_id(number: int) -> str:
    """Name a job of the fleet."""
    return f"job-{number:05}"
