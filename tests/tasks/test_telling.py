"""What is told arrives once some channel takes it, however long that takes, and holds up nobody meanwhile."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar, cast

import pytest
from pydantic import Field

from tests.flows.simulation import until
from tests.ledger import facts
from trainguard.blocks.notifier import NotifierBlock
from trainguard.core.errors import LedgerUnavailableError
from trainguard.core.health import Health
from trainguard.core.incident import IncidentState
from trainguard.core.job import Incarnation
from trainguard.core.messages import Message, MessageKind
from trainguard.core.observation import Liveness, Observation
from trainguard.core.policy import Policy
from trainguard.core.signal import Signal, SignalKind
from trainguard.ledger.ledger import Ledger
from trainguard.tasks import deliver
from trainguard.tasks.context import GuardContext, guarding
from trainguard.tasks.deliver import await_delivery, delivering, post, post_later
from trainguard.tasks.durable import durably
from trainguard.tasks.outbox import Outbox
from trainguard.tasks.tell import (
    tell_asked,
    tell_closed,
    tell_missed_end,
    tell_opened,
    tell_record,
    tell_signals,
)


class Channel(NotifierBlock):
    """A chat server that takes messages while it is up."""

    _block_type_slug: ClassVar[str] = "test-channel"

    up: bool = True
    hangs: bool = False
    got: list[Message] = Field(default_factory=list)
    asked: int = 0

    async def _deliver(self, message: Message) -> None:
        self.asked += 1
        if self.hangs:
            await asyncio.sleep(3600)
        if not self.up:
            raise ConnectionError("the chat server is down")
        self.got.append(message)


class Flaky(Ledger):
    """A ledger that is away at times."""

    away = False

    async def _write(self, *arguments: Any, **more: Any) -> Any:
        if self.away:
            raise LedgerUnavailableError("the ledger is away")
        return await super()._write(*arguments, **more)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainguard.core.alerts.FIRST_WAIT", 0.2)
    monkeypatch.setattr(deliver, "FIRST_WAIT", 0.2)
    monkeypatch.setattr(deliver, "RECORD_SECONDS", 0.2)
    monkeypatch.setattr("trainguard.tasks.durable.RETRY_SECONDS", 0.1)


def guard(ledger: Ledger, *channels: Channel, **more: Any) -> GuardContext:
    values: dict[str, Any] = {
        "job": facts.JOB,
        "policy": Policy(),
        "ledger": ledger,
        "notifiers": channels,
        "clock": time.time,
        "outbox": Outbox(),
        "observation": None,
        "health": Health(),
        "flow_run_id": "run-1",
        "blind_since": None,
        "unrecorded_since": None,
        "unrecorded_told": False,
    }
    return cast(GuardContext, SimpleNamespace(**values | more))


async def opened(tmp_path: Path) -> Flaky:
    return await Flaky.open(f"sqlite:///{tmp_path / 'ledger.db'}", patience=1)


async def failed_job(ledger: Ledger) -> None:
    await ledger.register_job(facts.JOB, "{}", facts.NOW)
    lease = await ledger.acquire_lease(facts.KEY, "guard-1", facts.NOW, 600)
    await ledger.open_incident(lease, facts.incident())
    await ledger.add_diagnosis(lease, "inc00001", facts.diagnosis(), facts.NOW)
    await ledger.ask(lease, facts.request(deadline=time.time() + 3600))


async def told(channel: Channel, count: int) -> list[Message]:
    async def enough() -> list[Message] | None:
        return channel.got if len(channel.got) >= count else None

    return await until(enough, f"{count} messages", 15)


async def tell_the_incident(name: str) -> None:
    await {
        "opened": lambda: tell_opened(facts.incident(), facts.diagnosis()),
        "approval": lambda: tell_asked(facts.incident(), facts.request()),
        "ended": lambda: tell_closed(facts.incident()),
    }[name]()


@pytest.mark.parametrize("name", ["opened", "approval", "ended"])
async def test_what_no_channel_took_is_sent_when_one_takes_it_and_only_once(
    name: str, tmp_path: Path
) -> None:
    async with await opened(tmp_path) as ledger:
        await failed_job(ledger)
        channel = Channel(up=False)
        context = guard(ledger, channel)
        async with delivering(context):
            with guarding(context):
                await tell_the_incident(name)

            async def refused() -> bool | None:
                return channel.asked >= 2 or None

            await until(refused, "two refusals", 15)
            channel.up = True
            (message,) = await told(channel, 1)
            await await_delivery(context)
        assert message.kind == name
        assert await ledger.message_due(facts.KEY, time.time()) is None
        assert len(channel.got) == 1


async def test_what_one_channel_took_is_not_sent_again_for_the_other(tmp_path: Path) -> None:
    async with await opened(tmp_path) as ledger:
        broken, working = Channel(up=False), Channel()
        context = guard(ledger, broken, working)
        async with delivering(context):
            await post(context, "inc00001", a_message())
            await await_delivery(context)
        assert (broken.asked, len(working.got)) == (1, 1)


async def test_the_next_guard_sends_what_a_dead_one_could_not(tmp_path: Path) -> None:
    async with await opened(tmp_path) as ledger:
        await post(guard(ledger, Channel()), "inc00001", a_message())
        channel = Channel()
        async with delivering(guard(ledger, channel)):
            assert await told(channel, 1) == [a_message()]


async def test_a_question_that_was_answered_meanwhile_is_not_announced(tmp_path: Path) -> None:
    async with await opened(tmp_path) as ledger:
        await failed_job(ledger)
        channel = Channel()
        context = guard(ledger, channel)
        with guarding(context):
            await tell_the_incident("approval")
        await ledger.answer(facts.answer(), None, facts.NOW + 10)
        async with delivering(context):
            await await_delivery(context)
        assert channel.got == []


async def test_an_end_that_a_dead_guard_did_not_tell_is_told_by_the_next_once(tmp_path: Path) -> None:
    async with await opened(tmp_path) as ledger:
        await failed_job(ledger)
        lease = await ledger.acquire_lease(facts.KEY, "guard-1", facts.NOW, 600)
        ended = facts.incident(state=IncidentState.UNRECOVERABLE, closed_at=facts.NOW + 60, outcome="refused")
        await ledger.update_incident(lease, ended)
        channel = Channel()
        context = guard(ledger, channel, clock=lambda: facts.NOW + 100)
        async with delivering(context):
            with guarding(context):
                await tell_missed_end(context)
                await await_delivery(context)
                await tell_missed_end(context)
                await await_delivery(context)
        assert [message.title for message in channel.got] == ["Not recoverable: llama"]
        later = guard(ledger, channel, clock=lambda: facts.NOW + 100_000)
        with guarding(later):
            await tell_missed_end(later)
        assert await ledger.message_due(facts.KEY, facts.NOW + 100_000) is None


async def test_a_guard_without_channels_asks_its_ledger_for_nothing() -> None:
    context = guard(cast(Ledger, None))
    async with delivering(context):
        await post(context, "inc00001", a_message())
        await await_delivery(context)


async def test_a_channel_that_hangs_holds_up_nobody(tmp_path: Path) -> None:
    async with await opened(tmp_path) as ledger:
        context = guard(ledger, Channel(hangs=True))
        began = time.monotonic()
        async with delivering(context):
            await post(context, "inc00001", a_message())
            await asyncio.sleep(0.3)
        assert time.monotonic() - began < 3


@pytest.mark.parametrize("name", ["opened", "approval", "ended"])
async def test_who_waits_durably_waits_for_the_record_of_a_message(name: str, tmp_path: Path) -> None:
    async with await opened(tmp_path) as ledger:
        await failed_job(ledger)
        channel = Channel()
        context = guard(ledger, channel)
        ledger.away = True
        async with delivering(context):
            with guarding(context):
                telling = asyncio.create_task(durably(tell_the_incident, name))
            await asyncio.sleep(0.5)
            assert not telling.done()
            ledger.away = False
            await telling
            assert [message.kind for message in await told(channel, 1)] == [name]


async def test_an_incidents_second_question_is_told_too(tmp_path: Path) -> None:
    async with await opened(tmp_path) as ledger:
        await failed_job(ledger)
        lease = await ledger.acquire_lease(facts.KEY, "guard-1", facts.NOW, 600)
        second = facts.request("inc00001-2", deadline=time.time() + 3600)
        await ledger.ask(lease, second)
        channel = Channel()
        context = guard(ledger, channel)
        async with delivering(context):
            with guarding(context):
                for request in (facts.request(), second, second):
                    await tell_asked(facts.incident(), request)
            await told(channel, 2)
            await await_delivery(context)
        assert len(channel.got) == 2


async def test_what_nobody_waits_for_is_put_on_record_once_the_ledger_is_back(tmp_path: Path) -> None:
    async with await opened(tmp_path) as ledger:
        channel = Channel()
        context = guard(ledger, channel)
        ledger.away = True
        async with delivering(context):
            post_later(context, "blind-1", a_message())
            await asyncio.sleep(0.5)
            ledger.away = False
            assert await told(channel, 1) == [a_message()]


async def test_a_message_that_could_not_be_marked_is_not_sent_twice_by_the_same_guard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with await opened(tmp_path) as ledger:
        channel = Channel()
        context = guard(ledger, channel)
        await post(context, "inc00001", a_message())

        async def fails(*said: object) -> None:
            raise LedgerUnavailableError(f"away: {said}")

        marking = ledger.mark_notified
        monkeypatch.setattr(ledger, "mark_notified", fails)
        async with delivering(context):
            await told(channel, 1)
            await asyncio.sleep(0.5)
            monkeypatch.setattr(ledger, "mark_notified", marking)
            await await_delivery(context)
        assert len(channel.got) == 1
        assert await ledger.message_due(facts.KEY, time.time()) is None


async def test_that_the_ledger_is_away_is_told_without_it_and_again_until_somebody_takes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainguard.tasks.tell.UNRECORDED_SECONDS", 0.0)
    async with await opened(tmp_path) as ledger:
        channel = Channel(up=False)
        context = guard(ledger, channel)
        ledger.away = True
        async with delivering(context):
            for _ in range(3):
                await tell_record(context, LedgerUnavailableError("the disk is full"))
            await asyncio.sleep(0.5)
            channel.up = True
            assert [message.kind for message in await told(channel, 1)] == [MessageKind.UNRECORDED]
            ledger.away = False
            await tell_record(context, None)
            await told(channel, 2)
            await await_delivery(context)
        assert [message.kind for message in channel.got] == [MessageKind.UNRECORDED, MessageKind.RECORDED]


async def test_a_guard_waits_for_its_last_messages_but_not_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deliver, "LAST_SECONDS", 1.0)
    async with await opened(tmp_path) as ledger:
        context = guard(ledger, Channel(up=False))
        async with delivering(context):
            await post(context, "inc00001", a_message())
            began = time.monotonic()
            await await_delivery(context)
        assert 0.9 < time.monotonic() - began < 5
        assert await ledger.message_due(facts.KEY, time.time()) is not None


def a_message() -> Message:
    return Message(kind=MessageKind.BLIND, severity="warning", title="Can't see the job", body="It is dark.")


def signal(kind: SignalKind, at: float = facts.NOW) -> Signal:
    return Signal(kind=kind, at=at, detail=f"it is {kind}", sources=("log",), incarnation=facts.FIRST)


TOLD = {
    SignalKind.DEGRADED: "Degraded: llama",
    SignalKind.THROUGHPUT_COLLAPSE: "Slower than usual: llama",
    SignalKind.LOW_UTILISATION: "GPUs hardly used: llama",
    SignalKind.EARLY_STOP: "Ended early: llama",
    SignalKind.BLIND: "Can't see the job: llama",
}


@pytest.mark.parametrize("kind", SignalKind)
async def test_a_job_that_does_badly_is_told_of_once_an_episode(kind: SignalKind, tmp_path: Path) -> None:
    async with await opened(tmp_path) as ledger:
        channel = Channel()
        context = guard(ledger, channel, health=Health(unknown_since=1.0))
        async with delivering(context):
            await tell_signals(context, (signal(kind),))
            await tell_signals(context, (signal(kind),))  # the guard that comes after sees it once more
            if kind in TOLD:
                await await_delivery(context)
                await tell_signals(context, (signal(kind, facts.NOW + 600),))
                await told(channel, 2)
            await asyncio.sleep(0.2)
        expected = [TOLD[kind]] * 2 if kind in TOLD else []
        assert [message.title for message in channel.got] == expected
        assert all(f"it is {kind}" in message.body for message in channel.got)


@pytest.mark.parametrize(("now", "logged"), [(facts.FIRST, True), (facts.SECOND, False)])
async def test_what_the_attempt_before_met_is_not_said_of_this_one(
    now: Incarnation, logged: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A guard that takes over finds the failure that its predecessor's incident has dealt with."""
    async with await opened(tmp_path) as ledger:
        context = guard(ledger, observation=seen(Liveness.RUNNING, "running", now))
        with caplog.at_level("WARNING", "trainguard.tasks.tell"):
            await tell_signals(context, (signal(SignalKind.CRASH),))
    assert ("it is crash" in caplog.text) is logged


def seen(liveness: Liveness, native: str, incarnation: Incarnation = facts.FIRST) -> Observation:
    return facts.observation(liveness=liveness, native=native, incarnation=incarnation)


@pytest.mark.parametrize(
    ("observation", "status"),
    [
        (seen(Liveness.FAILED, "OOMKilled"), "OOMKilled"),
        (seen(Liveness.RUNNING, "RUNNING"), "RUNNING (crash)"),
        (seen(Liveness.RUNNING, "RUNNING", facts.SECOND), "crash"),
        (seen(Liveness.UNKNOWN, ""), "crash"),
        (None, "crash"),
    ],
)
async def test_the_status_of_a_failure_is_the_schedulers_own_word(
    observation: Observation | None, status: str, tmp_path: Path
) -> None:
    async with await opened(tmp_path) as ledger:
        channel = Channel()
        context = guard(ledger, channel, observation=observation)
        async with delivering(context):
            with guarding(context):
                await tell_the_incident("opened")
            (message,) = await told(channel, 1)
        assert dict(message.fields)["Status"] == status
