"""Messages on their way, as one guard holds them."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from trainguard.core.messages import Message, MessageKind


@dataclass
class Outbox:
    """One guard's messages on their way: those that the ledger does not hold. The others wait there."""

    later: list[tuple[str, Message]] = field(default_factory=list)
    """What they are about, and messages that are still to be put on record."""
    unrecorded: list[Message] = field(default_factory=list)
    """Messages that go out without record, because it is the ledger that is away."""
    sent: set[tuple[str, MessageKind]] = field(default_factory=set)
    """Sent, but the ledger was away when it should have been marked: not sent again."""
    news: asyncio.Event = field(default_factory=asyncio.Event)
    idle: asyncio.Event = field(default_factory=asyncio.Event)

    def stir(self) -> None:
        """Say that there is something to send."""
        self.idle.clear()
        self.news.set()
