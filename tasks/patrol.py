"""Finding the jobs of a patrol."""

from __future__ import annotations

import logging

from prefect import task
from prefect.cache_policies import NO_CACHE

from trainguard.blocks.scheduler_block import SchedulerBlock
from trainguard.core.errors import SchedulerError
from trainguard.core.job import Job
from trainguard.core.observation import Liveness

logger = logging.getLogger(__name__)


@task(name="find jobs", cache_policy=NO_CACHE, persist_result=False)
async def find_jobs(cluster: SchedulerBlock, selector: str, only_failed: bool = False) -> list[Job]:
    """Give the jobs a selector finds that have not ended well. A cluster out of reach has none for now."""
    scheduler = cluster.make_scheduler()
    try:
        jobs = [Job(ref=ref, name=ref.id) for ref in await scheduler.discover(selector)]
        seen = await scheduler.observe(jobs) if jobs else {}
    except SchedulerError as problem:
        logger.warning("the patrol sees nothing now: %s", problem)
        return []
    finally:
        await scheduler.close()
    wanted = {Liveness.FAILED} if only_failed else {Liveness.FAILED, Liveness.RUNNING, Liveness.PENDING}
    return [job for job in jobs if job.ref in seen and seen[job.ref].liveness in wanted]
