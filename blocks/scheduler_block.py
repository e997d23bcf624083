"""The base of every block that stands for a cluster."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from prefect.blocks.core import Block

from trainguard.core.job import Job, JobRef
from trainguard.schedulers.base import Scheduler


class SchedulerBlock(Block, ABC):
    """Address, credentials and settings of one cluster. Made and picked in the Prefect UI."""

    _block_schema_capabilities: ClassVar[list[str]] = ["guard-scheduler"]

    @abstractmethod
    def cluster_name(self) -> str:
        """Name the cluster: the word in `JobRef.cluster`, equal for every block that reaches the same one."""

    @abstractmethod
    def make_scheduler(self) -> Scheduler:
        """Make the adapter. It connects when first used; one process keeps one per cluster."""

    def make_job(self, ref: JobRef) -> Job:
        """Give the job behind a reference, with whatever its owner declared where it runs. Raises ConfigError."""
        return Job(ref=ref, name=ref.id)
