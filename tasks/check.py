"""One look at the job: scheduler state, new log lines, progress, heartbeat, utilisation."""

from __future__ import annotations

import logging

from prefect import task
from prefect.cache_policies import NO_CACHE

from trainguard.core.errors import LedgerUnavailableError
from trainguard.core.health import assess
from trainguard.core.observation import Observation, furthest
from trainguard.core.progress import restarted
from trainguard.core.signal import Signal
from trainguard.tasks.context import GuardContext, current_guard
from trainguard.tasks.duty import remember_later
from trainguard.tasks.log_reading import log_is_due, read_new_log, read_to_the_end
from trainguard.tasks.report import line_of, show_guard_page

logger = logging.getLogger(__name__)
status_lines = logging.getLogger("trainguard.status")

SHOW_SECONDS = 1700.0
"""A check at which all is as before is shown in Prefect this often: a task run and its page's text are 25 kB there."""
YOUNG_SECONDS = 3600.0
"""Every check of a new incarnation is shown for so long."""


async def check_job(context: GuardContext) -> tuple[Signal, ...]:
    """Check once, as a task run where Prefect has something new to show. Gives the signals that began."""
    context.checks += 1
    if not _as_shown(context):
        return await check()
    signals = await look(context, read_log=True)
    context.unanswered.extend(signals)
    await record(context)
    if signals:
        await _show(context)
    return signals


def _as_shown(context: GuardContext) -> bool:
    """Whether a healthy job, no longer young, is as it was when it was last shown, not long ago."""
    now, seen = context.clock(), context.observation
    if (
        seen is None
        or seen.liveness is not context.shown_as
        or context.news
        or context.unanswered
        or context.health.uncertain
    ):
        return False
    return now - context.started_at >= YOUNG_SECONDS and now - context.shown_at < SHOW_SECONDS


@task(name="check", task_run_name="check", retries=0, cache_policy=NO_CACHE, persist_result=False)
async def check() -> tuple[Signal, ...]:
    """Look once, unless a look brought news just now; record it, show it. Gives the signals that began."""
    context = current_guard()
    news, context.news = context.news, False
    fresh = () if news else await look(context, read_log=True)
    # Kept until the guard has answered them: a signal is given once, and the ledger may be away just now.
    context.unanswered.extend(fresh)
    signals = tuple(context.unanswered)
    await record(context)
    await _show(context)
    return signals


async def _show(context: GuardContext) -> None:
    context.shown_at = context.clock()
    context.shown_as = context.observation.liveness if context.observation else None
    await show_guard_page(context)


async def look(
    context: GuardContext, *, read_log: bool | None = None, timeout: float | None = None
) -> tuple[Signal, ...]:
    """Wait for the next shared look and take it in. Cheap: no task run. Raises TimeoutError."""
    context.looks, observation = await context.watch.next(
        context.job.ref, after=context.looks, timeout=timeout
    )
    return await take_in(context, observation, read_log=read_log)


async def take_in(
    context: GuardContext, observation: Observation, *, read_log: bool | None = None
) -> tuple[Signal, ...]:
    """Fold one observation, and the log where it is due, into what is known of the job."""
    before, now = context.observation, context.clock()
    began = _began(before, observation)
    if began and before is not None:
        await read_to_the_end(context)
        context.reading = restarted(context.reading)
    if began:
        context.started_at = now
    changed = before is None or before.liveness is not observation.liveness
    due = log_is_due(context) if read_log is None else read_log
    if due or changed:
        await read_new_log(context)
    context.observation = _with_progress(context, observation)
    context.health, signals = assess(
        context.health, context.observation, context.reading, context.job.watching, now
    )
    return signals


def _began(before: Observation | None, now: Observation) -> bool:
    """Whether this incarnation is seen for the first time."""
    if now.incarnation is None:
        return False
    return before is None or before.incarnation is None or before.incarnation.token != now.incarnation.token


def _with_progress(context: GuardContext, observation: Observation) -> Observation:
    """Give the progress that is furthest, the log's or the scheduler's; the observation keeps the incarnation last named."""
    changes: dict[str, object] = {"progress": furthest(context.reading.progress, observation.progress)}
    if observation.incarnation is None and context.observation is not None:
        changes["incarnation"] = context.observation.incarnation
    return observation.model_copy(update=changes)


async def record(context: GuardContext) -> None:
    """Print the status line and write the look to the ledger, where it can be written."""
    line = line_of(context)
    status_lines.info("%s", line)
    if context.observation is None:
        return
    try:
        await context.ledger.record_observation(context.lease, context.observation, line)
        await remember_later(context)
    except LedgerUnavailableError as problem:
        logger.warning("the ledger could not record this check: %s", problem)
