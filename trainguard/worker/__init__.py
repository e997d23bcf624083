"""The Prefect worker that runs guards in its own process, found through `prefect.collections`."""

from trainguard.worker.guard_worker import GuardWorker

__all__ = ["GuardWorker"]
