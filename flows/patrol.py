"""Watching a whole project, namespace, partition or user: a guard for each job found, for a time or for good."""

from __future__ import annotations

import asyncio
import logging
from datetime import datetime, timedelta
from pathlib import Path
from typing import Annotated, Any

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.states import Completed
from pydantic import Field

from trainguard.blocks.clusters import Cluster
from trainguard.blocks.language_model import LanguageModel
from trainguard.blocks.notifier import Notifier
from trainguard.core.cadence import Cadence
from trainguard.core.errors import ConfigError
from trainguard.core.job import Job, JobRef
from trainguard.core.policy import Policy
from trainguard.flows.guard import ASSIST, CADENCE, guard, refused
from trainguard.tasks.cluster import load_cluster
from trainguard.tasks.patrol import Rounds

logger = logging.getLogger(__name__)

STARTS_A_SECOND = 2.0
"""SQLite answers 503 when many flow runs start at once."""


@flow(name="patrol", flow_run_name="patrol {selector}", retries=0, persist_result=False)
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
    rules: list[Path] | None = None,
    every: Annotated[float, Field(gt=0)] = 60.0,
    checks_a_run: int = 2000,
) -> State[Any]:
    """Look for jobs every `every` seconds and guard each until it ends or the patrol's time is up.

    A job that another guard has is left to it. When the patrol stops, its guards stop; no job is touched.

    Args:
        cluster: The cluster's block, or its slug such as slurm-cluster/lab.
        selector: Which jobs: `user=alice`, `namespace=ml`, `*`.
        policy: What the guards may do on their own.
        until: Guard until then, and leave the jobs alone afterwards.
        minutes: Guard for so long, and leave the jobs alone afterwards.
        only_failed: Guard only jobs that have failed.
        cadence: How often each job is checked. Seconds.
        notifiers: Blocks of the channels that are told.
        model: Block of a language model, asked only where no rule can tell.
        rules: Files of own rules and exit-code handlers, on the guard's machine.
        every: Seconds from one round to the next.
        checks_a_run: After so many checks a guard goes on as a new flow run: a page stays quick.
    """
    deadline = until or (datetime.now().astimezone() + timedelta(minutes=minutes) if minutes else None)
    settings = {
        "cluster": cluster,
        "policy": policy,
        "until": deadline,
        "cadence": cadence,
        "notifiers": notifiers,
        "model": model,
        "rules": rules,
        "checks_a_run": checks_a_run,
    }
    try:
        block = await load_cluster(cluster)
        count = await _patrol(
            Rounds(block, block.make_scheduler(), selector, only_failed), settings, deadline, every
        )
    except ConfigError as problem:
        return refused(problem)
    return Completed(message=f"{count} {'guard' if count == 1 else 'guards'} stood")


async def _patrol(rounds: Rounds, settings: dict[str, Any], deadline: datetime | None, every: float) -> int:
    """Guard what each round finds until the time is up. Gives the number of guards."""
    guards: dict[JobRef, asyncio.Task[None]] = {}
    count = 0
    try:
        while deadline is None or datetime.now().astimezone() < deadline:
            for job in await rounds.look(guards):
                guards[job.ref] = asyncio.create_task(_guard(job, rounds, settings), name=f"guard {job.name}")
                count += 1
                await asyncio.sleep(1 / STARTS_A_SECOND)
            await _pause(every, deadline)
            for ref in [ref for ref, task in guards.items() if task.done()]:
                del guards[ref]
        await asyncio.gather(*guards.values())
    finally:
        for task in guards.values():
            task.cancel()
        await asyncio.gather(*guards.values(), return_exceptions=True)
        await rounds.scheduler.close()
    return count


async def _guard(job: Job, rounds: Rounds, settings: dict[str, Any]) -> None:
    """Guard one job to its end, over as many flow runs as it takes; its trouble is not the others'."""
    take_over = False
    while True:
        state = await guard(job=job, **settings, take_over=take_over, return_state=True)
        if state.name != "HandedOver":
            break
        take_over = True
    logger.info("%s: %s: %s", job.name, state.name, state.message)
    await rounds.ended(job)


async def _pause(every: float, deadline: datetime | None) -> None:
    left = every if deadline is None else (deadline - datetime.now().astimezone()).total_seconds()
    await asyncio.sleep(max(0.0, min(every, left)))
