"""The base of every block that stands for a cluster."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from prefect.blocks.core import Block

from trainguard.core.errors import ConfigError
from trainguard.core.job import Job, JobRef
from trainguard.schedulers.base import Scheduler


class SchedulerBlock(Block, ABC):
    """Address, credentials and settings of one cluster. Made and picked in the Prefect UI."""

    _block_schema_capabilities: ClassVar[list[str]] = ["guard-scheduler"]

    scheduler_name: ClassVar[str]
    """The adapter's name: the word in `JobRef.scheduler`."""

    @abstractmethod
    def cluster_name(self) -> str:
        """Name the cluster: the word in `JobRef.cluster`, equal for every block that reaches the same one."""

    @abstractmethod
    def make_scheduler(self) -> Scheduler:
        """Make the adapter. It connects when first used; one process keeps one per cluster."""

    def make_job(self, ref: JobRef) -> Job:
        """Give the job behind a reference, with whatever its owner declared where it runs. Raises ConfigError."""
        return Job(ref=ref)

    def place(self, job: Job) -> Job:
        """Complete a job that names only its id: it is on this cluster, and as its owner declared it there.

        What is given beside the id wins. Raises ConfigError where the job names another cluster.
        """
        ref = job.ref
        here = JobRef(scheduler=self.scheduler_name, cluster=self.cluster_name(), id=ref.id)
        if (ref.scheduler or here.scheduler, ref.cluster or here.cluster) != (here.scheduler, here.cluster):
            raise ConfigError(
                "job.ref",
                f"it is on {ref.scheduler}/{ref.cluster}, and the cluster's block is {here.scheduler}/{here.cluster}",
                "leave scheduler and cluster empty, or pick the job's own cluster",
            )
        if ref == here:
            return job
        fresh = Job(ref=ref)
        given = {
            name: value
            for name in type(job).model_fields
            if name != "ref" and (value := getattr(job, name)) != getattr(fresh, name)
        }
        return self.make_job(here).model_copy(update=given)
