"""Telling people, on every channel at once."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from prefect import task

from trainguard.blocks.notifier import NotifierBlock, SendResult
from trainguard.core.messages import Message


async def send_to_all(notifiers: Sequence[NotifierBlock], message: Message) -> tuple[SendResult, ...]:
    """Send one message to every notifier at the same time. Never raises; works while Prefect is down."""
    return tuple(await asyncio.gather(*(notifier.send(message) for notifier in notifiers)))


@task(name="notify", task_run_name="notify {message.kind}", persist_result=False)
async def notify(notifiers: Sequence[NotifierBlock], message: Message) -> tuple[SendResult, ...]:
    """Send one message to every notifier; who may be told how often is the ledger's to say, before this."""
    return await send_to_all(notifiers, message)
