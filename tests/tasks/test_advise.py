"""Advice outlives the guard that paid for it, and a ledger that is away costs no more than the advice."""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from trainguard.core.errors import LedgerUnavailableError
from trainguard.ledger.ledger import Ledger
from trainguard.tasks.advise import LedgerCache
from trainguard.tasks.context import GuardContext


def guard(ledger: object) -> GuardContext:
    return cast(GuardContext, SimpleNamespace(ledger=ledger, clock=time.time))


async def test_the_next_guard_finds_what_this_one_paid_for(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'ledger.db'}"
    async with await Ledger.open(url) as ledger:
        await LedgerCache(guard(ledger)).put("question", "answer")
    async with await Ledger.open(url) as ledger:
        assert await LedgerCache(guard(ledger)).get("question") == "answer"


class _Away:
    async def advice(self, *said: Any) -> None:
        raise LedgerUnavailableError(f"away: {said}")

    keep_advice = advice


async def test_a_ledger_that_is_away_means_asking_again() -> None:
    cache = LedgerCache(guard(_Away()))
    await cache.put("question", "answer")
    assert await cache.get("question") is None
