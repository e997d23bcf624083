"""Reading a job's log beside everything else: a log that hangs holds up neither its guard nor the others."""

from __future__ import annotations

import asyncio
import logging

from trainguard.core.errors import SchedulerError
from trainguard.core.progress import Reading, read_progress
from trainguard.schedulers.sharing import answered
from trainguard.tasks.context import GuardContext

logger = logging.getLogger(__name__)

BYTES_A_LOOK = 1_000_000
ANSWER_SECONDS = 120.0
"""A read may take so long: slow is not lost."""
WAIT_SECONDS = 5.0
"""A guard waits so long for its log before it judges without what is new in it."""
SECONDS = 10.0
"""A log is read this often between checks: what a scheduler can't see (a NaN) is seen in it."""
READS_A_SECOND = 50
"""From one cluster, for all its guards in this process: beyond it each reads more rarely."""


def log_is_due(context: GuardContext) -> bool:
    """Whether it is this guard's turn to read."""
    every = max(SECONDS, context.watch.size / READS_A_SECOND)
    return not 0 <= context.clock() - context.log_read_at < every


async def read_new_log(context: GuardContext, patience: float = WAIT_SECONDS) -> None:
    """Take in what is new in the logs. What takes longer than `patience` goes on, and is taken in later."""
    under_way = context.log_read is not None and not context.log_read.done()
    if not under_way:
        context.log_read = asyncio.create_task(_read_on(context))
    assert context.log_read is not None
    done, _ = await asyncio.wait({context.log_read}, timeout=patience)
    if under_way and done:
        # What it read may be from before this call.
        context.log_read = asyncio.create_task(_read_on(context))
        done, _ = await asyncio.wait({context.log_read}, timeout=patience)
    for read in done:
        read.result()


async def read_to_the_end(context: GuardContext) -> None:
    """Take in what is left of an incarnation that was replaced: nothing of it may be read later."""
    await read_new_log(context, ANSWER_SECONDS)
    await stop_reading(context)


async def stop_reading(context: GuardContext) -> None:
    """Break off a read under way; what it has not taken in is read again."""
    read, context.log_read = context.log_read, None
    if read is not None and not read.done():
        read.cancel()
        await asyncio.wait({read})


async def _read_on(context: GuardContext) -> None:
    left = BYTES_A_LOOK
    now = context.log_read_at = context.clock()
    try:
        while left > 0:
            batch = await answered(context.scheduler.logs(context.job, context.cursor, left), ANSWER_SECONDS)
            reading = context.reading
            for chunk in batch.chunks:
                left -= len(chunk.text)
                reading = await _read(context, reading, chunk.text, now)
            # Both or neither: a guard stopped in between would fold the same text twice.
            context.reading, context.cursor = reading, batch.cursor
            if not batch.more:
                return
    except SchedulerError as problem:
        logger.info("the log of %s can't be read now: %s", context.job.name, problem)


async def _read(context: GuardContext, before: Reading, text: str, now: float) -> Reading:
    """Fold text into the reading; much of it off the event loop, so that other guards are not held up."""
    pattern = context.job.watching.progress_pattern
    if len(text) < 50_000:
        return read_progress(text, before, now, pattern)
    return await asyncio.to_thread(read_progress, text, before, now, pattern)
