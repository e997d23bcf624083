"""Taking up and laying down guard duty: ledger, access, lease, the shared watch."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from prefect.context import FlowRunContext
from prefect.logging.handlers import APILogHandler

from trainguard.blocks.language_model import LanguageModel
from trainguard.blocks.notifier import NotifierBlock
from trainguard.blocks.scheduler_block import SchedulerBlock
from trainguard.core.action import Access
from trainguard.core.errors import LeaseHeldError, LeaseLostError, LedgerUnavailableError, UnreachableError
from trainguard.core.health import Health
from trainguard.core.job import Job
from trainguard.core.masking import mask
from trainguard.core.policy import Policy
from trainguard.core.progress import Reading
from trainguard.core.signal import Signal
from trainguard.ledger.ledger import Ledger
from trainguard.schedulers.sharing import shared_watch
from trainguard.tasks.catalogue import read_rules
from trainguard.tasks.context import GuardContext, guarding
from trainguard.tasks.deliver import delivering
from trainguard.tasks.durable import durably
from trainguard.tasks.lease import keeping, take_lease
from trainguard.tasks.log_reading import stop_reading
from trainguard.tasks.shared_ledger import shared_ledger

logger = logging.getLogger(__name__)


class _ToPrefect(APILogHandler):
    """Shows our log lines on the page of the flow run they belong to."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Take only what a flow run says: nothing else has a page."""
        return FlowRunContext.get() is not None

    def format(self, record: logging.LogRecord) -> str:
        """Mask what is shown: reasons and errors are others' text."""
        return mask(super().format(record))


def _log_to_prefect() -> None:
    ours = logging.getLogger("trainguard")
    if not any(isinstance(handler, _ToPrefect) for handler in ours.handlers):
        ours.addHandler(_ToPrefect(logging.INFO))
    if ours.level == logging.NOTSET:
        ours.setLevel(logging.INFO)


@asynccontextmanager
async def on_duty(
    job: Job,
    cluster: SchedulerBlock,
    policy: Policy,
    *,
    flow_run_id: str,
    take_over: bool = False,
    notifiers: Sequence[NotifierBlock] = (),
    model: LanguageModel | None = None,
    rules: Sequence[Path] = (),
) -> AsyncIterator[GuardContext]:
    """Hold the lease on a job and everything needed to guard it.

    Raises ConfigError for a rules file that can't be used, LeaseHeldError where another guard owns the job, AccessRefusedError, UnreachableError or
    NotFoundError where a job never guarded before can't be seen. A job guarded before is guarded on,
    blind at first if need be.
    """
    _log_to_prefect()
    catalogue, handlers = await asyncio.to_thread(read_rules, rules)
    async with AsyncExitStack() as stack:
        ledger: Ledger = await durably(lambda: stack.enter_async_context(shared_ledger()))
        known = await durably(ledger.job_status, job.key)
        watch = await stack.enter_async_context(shared_watch(cluster.make_scheduler, job.ref.scheduler, job))
        access = await _validated(watch.scheduler.validate(job), known_before=known is not None)
        clock = watch.scheduler.clock
        await durably(ledger.register_job, job, policy.model_dump_json(), clock())
        lease = await durably(take_lease, ledger, job.key, flow_run_id, take_over, clock())
        context = GuardContext(
            job=job,
            policy=policy,
            watch=watch,
            ledger=ledger,
            lease=lease,
            catalogue=catalogue,
            handlers=handlers,
            notifiers=tuple(notifiers),
            model=model,
            flow_run_id=flow_run_id,
            clock=clock,
            access=access,
        )
        await durably(_remember, context)
        try:
            with guarding(context):
                async with keeping(context), delivering(context):
                    yield context
        finally:
            await stop_reading(context)
            await _let_go(context)


async def _validated(validation: Awaitable[Access], *, known_before: bool) -> Access:
    try:
        return await validation
    except UnreachableError as problem:
        if not known_before:
            raise
        return Access(job_seen=False, logs_readable=False, warnings=(str(problem),))


async def _remember(context: GuardContext) -> None:
    """Go on where the guard before this one stopped."""
    context.cursor = await context.ledger.cursor(context.job.key)
    context.observation = await context.ledger.latest_observation(context.job.key)
    stored = await context.ledger.health(context.job.key)
    if stored:
        state = json.loads(stored)
        context.health = Health.model_validate(state["health"])
        context.reading = Reading.model_validate(state["reading"])
        context.started_at = state["started_at"]
        context.unanswered = [Signal.model_validate(signal) for signal in state.get("unanswered", ())]


async def remember_later(context: GuardContext) -> None:
    """Store what the next guard needs to go on. Raises LeaseLostError, LedgerUnavailableError."""
    state = {
        "health": context.health.model_dump(mode="json"),
        "reading": context.reading.model_dump(mode="json"),
        "started_at": context.started_at,
        # Told once by `assess`: a guard that dies before it has answered them would never see them again.
        "unanswered": [signal.model_dump(mode="json") for signal in context.unanswered],
    }
    await context.ledger.save_health(context.lease, context.job.key, json.dumps(state), context.cursor)


async def _let_go(context: GuardContext) -> None:
    try:
        await remember_later(context)
        await context.ledger.release_lease(context.lease)
    except (LeaseLostError, LedgerUnavailableError) as problem:
        logger.warning("the lease on %s was not released: %s", context.job.key, problem)


__all__ = ["LeaseHeldError", "on_duty", "remember_later"]
