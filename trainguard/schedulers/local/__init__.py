"""Jobs of this machine, each under its own detached supervisor."""

from trainguard.schedulers.local.scheduler import LocalScheduler
from trainguard.schedulers.local.starting import LocalJob, default_root, load_job, start_job

__all__ = ["LocalJob", "LocalScheduler", "default_root", "load_job", "start_job"]
