"""What a language model said is kept for the next guard."""

from __future__ import annotations

import pytest

import trainguard.ledger.advice
from trainguard.ledger.ledger import Ledger


async def test_an_answer_is_found_again_and_a_newer_one_takes_its_place(ledger: Ledger) -> None:
    assert await ledger.advice("k") is None
    await ledger.keep_advice("k", "first", 1.0)
    await ledger.keep_advice("other", "its own", 2.0)
    await ledger.keep_advice("k", "second", 3.0)
    assert (await ledger.advice("k"), await ledger.advice("other")) == ("second", "its own")


async def test_the_oldest_answers_go(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainguard.ledger.advice, "KEPT", 2)
    for number in range(4):
        await ledger.keep_advice(f"k{number}", "said", float(number))
    assert [await ledger.advice(f"k{number}") is not None for number in range(4)] == [
        False,
        False,
        True,
        True,
    ]
