"""Loading the cluster's block, also while Prefect is away or too busy to answer."""

from __future__ import annotations

import logging

import httpx
from tenacity import AsyncRetrying, before_sleep_log, retry_if_exception, stop_after_delay, wait_exponential

from trainguard.blocks.clusters import Cluster, as_block
from trainguard.blocks.scheduler_block import SchedulerBlock

logger = logging.getLogger(__name__)

PATIENCE = 6 * 3600.0
"""Seconds for which a guard that begins waits for Prefect: ended, it would guard nothing at all."""


async def load_cluster(cluster: Cluster) -> SchedulerBlock:
    """Load a cluster given by its slug. Raises ConfigError where Prefect says that there is no such block."""
    retrying = AsyncRetrying(
        retry=retry_if_exception(_is_passing),
        wait=wait_exponential(multiplier=2, max=60),
        stop=stop_after_delay(PATIENCE),
        before_sleep=before_sleep_log(logger, logging.WARNING),
        reraise=True,
    )
    async for attempt in retrying:
        with attempt:
            return await as_block(cluster)
    raise AssertionError("tenacity gives up by raising")


def _is_passing(problem: BaseException) -> bool:
    if isinstance(problem, httpx.HTTPStatusError):
        return problem.response.status_code >= 500 or problem.response.status_code == 429
    return isinstance(problem, httpx.TransportError | OSError)
