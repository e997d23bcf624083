"""Kept until it is told, told once, never too often; and what happened on which node."""

from __future__ import annotations

import asyncio
from itertools import pairwise

from tests.ledger import facts
from tests.ledger.facts import KEY, NOW
from trainguard.core.decision import Lease
from trainguard.core.history import NodeEvent
from trainguard.core.messages import Message, MessageKind, Severity
from trainguard.core.verdict import FaultClass
from trainguard.ledger.ledger import Ledger
from trainguard.ledger.notices import Posted


def message(kind: MessageKind = MessageKind.OPENED, title: str = "Job failure") -> Message:
    return Message(kind=kind, severity=Severity.CRITICAL, title=title, body="a \x00 line \udc80")


async def test_a_message_is_on_record_once_and_taken_until_somebody_marks_it(ledger: Ledger) -> None:
    assert await ledger.post_message(KEY, "inc00001", message(), NOW, 10)
    assert not await ledger.post_message(KEY, "inc00001", message(title="again"), NOW, 10)
    assert await ledger.message_due(KEY, NOW) == NOW
    assert await ledger.take_message(KEY, NOW) == Posted(about="inc00001", message=message())
    assert await ledger.take_message(KEY, NOW + 59) is None
    assert await ledger.message_due(KEY, NOW) == NOW + 60
    assert await ledger.take_message(KEY, NOW + 60) is not None
    await ledger.mark_notified(KEY, "inc00001", "opened", NOW + 61)
    assert await ledger.take_message(KEY, NOW + 9999) is None
    assert await ledger.message_due(KEY, NOW + 9999) is None
    assert not await ledger.post_message(KEY, "inc00001", message(), NOW + 9999, 10)


async def test_a_message_that_nobody_takes_is_tried_ever_more_rarely_and_given_up_after_a_day(
    ledger: Ledger,
) -> None:
    await ledger.post_message(KEY, "inc00001", message(), NOW, 10)
    at, tries = NOW, []
    while (due := await ledger.message_due(KEY, at)) is not None:
        at = due
        if await ledger.take_message(KEY, at):
            tries.append(at - NOW)
    assert tries[:6] == [0, 60, 120, 240, 480, 960]
    assert max(after - before for before, after in pairwise(tries)) == 1800
    assert 40 < len(tries) < 60
    assert tries[-1] < 24 * 3600


async def test_messages_are_taken_in_the_order_in_which_they_were_posted(ledger: Ledger) -> None:
    for number, about in enumerate(("zz", "aa", "mm")):
        await ledger.post_message(KEY, about, message(title=about), NOW + number, 10)
    taken = [await ledger.take_message(KEY, NOW + 3) for _ in range(4)]
    assert [posted and posted.about for posted in taken] == ["zz", "aa", "mm", None]


async def test_of_two_guards_one_sends(ledger: Ledger) -> None:
    await ledger.post_message(KEY, "inc00001", message(), NOW, 10)
    claims = [ledger.take_message(KEY, NOW) for _ in range(6)]
    assert sum(posted is not None for posted in await asyncio.gather(*claims)) == 1


async def test_a_message_that_is_no_longer_true_is_forgotten_and_does_not_count(ledger: Ledger) -> None:
    assert await ledger.post_message(KEY, "inc00001", message(MessageKind.APPROVAL), NOW, 1)
    await ledger.withdraw_message(KEY, "inc00001", "approval")
    assert await ledger.take_message(KEY, NOW) is None
    assert await ledger.post_message(KEY, "inc00001", message(MessageKind.ENDED), NOW, 1)
    await ledger.mark_notified(KEY, "inc00001", "ended", NOW)
    await ledger.withdraw_message(KEY, "inc00001", "ended")
    assert not await ledger.post_message(KEY, "inc00001", message(MessageKind.ENDED), NOW, 1)


async def test_a_job_has_so_many_messages_and_no_more(ledger: Ledger) -> None:
    posts = [ledger.post_message(KEY, f"inc{n}", message(MessageKind.ENDED), NOW, 3) for n in range(8)]
    assert sum(await asyncio.gather(*posts)) == 3
    assert await ledger.post_message("another/job/here", "inc9", message(), NOW, 3)
    assert not await ledger.post_message(KEY, "inc99", message(), NOW, 0)


async def test_a_nodes_history_counts_each_fault_of_an_incident_once(ledger: Ledger, lease: Lease) -> None:
    for incident, fault, at in [
        ("inc00001", FaultClass.GPU_HARDWARE, NOW),
        ("inc00001", FaultClass.GPU_HARDWARE, NOW + 5),
        ("inc00002", FaultClass.GPU_HARDWARE, NOW + 50),
        ("inc00000", FaultClass.NODE_FAILURE, NOW - 50),
    ]:
        await ledger.open_incident(lease, facts.incident(incident))
        await ledger.add_node_events(lease, incident, ("n1", "n3"), fault, at)
    event = NodeEvent(node="n1", job_key=KEY, incident="inc00001", fault=FaultClass.GPU_HARDWARE, at=NOW)
    later = event.model_copy(update={"incident": "inc00002", "at": NOW + 50})
    assert await ledger.node_events("n1", NOW) == [later, event]
    assert len(await ledger.node_events("n1")) == len(await ledger.node_events("n3")) == 3
    assert await ledger.node_events("n2") == []


async def test_an_incidents_nodes_have_the_history_of_their_own_cluster(ledger: Ledger) -> None:
    here = facts.REF
    for name, ref, nodes, at in [
        ("inc00001", here, ("n1", "n2"), NOW),
        ("inc00002", here.model_copy(update={"id": "other"}), ("n2", "n3"), NOW - 10),
        ("inc00003", here.model_copy(update={"cluster": "here2"}), ("n1", "n2"), NOW - 5),
        ("inc00004", here, ("n1",), NOW - 99),
    ]:
        lease = await ledger.acquire_lease(ref.key, "guard", NOW, 600)
        await ledger.open_incident(lease, facts.incident(name, job_key=ref.key))
        await ledger.add_node_events(lease, name, nodes, FaultClass.NCCL_COMM, at)
    found = await ledger.node_history(here, "inc00001", NOW - 50)
    assert {(event.node, event.incident) for event in found} == {
        ("n1", "inc00001"),
        ("n2", "inc00001"),
        ("n2", "inc00002"),
    }
    assert found[-1].incident == "inc00002"
    assert await ledger.node_history(here, "inc00009", 0) == []
