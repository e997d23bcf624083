"""Watching a whole project, namespace, partition or user: a guard for each job found, for a time or for good."""

from __future__ import annotations

import asyncio
import logging
from datetime import datetime, timedelta
from typing import Any

from prefect import flow

from trainguard.blocks.clusters import Cluster, as_block
from trainguard.blocks.language_model import LanguageModel
from trainguard.blocks.notifier import Notifier
from trainguard.core.cadence import Cadence
from trainguard.core.job import Job
from trainguard.core.policy import Policy
from trainguard.flows.guard import ASSIST, CADENCE, guard
from trainguard.tasks.patrol import find_jobs

logger = logging.getLogger(__name__)

STARTS_A_SECOND = 2.0
"""SQLite answers 503 when many flow runs start at once."""


@flow(name="patrol", flow_run_name="patrol {selector}", persist_result=False)
async def patrol(
    cluster: Cluster,
    selector: str = "*",
    policy: Policy = ASSIST,
    until: datetime | None = None,
    minutes: float | None = None,
    only_failed: bool = False,
    cadence: Cadence = CADENCE,
    notifiers: list[Notifier] | None = None,
    model: LanguageModel | None = None,
    every: float = 60.0,
) -> str:
    """Look for jobs every `every` seconds and guard each until it ends or the patrol's time is up."""
    deadline = until or (datetime.now().astimezone() + timedelta(minutes=minutes) if minutes else None)
    guards: dict[str, asyncio.Task[Any]] = {}
    block = await as_block(cluster)
    while deadline is None or datetime.now().astimezone() < deadline:
        for job in await find_jobs(block, selector, only_failed):
            if job.key not in guards:
                guards[job.key] = asyncio.create_task(
                    _guard(job, cluster, policy, deadline, cadence, notifiers, model)
                )
                await asyncio.sleep(1 / STARTS_A_SECOND)
        await _pause(guards, every, deadline)
    ended = await asyncio.gather(*guards.values(), return_exceptions=True)
    return f"{len(ended)} jobs guarded"


async def _guard(
    job: Job,
    cluster: Cluster,
    policy: Policy,
    deadline: datetime | None,
    cadence: Cadence,
    notifiers: list[Notifier] | None,
    model: LanguageModel | None,
) -> str:
    """Guard one job; its trouble must not end the others' patrol."""
    state: Any = await guard(
        job=job,
        cluster=cluster,
        policy=policy,
        until=deadline,
        cadence=cadence,
        notifiers=notifiers,
        model=model,
        return_state=True,
    )
    logger.info("%s: %s %s", job.name, state.name, state.message)
    return str(state.name)


async def _pause(guards: dict[str, asyncio.Task[Any]], every: float, deadline: datetime | None) -> None:
    left = every if deadline is None else (deadline - datetime.now().astimezone()).total_seconds()
    await asyncio.sleep(max(0.0, min(every, left)))
    for key in [key for key, task in guards.items() if task.done() and task.exception() is not None]:
        logger.warning("the guard of %s ended: %s", key, guards.pop(key).exception())
