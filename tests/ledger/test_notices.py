"""Told once, never too often; and what happened on which node."""

from __future__ import annotations

import asyncio

from tests.ledger.facts import KEY, NOW
from trainguard.core.history import NodeEvent
from trainguard.core.verdict import FaultClass
from trainguard.ledger.ledger import Ledger


async def test_a_message_is_sent_once(ledger: Ledger) -> None:
    assert await ledger.note_notification(KEY, "inc00001", "opened", NOW, 10)
    await ledger.mark_notified(KEY, "inc00001", "opened", NOW + 1)
    assert not await ledger.note_notification(KEY, "inc00001", "opened", NOW + 9999, 10)
    assert await ledger.note_notification(KEY, "inc00001", "ended", NOW + 2, 10)


async def test_a_message_whose_sender_died_is_sent_by_the_next(ledger: Ledger) -> None:
    assert await ledger.note_notification(KEY, "inc00001", "opened", NOW, 1)
    assert not await ledger.note_notification(KEY, "inc00001", "opened", NOW + 59, 1)
    assert await ledger.note_notification(KEY, "inc00001", "opened", NOW + 60, 1)


async def test_a_job_has_so_many_messages_and_no_more(ledger: Ledger) -> None:
    claims = [ledger.note_notification(KEY, f"inc{n}", "opened", NOW, 3) for n in range(8)]
    assert sum(await asyncio.gather(*claims)) == 3
    assert await ledger.note_notification("another/job/here", "inc9", "opened", NOW, 3)
    assert not await ledger.note_notification(KEY, "inc99", "opened", NOW, 0)


async def test_of_two_guards_one_sends(ledger: Ledger) -> None:
    claims = [ledger.note_notification(KEY, "inc00001", "opened", NOW, 10) for _ in range(6)]
    assert sum(await asyncio.gather(*claims)) == 1


async def test_a_nodes_history_counts_each_fault_of_an_incident_once(ledger: Ledger) -> None:
    for incident, fault, at in [
        ("inc00001", FaultClass.GPU_HARDWARE, NOW),
        ("inc00001", FaultClass.GPU_HARDWARE, NOW + 5),
        ("inc00002", FaultClass.GPU_HARDWARE, NOW + 50),
        ("inc00000", FaultClass.NODE_FAILURE, NOW - 50),
    ]:
        await ledger.add_node_event("n1", KEY, incident, fault, at)
    event = NodeEvent(node="n1", job_key=KEY, incident="inc00001", fault=FaultClass.GPU_HARDWARE, at=NOW)
    later = event.model_copy(update={"incident": "inc00002", "at": NOW + 50})
    assert await ledger.node_events("n1", NOW) == [later, event]
    assert await ledger.node_events("n2", 0) == []
