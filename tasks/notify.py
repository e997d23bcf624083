"""Telling people, on every channel at once."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from trainguard.blocks.notifier import NotifierBlock, SendResult
from trainguard.core.messages import Message


async def send_to_all(notifiers: Sequence[NotifierBlock], message: Message) -> tuple[SendResult, ...]:
    """Send one message to every notifier at the same time. Never raises; works while Prefect is down."""
    return tuple(await asyncio.gather(*(notifier.send(message) for notifier in notifiers)))
