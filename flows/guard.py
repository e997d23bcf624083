"""Guarding one job: watch, check, and on a failure diagnose and recover."""

from __future__ import annotations

import asyncio
import logging
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.runtime import flow_run
from prefect.states import Cancelled, Completed, Failed

from trainguard.blocks.clusters import Cluster
from trainguard.blocks.language_model import LanguageModel
from trainguard.blocks.notifier import Notifier
from trainguard.core.cadence import Cadence
from trainguard.core.errors import (
    AccessRefusedError,
    ConfigError,
    LeaseHeldError,
    LeaseLostError,
    LedgerUnavailableError,
    NotFoundError,
    SchedulerError,
    UnreachableError,
)
from trainguard.core.job import Job
from trainguard.core.masking import mask
from trainguard.core.policy import Policy
from trainguard.flows.diagnose import diagnose
from trainguard.flows.recover import recover
from trainguard.tasks.check import check_job
from trainguard.tasks.cluster import load_cluster
from trainguard.tasks.context import GuardContext
from trainguard.tasks.deliver import await_delivery
from trainguard.tasks.durable import RETRY_SECONDS, durably
from trainguard.tasks.duty import on_duty
from trainguard.tasks.incidents import open_incident, unfinished_incidents
from trainguard.tasks.prefect_view import GuardCancelledError, prefect_answers, prefect_is_back, tag_run
from trainguard.tasks.report import set_status, show_guard_page
from trainguard.tasks.subflow import run_subflow, tidy_up
from trainguard.tasks.succession import call_successor
from trainguard.tasks.tell import tell_missed_end, tell_signals
from trainguard.tasks.wait import TimeIsUpError, ending, time_is_up, wait_for_news

logger = logging.getLogger(__name__)

ASSIST = Policy()
CADENCE = Cadence()
LAST_PATIENCE = 6 * 3600.0
"""Seconds for which a guard whose job is over waits for Prefect, to show how it ended."""


@flow(name="guard", flow_run_name="guard {job.name}", retries=0, persist_result=False)
async def guard(
    job: Job,
    cluster: Cluster,
    policy: Policy = ASSIST,
    until: datetime | None = None,
    minutes: float | None = None,
    take_over: bool = False,
    cadence: Cadence = CADENCE,
    notifiers: list[Notifier] | None = None,
    model: LanguageModel | None = None,
    rules: list[Path] | None = None,
    checks_a_run: int = 2000,
) -> State[Any]:
    """Watch one job until it ends, `until` is reached or `minutes` are over; recover it by the policy.

    The job itself is never touched when the guard ends or is cancelled.

    Args:
        job: The job. Its `id` is all that is needed.
        cluster: Its cluster's block, or that block's slug such as slurm-cluster/lab.
        policy: What the guard may do on its own.
        until: Guard until then, and leave the job alone afterwards.
        minutes: Guard for so long, and leave the job alone afterwards.
        take_over: Take the job over from the guard that has it.
        cadence: How often the job is checked. Seconds.
        notifiers: Blocks of the channels that are told.
        model: Block of a language model, asked only where no rule can tell.
        rules: Files of own rules and exit-code handlers, on the guard's machine.
        checks_a_run: After so many checks the guard goes on as a new flow run: a page stays quick.
    """
    deadline = until or (datetime.now().astimezone() + timedelta(minutes=minutes) if minutes else None)
    run_id = flow_run.id or ""
    try:
        block = await load_cluster(cluster)
        async with on_duty(
            block.place(job),
            block,
            policy,
            flow_run_id=run_id,
            take_over=take_over,
            notifiers=notifiers or (),
            model=model,
            rules=rules or (),
        ) as context:
            context.until = deadline.timestamp() if deadline else None
            return await _stand_guard(context, cadence, deadline, checks_a_run)
    except (AccessRefusedError, UnreachableError, NotFoundError) as problem:
        return Failed(name="CredentialError", message=_with_remedy(problem))
    except (LeaseHeldError, ConfigError) as problem:
        return refused(problem)
    except LeaseLostError as problem:
        return Cancelled(name="Fenced", message=str(problem))
    except GuardCancelledError:
        return Cancelled(message="cancelled in Prefect; the job goes on")


def refused(problem: Exception) -> State[Any]:
    """End a run that can't do what it is told, with the remedy."""
    return Failed(name="Refused", message=_with_remedy(problem))


def _with_remedy(problem: Exception) -> str:
    return mask("; ".join(filter(None, (str(problem), getattr(problem, "remedy", "")))))


async def _stand_guard(
    context: GuardContext, cadence: Cadence, deadline: datetime | None, checks_a_run: int
) -> State[Any]:
    await tag_run(context.tags)
    while True:
        try:
            return await _watch(context, cadence, deadline, checks_a_run)
        except TimeIsUpError as reached:
            return await _end(context, str(reached))
        except LedgerUnavailableError as problem:
            # As after a crash: what is on record is gone on with. No clock runs out meanwhile.
            logger.warning("the ledger can't be used: %s", problem)
        except (SchedulerError, ConfigError):
            # Access was proven when duty began: what a cluster says now is about the moment, not about the guard.
            logger.exception("the guard goes on after an error that nobody expected")
        await asyncio.sleep(RETRY_SECONDS)


async def _watch(
    context: GuardContext, cadence: Cadence, deadline: datetime | None, checks_a_run: int
) -> State[Any]:
    await set_status(context, "Enabled")
    await tell_missed_end(context)
    for incident_id in await unfinished_incidents(context):
        await _handle(context, incident_id)
    while True:
        signals = await check_job(context)
        await tell_signals(context, signals)
        opened = await open_incident(context, signals)
        context.unanswered.clear()
        if opened is not None:
            await _handle(context, opened)
            continue
        outcome = await ending(context) or time_is_up(context)
        if outcome:
            return await _end(context, outcome)
        if context.checks >= checks_a_run:
            successor = await call_successor(context, deadline)
            if successor:
                await tidy_up(context)
                return Completed(name="HandedOver", message=f"goes on as flow run {successor}")
        if context.untidy and not context.subflows and await prefect_answers():
            await tidy_up(context)
        await set_status(context, "Degraded" if context.health.degraded else "Enabled")
        await wait_for_news(context, cadence)


async def _handle(context: GuardContext, incident_id: str) -> None:
    """Take one incident to its end, shown as subflows where Prefect answers and without them where not."""
    showing = asyncio.create_task(set_status(context, "Recovering"))
    showing.add_done_callback(lambda task: task.cancelled() or task.exception())
    try:
        incident = await context.ledger.incident(incident_id)
        if incident is not None and incident.state == "open":
            await run_subflow(context, diagnose, incident_id)
        await run_subflow(context, recover, incident_id)
    finally:
        await asyncio.wait({showing})
    showing.result()
    await show_guard_page(context)


async def _end(context: GuardContext, outcome: str) -> State[Any]:
    outcome = mask(outcome)
    await durably(
        context.ledger.set_job_status,
        context.job.key,
        "Completed",
        outcome,
        context.clock(),
        context.lease,
    )
    context.status = "Completed"
    # Prefect's own patience is a minute; a run whose end it never heard of would look alive for ever.
    await prefect_is_back(LAST_PATIENCE)
    await tidy_up(context)
    await show_guard_page(context)
    await await_delivery(context)
    return Completed(name="Completed", message=outcome)
