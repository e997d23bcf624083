"""However and whenever people answer, one decision counts, it has a name, and who is overruled is told."""

from __future__ import annotations

import asyncio
import logging
from typing import Any
from uuid import UUID

import httpx
import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import StateType
from prefect.client.schemas.responses import SetStateStatus
from prefect.exceptions import PrefectException
from prefect.flow_runs import apause_flow_run
from prefect.runtime import flow_run
from prefect.states import Cancelled, Cancelling, Paused

from tests.flows.simulation import QuickScheduler, SimulatedClusterBlock, Simulation
from tests.survival.scene import until
from trainguard.core.decision import Answer, ApprovalRequest, Intent, Lease
from trainguard.core.errors import LedgerUnavailableError
from trainguard.core.incident import Incident, IncidentState
from trainguard.core.policy import Policy, Preset
from trainguard.core.signal import SignalKind
from trainguard.ledger.ledger import Ledger
from trainguard.tasks import approval_form
from trainguard.testing.simulated import Fault, FaultKind
from trainguard.worker.remains import settle_children

pytestmark = [pytest.mark.usefixtures("prefect_api", "ledger_url"), pytest.mark.timeout(300)]
ASSIST = Policy(preset=Preset.ASSIST)


async def ask(policy: Policy = ASSIST) -> tuple[Simulation, asyncio.Task[Any], ApprovalRequest]:
    """Let a job fail and wait until its guard's question is shown."""
    simulation = Simulation(Fault(FaultKind.NCCL, 95))
    guarding = simulation.guard(policy)
    question = await simulation.question()
    await until(lambda: in_state(question.flow_run_id, StateType.PAUSED), "the pause")
    return simulation, guarding, question


async def in_state(flow_run_id: str, *wanted: StateType) -> bool | None:
    """Whether a run is in one of these states."""
    async with get_client() as client:
        state = (await client.read_flow_run(UUID(flow_run_id))).state
    return (state is not None and state.type in wanted) or None


async def click(question: ApprovalRequest, decision: str = "approve", by: str = "uma") -> bool:
    """Submit the form; whether Prefect took it (`aresume_flow_run` does not tell of one that came too late)."""
    form = {"decision": decision, "decided_by": by}
    async with get_client() as client:
        try:
            answer = await client.resume_flow_run(UUID(question.flow_run_id), run_input=form)
        except PrefectException:
            return False
    return answer.status is SetStateStatus.ACCEPT


async def decision(question: ApprovalRequest) -> tuple[str, str, Answer]:
    """Who decided what, by which way."""
    async with await Ledger.open() as ledger:
        found = await ledger.answer_of(question.id)
    assert found is not None
    return found.by, found.via, found.answer


def overruled(caplog: pytest.LogCaptureFixture, by: str) -> list[str]:
    """What was said about an answer that does not count."""
    return [line for line in caplog.messages if f"the answer of {by}" in line and "does not count" in line]


async def test_a_double_click_is_one_decision() -> None:
    simulation, guarding, question = await ask()
    await asyncio.gather(click(question), click(question))
    assert (await guarding).message == "succeeded, recovered 1 time"
    assert simulation.starts == 2
    assert await decision(question) == ("uma", "ui", Answer.APPROVE)


@pytest.mark.parametrize("first", ["ui", "cli", "together"])
async def test_of_answers_from_both_sides_one_counts_and_the_other_is_named(
    first: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO, logger="trainguard")
    simulation, guarding, question = await ask()
    if first == "ui":
        clicked, accepted = await click(question), await simulation.answer(question, Answer.REFUSE)
    elif first == "cli":
        accepted, clicked = await simulation.answer(question, Answer.REFUSE), await click(question)
    else:
        clicked, accepted = await asyncio.gather(click(question), simulation.answer(question, Answer.REFUSE))
    state = await guarding
    by, via, answer = await decision(question)
    assert (by, via) == (("tess", "cli") if accepted else ("uma", "ui"))
    assert simulation.starts == (2 if answer is Answer.APPROVE else 1)
    assert ("recovered 1 time" in state.message) == (answer is Answer.APPROVE)
    if clicked and accepted:
        (said,) = set(overruled(caplog, "uma"))
        assert "already answered: refuse by tess (cli)" in said


async def test_a_form_filled_in_for_a_dead_guard_counts_though_prefect_is_away_as_the_next_one_starts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    simulation, guarding, question = await ask()
    assert await click(question)
    guarding.cancel()
    await asyncio.gather(guarding, return_exceptions=True)
    assert simulation.starts == 1
    reading = approval_form._entered

    async def away_at_first(flow_run_id: str, key: str) -> Any:
        async with await Ledger.open() as ledger:
            known = await ledger.request(question.id)
        if known is None or known.flow_run_id == question.flow_run_id:
            raise TimeoutError("Prefect is away")
        return await reading(flow_run_id, key)

    monkeypatch.setattr(approval_form, "_entered", away_at_first)
    state = await simulation.guard(ASSIST)
    assert state.message == "succeeded, recovered 1 time"
    assert await decision(question) == ("uma", "ui", Answer.APPROVE)
    assert simulation.starts == 2


async def test_a_click_as_the_job_moves_on_restarts_nothing() -> None:
    simulation, guarding, question = await ask()
    simulation.cluster.start(simulation.native)  # its owner starts it again
    await click(question)
    assert (await guarding).message.startswith("succeeded")
    assert simulation.starts == 2
    (incident,) = await simulation.incidents()
    assert incident.state in {IncidentState.DISMISSED, IncidentState.UNRECOVERABLE}
    assert not await click(question)
    assert not await simulation.answer(question, Answer.APPROVE)


async def test_an_answer_read_after_the_deadline_is_told_and_the_safe_one_counts(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The guard is kept from looking until the deadline is over."""
    simulation, guarding, question = await ask(Policy(preset=Preset.ASSIST, approval_deadline=6))
    reading, kept = Ledger.answer_of, asyncio.Event()

    async def away(self: Ledger, request_id: str) -> Any:
        if simulation.cluster.clock() < question.deadline:
            kept.set()
            raise LedgerUnavailableError("locked")
        return await reading(self, request_id)

    monkeypatch.setattr("trainguard.tasks.durable.RETRY_SECONDS", 0.2)
    monkeypatch.setattr(Ledger, "answer_of", away)
    await asyncio.wait_for(kept.wait(), 6)
    assert await click(question)
    state = await guarding
    assert "refused by nobody (deadline)" in state.message
    assert simulation.starts == 1
    assert "too late" in overruled(caplog, "uma")[0]
    assert not await simulation.answer(question, Answer.APPROVE)


async def test_a_stall_that_begins_during_a_question_gets_an_incident_of_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        "trainguard.tasks.log_reading.SECONDS", 0.2
    )  # what it says is known when it falls silent
    simulation = Simulation(Fault(FaultKind.NAN, 195), total=10**6)
    guarding = simulation.guard(ASSIST)
    question = await simulation.question()
    last = simulation.cluster.step(simulation.native, simulation.native.run)
    monkeypatch.setattr(simulation.cluster, "step", lambda *_: last)
    monkeypatch.setattr(QuickScheduler, "_hangs", lambda *_: True)
    await asyncio.sleep(6)  # the guard sees the stall while it waits for the answer
    assert await simulation.answer(question, Answer.REFUSE)

    async def second() -> Incident | None:
        incidents = await simulation.incidents()
        return incidents[1] if len(incidents) > 1 else None

    incident = await until(second, "an incident for the stall")
    assert [signal.kind for signal in incident.signals] == [SignalKind.STALL]
    simulation.cluster.stop("job")
    await guarding


async def test_sight_that_is_lost_during_a_question_is_told(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainguard.core.health._BLIND_SECONDS", 0.5)
    simulation, guarding, question = await ask()
    simulation.cluster.reachable = False
    await until(lambda: said(caplog, "blind: nothing could be seen"), "that the guard sees nothing")
    simulation.cluster.reachable = True
    assert await simulation.answer(question, Answer.APPROVE)
    assert (await guarding).message == "succeeded, recovered 1 time"


async def said(caplog: pytest.LogCaptureFixture, words: str) -> bool | None:
    """Whether the guard's log says so."""
    return any(words in line for line in caplog.messages) or None


async def test_cancelling_the_question_refuses_it() -> None:
    async def cancel(state: Any) -> None:
        simulation, guarding, question = await ask()
        async with get_client() as client:
            await client.set_flow_run_state(UUID(question.flow_run_id), state, force=True)
        assert "refused by who cancelled the run" in (await guarding).message
        assert simulation.starts == 1
        assert await in_state(question.flow_run_id, StateType.CANCELLED)

    await SimulatedClusterBlock.register_type_and_schema()
    await asyncio.gather(cancel(Cancelling()), cancel(Cancelled()))


async def test_a_question_whose_run_was_settled_by_a_worker_is_not_refused() -> None:
    """A worker thought the guard dead: its page is over, the question is not."""
    simulation, guarding, question = await ask()
    assert await settle_children(guard_run_of(await lease_of(simulation)), "its guard's process died")
    assert await in_state(question.flow_run_id, StateType.CANCELLED)
    await asyncio.sleep(3)
    assert await simulation.answer(question, Answer.APPROVE)
    assert (await guarding).message == "succeeded, recovered 1 time"
    assert simulation.starts == 2


async def lease_of(simulation: Simulation) -> Lease:
    """The lease on the job."""
    async with await Ledger.open() as ledger:
        lease = await ledger.lease(simulation.job.key)
    assert lease is not None
    return lease


def guard_run_of(lease: Lease) -> UUID:
    """The flow run of the guard that holds a lease."""
    return UUID(lease.holder.rpartition(":")[2])


async def test_a_guard_that_waits_for_its_cluster_before_it_acts_can_be_cancelled() -> None:
    simulation, guarding, question = await ask()
    simulation.cluster.reachable = False
    assert await simulation.answer(question, Answer.APPROVE)
    await asyncio.sleep(4)  # the last look before the act sees nothing
    async with get_client() as client:
        await client.set_flow_run_state(guard_run_of(await lease_of(simulation)), Cancelling(), force=True)
    assert (await guarding).is_cancelled()
    simulation.cluster.reachable = True
    assert (await simulation.guard(ASSIST)).message == "succeeded, recovered 1 time"
    assert simulation.starts == 2


async def test_cancelling_the_guard_leaves_the_question_to_the_next_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("trainguard.tasks.prefect_view.CANCEL_SECONDS", 0.2)
    simulation, guarding, question = await ask()
    guard_run = guard_run_of(await lease_of(simulation))
    async with get_client() as client:
        await client.set_flow_run_state(guard_run, Cancelling(), force=True)
    assert (await guarding).is_cancelled()
    assert await in_state(question.flow_run_id, StateType.CANCELLED)
    assert simulation.starts == 1
    assert await simulation.answer(question, Answer.APPROVE)
    state = await simulation.guard(ASSIST)
    assert state.message == "succeeded, recovered 1 time"
    assert simulation.starts == 2


async def test_a_question_cancelled_together_with_its_guard_is_left_to_the_next_one() -> None:
    """Prefect cancels the runs of a cancelled guard with it, and nobody asked the guard's own run for a while."""
    simulation, guarding, question = await ask()
    guard_run = guard_run_of(await lease_of(simulation))
    async with get_client() as client:
        await client.set_flow_run_state(guard_run, Cancelled(), force=True)
        end: Any = Cancelled(message="The parent flow run was cancelled.")
        await client.set_flow_run_state(UUID(question.flow_run_id), end, force=True)
    assert (await guarding).is_cancelled()
    assert await simulation.answer(question, Answer.APPROVE)
    assert (await simulation.guard(ASSIST)).message == "succeeded, recovered 1 time"
    assert simulation.starts == 2


async def test_a_pause_whose_form_was_never_stored_is_followed_by_one_that_can_be_answered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(approval_form, "SHOW_AGAIN_SECONDS", 0.2)
    tried = list[str]()

    async def without_a_form_at_first(**wanted: Any) -> Any:
        tried.append(wanted["key"])
        if len(tried) == 1:
            async with get_client() as client:
                run_id = UUID(flow_run.id or "")
                await client.set_flow_run_state(run_id, Paused(timeout_seconds=900), force=True)
            raise httpx.ReadError("the server died when it had paused the run")
        return await apause_flow_run(**wanted)

    monkeypatch.setattr(approval_form, "apause_flow_run", without_a_form_at_first)
    simulation = Simulation(Fault(FaultKind.NCCL, 95))
    guarding = simulation.guard(ASSIST)
    question = await simulation.question()

    async def taken() -> bool | None:
        return (len(tried) > 1 and await click(question)) or None

    await until(taken, "a form that can be filled in")
    assert (await guarding).message == "succeeded, recovered 1 time"
    assert await decision(question) == ("uma", "ui", Answer.APPROVE)


async def test_an_intent_whose_writing_was_not_confirmed_is_gone_on_with(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    writing, writes = Ledger.write_intent, list[str]()

    async def unconfirmed_at_first(self: Ledger, lease: Lease, intent: Intent) -> None:
        await writing(self, lease, intent)
        writes.append(intent.fence.token)
        if len(writes) == 1:
            raise LedgerUnavailableError("the connection broke at the commit")

    monkeypatch.setattr(Ledger, "write_intent", unconfirmed_at_first)
    simulation = Simulation(Fault(FaultKind.NCCL, 95))
    assert (await simulation.guard()).message == "succeeded, recovered 1 time"
    assert (len(writes), simulation.starts) == (1, 2)
