"""A guard tells its people everything that matters, though the chat server is down when it happens."""

from __future__ import annotations

import pytest
from pydantic import SecretStr
from sqlalchemy import delete

from tests.advisors.scripted_server import Answer, serving
from tests.flows.simulation import Simulation, until
from trainguard.blocks.notifier import SlackWebhook
from trainguard.core import decision
from trainguard.core.policy import Policy, Preset
from trainguard.ledger import tables
from trainguard.ledger.ledger import Ledger
from trainguard.tasks import deliver
from trainguard.testing.simulated import Fault, FaultKind

pytestmark = pytest.mark.usefixtures("prefect_api", "ledger_url")


async def test_a_question_and_an_end_that_no_channel_took_are_told_when_one_takes_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("trainguard.core.alerts.FIRST_WAIT", 0.5)
    monkeypatch.setattr(deliver, "FIRST_WAIT", 0.5)
    async with serving(*[Answer(503)] * 4, Answer()) as server:
        address = SecretStr(f"{server.url}/services/T0/B0/x")
        slack = SlackWebhook(url=address, allow_any_host=True, attempts=1, timeout_seconds=5)
        simulation = Simulation(Fault(FaultKind.NCCL, 95))
        guarding = simulation.guard(Policy(preset=Preset.ASSIST), notifiers=[slack])
        question = await simulation.question()

        async def announced() -> bool | None:
            return any("Approval needed" in request.body for request in server.requests[4:]) or None

        await until(announced, "the announcement of the question")
        assert await simulation.answer(question, decision.Answer.APPROVE)
        state = await guarding
        assert state.message == "succeeded, recovered 1 time"
        assert server.requests[-1].json["text"].startswith("Recovered")
        await forget_the_end()
        await simulation.guard(notifiers=[slack])
        titles = [request.json["text"].partition(":")[0] for request in server.requests[4:]]
    assert sorted(titles) == ["Approval needed", "Job failure", "Recovered", "Recovered"]


async def forget_the_end() -> None:
    """Leave the ledger as a guard leaves it that dies between closing an incident and telling its end."""
    ended = delete(tables.notifications).where(tables.notifications.c.kind == "ended")
    async with await Ledger.open() as ledger:
        await ledger._write(lambda tx: tx.execute(ended))
