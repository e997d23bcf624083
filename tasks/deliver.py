"""Sending what a guard has to tell until somebody took it, beside the guard: no channel holds it up or ends it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from trainguard.core.alerts import FIRST_WAIT
from trainguard.core.errors import LedgerUnavailableError, TrainguardError
from trainguard.core.messages import Message, MessageKind
from trainguard.ledger.notices import Posted
from trainguard.tasks.context import GuardContext
from trainguard.tasks.notify import send_to_all

logger = logging.getLogger(__name__)

RECORD_SECONDS = 15.0
"""Seconds after which a ledger that was away is tried again."""
CUT_OFF_SECONDS = 5.0
"""Seconds that a message may take to be cut off when the guard ends."""
LAST_SECONDS = 600.0
"""Seconds for which a guard whose job is over waits until its last messages are taken."""


async def post(context: GuardContext, about: str, message: Message) -> None:
    """Put a message on record, to be sent once. Raises LedgerUnavailableError: nothing is told then."""
    if not context.notifiers:
        return
    limit, key = context.policy.max_alerts_per_job, context.job.key
    if await context.ledger.post_message(key, about, message, context.clock(), limit):
        context.outbox.stir()


def post_later(context: GuardContext, about: str, message: Message) -> None:
    """Have a message put on record when the ledger can be used; nobody waits for that."""
    if context.notifiers:
        context.outbox.later.append((about, message))
        context.outbox.stir()


def tell_unrecorded(context: GuardContext, message: Message) -> None:
    """Have a message sent that the ledger can't count, because it is away or was."""
    if context.notifiers:
        context.outbox.unrecorded.append(message)
        context.outbox.stir()


@asynccontextmanager
async def delivering(context: GuardContext) -> AsyncIterator[None]:
    """Send what is to be sent, and again what nobody took, while the guard stands. What is left waits for the next."""
    if not context.notifiers:
        yield
        return
    task = asyncio.create_task(_deliver(context), name=f"messages about {context.job.name}")
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait({task}, timeout=CUT_OFF_SECONDS)


async def _deliver(context: GuardContext) -> None:
    outbox = context.outbox
    while True:
        outbox.news.clear()
        try:
            wait = await _round(context)
        except Exception:
            logger.exception("sending messages about %s goes on after an error of our own", context.job.name)
            wait = FIRST_WAIT
        if wait is None and not outbox.news.is_set():
            outbox.idle.set()
        with suppress(TimeoutError):
            async with asyncio.timeout(wait):
                await outbox.news.wait()


async def await_delivery(context: GuardContext) -> None:
    """Give the last messages of a guard their time: there may be no other one to send them."""
    if not context.notifiers:
        return
    if not context.outbox.idle.is_set():
        logger.info("the last messages about %s are on their way", context.job.name)
    try:
        async with asyncio.timeout(LAST_SECONDS):
            await context.outbox.idle.wait()
    except TimeoutError:
        logger.warning("some messages about %s were taken by nobody", context.job.name)


async def _round(context: GuardContext) -> float | None:
    """Send what is due. Gives the seconds until something is due again, None where nothing is left."""
    ledger, outbox, key = context.ledger, context.outbox, context.job.key
    for message in tuple(outbox.unrecorded):
        if await _taken(context, message) and message in outbox.unrecorded:
            outbox.unrecorded.remove(message)
    try:
        while outbox.later:
            await post(context, *outbox.later[0])
            outbox.later.pop(0)
        while (due := await ledger.message_due(key, context.clock())) is not None and due <= context.clock():
            posted = await ledger.take_message(key, context.clock())
            if posted is not None:  # else another guard was quicker
                await _send(context, posted)
    except TrainguardError as problem:
        logger.warning("messages wait for the ledger: %s", problem)
        return RECORD_SECONDS
    waits = [FIRST_WAIT] if outbox.unrecorded else []
    waits += [] if due is None else [min(max(due - context.clock(), 1.0), FIRST_WAIT)]
    return min(waits, default=None)


async def _send(context: GuardContext, posted: Posted) -> None:
    outbox, key, about, kind = context.outbox, context.job.key, posted.about, posted.message.kind
    if (about, kind) not in outbox.sent:
        if kind is MessageKind.APPROVAL and not await _still_asked(context, about):
            await context.ledger.withdraw_message(key, about, kind)
            return
        if not await _taken(context, posted.message):
            return
        outbox.sent.add((about, kind))
    try:
        await context.ledger.mark_notified(key, about, kind, context.clock())
        outbox.sent.discard((about, kind))
    except LedgerUnavailableError as problem:
        logger.warning("a sent message could not be marked yet: %s", problem)


async def _taken(context: GuardContext, message: Message) -> bool:
    """Send a message on every channel; say whether some channel took it."""
    results = await send_to_all(context.notifiers, message)
    taken = sum(result.sent for result in results)
    logger.info("told on %d of %d channels: %s", taken, len(results), message.title)
    return taken > 0


async def _still_asked(context: GuardContext, request_id: str) -> bool:
    return any(row.id == request_id for row in await context.ledger.open_requests(context.job.key))
