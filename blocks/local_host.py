"""This machine, as a cluster of one: jobs under their supervisors."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import ClassVar

from pydantic import Field, HttpUrl

from trainguard.blocks.scheduler_block import SchedulerBlock
from trainguard.core.job import Job, JobRef
from trainguard.schedulers.local import LocalScheduler
from trainguard.schedulers.local.starting import load_job


class LocalHost(SchedulerBlock):
    """Jobs on the machine where the guard runs, each under a supervisor of its own.

    Example:
        Load a stored block:
        ```python
        from trainguard.blocks.local_host import LocalHost

        machine = LocalHost.load("BLOCK_NAME")
        ```
    """

    scheduler_name: ClassVar[str] = LocalScheduler.name

    _block_type_name: ClassVar[str] = "trainguard Local Host"
    _block_type_slug: ClassVar[str] = "trainguard-local-host"
    _description: ClassVar[str] = (
        "The machine where the guards run, and the training jobs under its supervisors."
    )
    _logo_url: ClassVar[HttpUrl | None] = HttpUrl("https://avatars.githubusercontent.com/u/39270919?s=200")

    name: str = Field(default="", description="Name of the machine; empty for its host name.")
    roots: list[Path] = Field(
        default_factory=list,
        description='Folders whose sub-folders are state folders, for patrols. As JSON: ["/jobs"]. Empty for ~/.local/state/trainguard/jobs.',
    )
    answer_seconds: float = Field(
        default=60.0,
        gt=0,
        description="How long a supervisor may take to carry out an action before its outcome counts as unknown.",
    )

    def cluster_name(self) -> str:
        """Name the machine."""
        return self.name or socket.gethostname()

    def make_scheduler(self) -> LocalScheduler:
        """Make the adapter."""
        roots = tuple(root.expanduser() for root in self.roots)
        return LocalScheduler(self.cluster_name(), roots=roots, answer_seconds=self.answer_seconds)

    def make_job(self, ref: JobRef) -> Job:
        """Give the job as it was declared when it was started. Raises ConfigError where the folder holds none."""
        return load_job(Path(ref.id), ref.cluster)
