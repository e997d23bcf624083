"""One question, one answer that counts."""

from __future__ import annotations

import asyncio
import sys

import pytest

from tests.ledger import facts
from tests.ledger.facts import FIRST, KEY, NOW, SECOND
from trainguard.core.decision import Answer, Lease
from trainguard.core.errors import LedgerError
from trainguard.core.history import AnswerResult
from trainguard.core.incident import IncidentState
from trainguard.ledger.ledger import Ledger


@pytest.fixture
async def asked(ledger: Ledger, lease: Lease) -> Lease:
    await ledger.open_incident(lease, facts.incident())
    assert await ledger.ask(lease, facts.request()) == facts.request()
    return lease


async def test_the_first_answer_counts_and_the_second_is_told_so(ledger: Ledger, asked: Lease) -> None:
    first, second = facts.answer("ada"), facts.answer("bob", "slack", Answer.REFUSE)
    assert await ledger.answer(first, FIRST.token, NOW + 10) == AnswerResult(accepted=True, standing=first)
    refused = await ledger.answer(second, FIRST.token, NOW + 11)
    assert (refused.accepted, refused.standing) == (False, first)
    assert "approve by ada (cli)" in refused.reason
    assert await ledger.answer_of("inc00001-1") == first


@pytest.mark.parametrize(
    ("current", "at", "reason"),
    [
        (SECOND.token, NOW + 10, "started again"),
        (FIRST.token, NOW + 3600, "too late"),
        (None, NOW + 10, ""),
        (FIRST.token, NOW + 3599, ""),
    ],
)
async def test_late_and_outdated_answers_are_refused(
    ledger: Ledger, asked: Lease, current: str | None, at: float, reason: str
) -> None:
    result = await ledger.answer(facts.answer(), current, at)
    assert result.accepted is (reason == "")
    assert reason in result.reason
    assert (await ledger.answer_of("inc00001-1") is None) is bool(reason)


async def test_where_the_failed_run_had_no_name_the_first_actions_counts(
    ledger: Ledger, lease: Lease
) -> None:
    await ledger.open_incident(lease, facts.incident())
    await ledger.ask(lease, facts.request(incarnation=None))
    assert not (await ledger.answer(facts.answer(), SECOND.token, NOW + 10)).accepted
    assert (await ledger.answer(facts.answer(), FIRST.token, NOW + 10)).accepted


async def test_the_deadline_can_refuse_and_never_approve(ledger: Ledger, asked: Lease) -> None:
    result = await ledger.answer(facts.answer(via="deadline"), None, NOW + 9999)
    assert (result.accepted, result.reason) == (False, "the deadline can only refuse")
    safe = facts.answer("nobody", "deadline", Answer.REFUSE)
    assert (await ledger.answer(safe, None, NOW + 9999)).accepted


async def test_an_answer_to_nothing_or_to_an_ended_incident_is_refused(ledger: Ledger, asked: Lease) -> None:
    lost = facts.answer().model_copy(update={"request": "nothing"})
    assert (await ledger.answer(lost, None, NOW)).reason == "there is no request nothing"
    await ledger.update_incident(asked, facts.incident(state=IncidentState.DISMISSED))
    assert "ended: dismissed" in (await ledger.answer(facts.answer(), FIRST.token, NOW)).reason
    assert await ledger.open_requests() == []


async def test_a_request_is_open_until_it_is_answered(ledger: Ledger, asked: Lease) -> None:
    assert await ledger.open_requests() == await ledger.open_requests(KEY) == [facts.request()]
    assert await ledger.open_requests("another/job/here") == []
    await ledger.answer(facts.answer(), FIRST.token, NOW + 10)
    assert await ledger.open_requests() == []
    assert await ledger.request("inc00001-1") == facts.request()


async def test_a_successor_asks_again_without_moving_the_deadline(ledger: Ledger, asked: Lease) -> None:
    again = facts.request(
        asked_at=NOW + 60,
        deadline=NOW + 9999,
        flow_run_id="run-2",
        keyset="keys-2",
        plan=facts.plan(at=NOW + 60),
    )
    stored = await ledger.ask(asked, again)
    first = facts.request()
    shown_before = ((first.flow_run_id, first.keyset),)
    assert stored == facts.request(flow_run_id="run-2", keyset="keys-2", earlier=shown_before)
    assert await ledger.request("inc00001-1") == stored
    assert await ledger.ask(asked, again) == stored
    third = await ledger.ask(asked, again.model_copy(update={"flow_run_id": "run-3", "keyset": "keys-3"}))
    assert third.forms == (*shown_before, ("run-2", "keys-2"), ("run-3", "keys-3"))


async def test_another_question_under_the_same_id_is_refused(ledger: Ledger, asked: Lease) -> None:
    with pytest.raises(LedgerError, match="another question"):
        await ledger.ask(asked, facts.request(incarnation=SECOND))
    assert await ledger.request("inc00001-1") == facts.request()


async def test_of_eight_processes_answering_at_once_exactly_one_wins(
    ledger: Ledger, asked: Lease, url: str
) -> None:
    racers = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.ledger.processes", "answer", url, "-", "8",
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert racers.stdout is not None
    for _ in range(8):
        assert await racers.stdout.readline() == b"ready\n"
    out, _errors = await racers.communicate(b"g" * 8)
    said = [line.split() for line in out.decode().splitlines()]
    assert sorted(word for word, _ in said) == ["accepted", *["refused"] * 7]
    standing = await ledger.answer_of("inc00001-1")
    assert standing is not None
    assert [f"person-{number}" for word, number in said if word == "accepted"] == [standing.by]
