"""A job sends so many messages and no more, and the last room is for what needs a person."""

from __future__ import annotations

from itertools import cycle, islice

import pytest

from trainguard.core.alerts import admitted, due
from trainguard.core.messages import Message, MessageKind, Severity


def message(kind: MessageKind) -> Message:
    return Message(kind=kind, severity=Severity.WARNING, title=kind.value, body="It is so.")


def sent(kinds: list[MessageKind], limit: int) -> list[Message]:
    told: list[Message] = []
    for kind in kinds:
        fits = admitted(message(kind), len(told), limit)
        told += [fits] if fits else []
    return told


def test_after_any_number_of_flaps_questions_and_ends_are_still_told() -> None:
    flaps = list(islice(cycle((MessageKind.BLIND, MessageKind.SIGHTED, MessageKind.DEGRADED)), 60))
    failures = [MessageKind.OPENED] * 30
    told = sent([*flaps, *failures, *[MessageKind.APPROVAL, MessageKind.ENDED] * 5], 20)
    kinds = [one.kind for one in told]
    assert len(kinds) == 20
    assert kinds.count(MessageKind.OPENED) == 5
    assert kinds[15:] == [*[MessageKind.APPROVAL, MessageKind.ENDED] * 2, MessageKind.APPROVAL]


def test_the_last_ones_say_what_is_still_told() -> None:
    kinds = [MessageKind.BLIND] * 10 + [MessageKind.OPENED] * 5 + [MessageKind.APPROVAL] * 5
    told = sent(kinds, 20)
    notes = {number: one.body for number, one in enumerate(told, 1) if one.body != "It is so."}
    assert notes == {
        10: "It is so.\nFrom now on only failures, questions and ends are told of this job: "
        "max_alerts_per_job is 20.",
        15: "It is so.\nFrom now on only questions and ends are told of this job: max_alerts_per_job is 20.",
        20: "It is so.\nFrom now on nothing more is told of this job: max_alerts_per_job is 20.",
    }


@pytest.mark.parametrize("limit", range(12))
def test_no_limit_is_ever_passed_and_the_last_message_says_that_it_is_the_last(limit: int) -> None:
    for kind in MessageKind:
        assert admitted(message(kind), limit, limit) is None
    told = sent([MessageKind.BLIND] * 30 + [MessageKind.OPENED] * 30 + [MessageKind.ENDED] * 30, limit)
    assert len(told) == limit
    assert all("nothing more is told" in one.body for one in told[-1:])
    if limit:
        assert told[0].kind is MessageKind.BLIND


def test_a_clock_that_was_set_back_holds_up_no_message() -> None:
    assert due(1000.0, 1060.0, 1061.0) == 1120.0
    assert due(1000.0, 1060.0, 500.0) == 500.0
    assert due(1000.0, 0.0, 500.0) == 500.0
