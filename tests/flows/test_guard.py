"""What a guard does with a job: on a simulated cluster, with a real Prefect server and a real ledger."""

from __future__ import annotations

import asyncio
import itertools
import time
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from prefect.client.orchestration import get_client
from prefect.flow_runs import aresume_flow_run
from prefect.states import Cancelling

from tests.flows.simulation import QuickScheduler, Simulation, until
from trainguard.core.action import Action, ActionKind, Fence, Outcome, OutcomeStatus
from trainguard.core.decision import Answer
from trainguard.core.errors import AccessRefusedError
from trainguard.core.incident import Incident, IncidentState
from trainguard.core.job import Job, JobRef
from trainguard.core.observation import LogBatch
from trainguard.core.policy import Allow, Policy, Preset
from trainguard.core.signal import Signal, SignalKind
from trainguard.core.signal_meaning import meaning_of
from trainguard.core.verdict import Diagnosis, FaultClass
from trainguard.flows import guard as guard_module
from trainguard.ledger.ledger import Ledger
from trainguard.tasks import collect
from trainguard.tasks.check import check_job
from trainguard.tasks.context import GuardContext
from trainguard.tasks.incidents import open_incident
from trainguard.testing.simulated import Fault, FaultKind, SimulatedScheduler

pytestmark = pytest.mark.usefixtures("prefect_api", "ledger_url")

ASSIST = Policy(preset=Preset.ASSIST)


async def test_a_whitelisted_crash_comes_back_from_its_checkpoint_and_progress_is_verified() -> None:
    simulation = Simulation(Fault(FaultKind.NCCL, 95))
    state = await simulation.guard(Policy(allow=(Allow(action=ActionKind.RESTART),)))
    assert (state.name, state.message) == ("Completed", "succeeded, recovered 1 time")
    (incident,) = await simulation.incidents()
    assert incident.state is IncidentState.RECOVERED
    assert incident.checkpoint_step == 90
    assert simulation.starts == 2
    assert simulation.native.run.told == "/checkpoints/step-90"


async def test_the_observe_preset_reports_the_cause_and_never_acts() -> None:
    simulation = Simulation(Fault(FaultKind.NCCL, 95))
    state = await simulation.guard(Policy(preset=Preset.OBSERVE))
    assert state.message.startswith("unrecoverable: not whitelisted")
    assert simulation.starts == 1
    (incident,) = await simulation.incidents()
    async with await Ledger.open() as ledger:
        found = await ledger.diagnosis(incident.id)
        plan = await ledger.plan(incident.id)
    assert found is not None and found.fault is FaultClass.NCCL_COMM
    assert plan is not None and "policy.allow" in plan.steps[0].would_allow


async def test_the_same_error_after_a_fix_stops_and_reports() -> None:
    simulation = Simulation(Fault(FaultKind.NCCL, 95, times=9))
    state = await simulation.guard()
    assert "the same error came back after 1 fix attempt without progress" in state.message
    assert simulation.starts == 2


async def test_an_error_of_the_owners_code_is_reported_with_its_line_and_not_retried() -> None:
    simulation = Simulation(Fault(FaultKind.CODE_BUG, 95))
    state = await simulation.guard()
    assert state.message.startswith("unrecoverable")
    assert simulation.starts == 1
    (incident,) = await simulation.incidents()
    async with await Ledger.open() as ledger:
        found = await ledger.diagnosis(incident.id)
    assert found is not None
    assert (found.fault, found.code_location) == (FaultClass.CODE_BUG, "/home/alice/train.py:120")


async def test_a_failure_before_the_first_step_is_its_owners_to_fix() -> None:
    simulation = Simulation(print_steps=False, total=10**6)
    simulation.cluster.crash("job", FaultKind.NCCL)
    state = await simulation.guard()
    assert "before its first step" in state.message
    assert simulation.starts == 1


async def test_an_idle_job_that_stays_silent_is_restarted() -> None:
    simulation = Simulation(Fault(FaultKind.HANG, 95))
    state = await simulation.guard()
    assert state.message == "succeeded, recovered 1 time"
    (incident,) = await simulation.incidents()
    assert len(incident.signals[0].sources) >= 2


async def test_a_stall_that_ended_by_itself_while_its_cause_was_sought_restarts_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    simulation = Simulation(Fault(FaultKind.HANG, 95), total=10**6)
    collecting = QuickScheduler.collect

    async def slow(self: QuickScheduler, *arguments: Any) -> Any:
        simulation.native.run.fault = None  # it goes on
        await asyncio.sleep(0.5)
        return await collecting(self, *arguments)

    monkeypatch.setattr(QuickScheduler, "collect", slow)
    guarding = simulation.guard()
    await until(lambda: _closed(simulation), "the end of the incident")
    await _left_alone(simulation, guarding)


async def test_a_stall_that_ended_by_itself_is_not_restarted_by_a_late_approval() -> None:
    simulation = Simulation(Fault(FaultKind.HANG, 95), total=10**6)
    guarding = simulation.guard(ASSIST)
    question = await simulation.question()
    simulation.native.run.fault = None  # it goes on
    await simulation.answer(question, Answer.APPROVE)
    await until(lambda: _closed(simulation), "the end of the incident")
    await _left_alone(simulation, guarding)


async def test_a_guard_that_asks_says_so_in_the_ledger_and_on_its_page() -> None:
    simulation = Simulation(Fault(FaultKind.NCCL, 95))
    guarding = simulation.guard(ASSIST)
    question = await simulation.question()

    async def shown() -> bool | None:
        async with get_client() as client:
            pages = await client.read_artifacts()
        mine = [page for page in pages if page.key == f"guard-{simulation.job.name}"]
        return any("AwaitingApproval" in str(page.data) for page in mine) or None

    await until(shown, "the page of a guard that asks")
    assert await _status(simulation) == "AwaitingApproval"
    await simulation.answer(question, Answer.APPROVE)
    assert (await guarding).message == "succeeded, recovered 1 time"
    assert await _status(simulation) == "Completed"


async def _status(simulation: Simulation) -> str:
    async with await Ledger.open() as ledger:
        found = await ledger.job_status(simulation.job.key)
    return found.status if found is not None else ""


async def _closed(simulation: Simulation) -> bool | None:
    incidents = await simulation.incidents()
    return (incidents and incidents[-1].state.closed) or None


async def _left_alone(simulation: Simulation, guarding: asyncio.Task[Any]) -> None:
    """The only incident passed by itself and nothing was done."""
    (incident,) = await simulation.incidents()
    assert (incident.state, simulation.starts) == (IncidentState.DISMISSED, 1)
    assert "passed by itself" in incident.outcome
    simulation.cluster.stop("job")
    assert (await guarding).message.startswith("stopped by its owner")


async def test_a_live_job_that_one_source_calls_lost_waits_for_a_person() -> None:
    simulation = Simulation(Fault(FaultKind.NAN, 195), total=10**6)
    guarding = simulation.guard()
    question = await simulation.question()
    assert simulation.starts == 1
    assert await simulation.answer(question, Answer.APPROVE)
    await until(lambda: _recovered(simulation), "recovery")
    assert simulation.starts == 2
    simulation.cluster.stop("job")
    await guarding


async def _recovered(simulation: Simulation) -> bool | None:
    incidents = await simulation.incidents()
    return (incidents and incidents[-1].state is IncidentState.RECOVERED) or None


async def test_a_job_without_readable_steps_is_known_to_go_on_by_its_checkpoints(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("trainguard.tasks.verify.CHECKPOINT_SECONDS", 0.3)
    simulation = Simulation(Fault(FaultKind.NCCL, 95), total=10**6, print_steps=False)
    guarding = simulation.guard()
    await until(lambda: _recovered(simulation), "recovery")
    assert "a checkpoint of step" in (await simulation.incidents())[0].outcome
    simulation.cluster.stop("job")
    await guarding


async def test_a_stuck_job_that_is_released_has_recovered_once_it_moves(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def release(self: QuickScheduler, job: Job, action: Action, fence: Fence) -> Outcome:
        simulation.native.run.began = simulation.cluster.clock()
        return Outcome(fence=fence.token, status=OutcomeStatus.DONE, at=simulation.cluster.clock())

    def held(incident: Incident) -> Diagnosis:
        found = meaning_of(incident)
        assert found is not None
        return found.model_copy(update={"actions": (ActionKind.RELEASE,)})

    monkeypatch.setattr(QuickScheduler, "supports", QuickScheduler.supports | {ActionKind.RELEASE})
    monkeypatch.setattr(QuickScheduler, "_perform", release)
    monkeypatch.setattr(collect, "meaning_of", held)
    simulation = Simulation(total=10**6, queue_seconds=10**6)
    watching = simulation.job.watching.model_copy(update={"pending_deadline": 1.0})
    simulation.job = simulation.job.model_copy(update={"watching": watching})
    guarding = simulation.guard()
    await until(lambda: _recovered(simulation), "recovery")
    assert simulation.starts == 1
    simulation.cluster.stop("job")
    assert (await guarding).message.endswith("recovered 1 time")


async def test_a_question_is_answered_in_the_ui_form() -> None:
    simulation = Simulation(Fault(FaultKind.NCCL, 95))
    guarding = simulation.guard(ASSIST)
    question = await simulation.question()
    await until(lambda: _paused(question.flow_run_id), "the pause")
    form = {"decision": "approve", "decided_by": "uma", "note": "go on"}
    await aresume_flow_run(UUID(question.flow_run_id), run_input=form)
    state = await guarding
    assert state.message == "succeeded, recovered 1 time"
    async with await Ledger.open() as ledger:
        answer = await ledger.answer_of(question.id)
    assert answer is not None and (answer.by, answer.via, answer.note) == ("uma", "ui", "go on")


async def _paused(flow_run_id: str) -> bool | None:
    async with get_client() as client:
        state = (await client.read_flow_run(UUID(flow_run_id))).state
    return True if state is not None and state.is_paused() else None


async def test_a_refusal_ends_with_what_would_have_been_done() -> None:
    simulation = Simulation(Fault(FaultKind.NCCL, 95))
    guarding = simulation.guard(ASSIST)
    assert await simulation.answer(await simulation.question(), Answer.REFUSE)
    state = await guarding
    assert state.message.startswith("unrecoverable: refused by tess (cli)")
    assert simulation.starts == 1


async def test_a_deadline_gives_the_safe_answer() -> None:
    simulation = Simulation(Fault(FaultKind.NCCL, 95))
    state = await simulation.guard(Policy(preset=Preset.ASSIST, approval_deadline=2))
    assert "refused by nobody (deadline)" in state.message
    assert simulation.starts == 1


async def test_only_the_first_of_two_answers_counts() -> None:
    simulation = Simulation(Fault(FaultKind.NCCL, 95))
    guarding = simulation.guard(ASSIST)
    question = await simulation.question()
    accepted = await asyncio.gather(
        simulation.answer(question, Answer.APPROVE), simulation.answer(question, Answer.REFUSE, by="otto")
    )
    assert sorted(accepted) == [False, True]
    await guarding


async def test_a_question_lapses_when_the_job_moves_on_by_itself() -> None:
    simulation = Simulation(Fault(FaultKind.NCCL, 95))
    guarding = simulation.guard(ASSIST)
    question = await simulation.question()
    simulation.cluster.start(simulation.native)  # its owner starts it again
    state = await guarding
    assert state.message == "succeeded"
    (incident,) = await simulation.incidents()
    assert incident.state is IncidentState.DISMISSED
    assert not await simulation.answer(question, Answer.APPROVE)
    assert simulation.starts == 2


async def test_a_second_guard_refuses_and_names_the_owner_and_take_over_is_explicit() -> None:
    simulation = Simulation(total=10**6)
    first = simulation.guard()
    await until(lambda: _leased(simulation), "the first guard's lease")
    second = await simulation.guard()
    assert second.name == "Refused"
    third = simulation.guard(take_over=True)
    ended = await first
    assert not ended.is_completed()
    simulation.cluster.stop("job")
    assert (await third).name == "Completed"
    assert simulation.starts == 1


async def _leased(simulation: Simulation) -> bool | None:
    async with await Ledger.open() as ledger:
        stand = await ledger.job_status(simulation.job.key)
    return True if stand is not None and stand.status == "Enabled" else None


async def test_a_job_its_owner_stopped_is_left_alone() -> None:
    simulation = Simulation(total=10**6)
    guarding = simulation.guard()
    await until(lambda: _leased(simulation), "the guard")
    simulation.cluster.stop("job")
    state = await guarding
    assert state.message.startswith("stopped by its owner")
    assert simulation.starts == 1


async def test_until_ends_the_monitoring_and_leaves_the_job_alone() -> None:
    simulation = Simulation(total=10**6)
    state = await simulation.guard(until=datetime.now().astimezone() + timedelta(seconds=3))
    assert state.message == "until reached; the job goes on"
    assert simulation.starts == 1 and simulation.native.run.ended is None


async def test_until_ends_a_guard_that_waits_for_an_answer_and_leaves_the_question_open() -> None:
    simulation = Simulation(Fault(FaultKind.NCCL, 95))
    soon = datetime.now().astimezone() + timedelta(seconds=15)
    guarding = simulation.guard(ASSIST, until=soon)
    question = await simulation.question()
    state = await guarding
    assert (state.name, state.message) == ("Completed", "until reached; the job goes on")
    assert simulation.starts == 1
    assert (await simulation.question()).id == question.id
    assert await simulation.answer(question, Answer.APPROVE)
    assert (await simulation.guard(ASSIST)).message == "succeeded, recovered 1 time"


async def test_until_ends_a_guard_that_waits_for_progress() -> None:
    simulation = Simulation(Fault(FaultKind.NCCL, 95))
    simulation.native.queue_seconds = 10**6
    state = await simulation.guard(until=datetime.now().astimezone() + timedelta(seconds=15))
    assert state.message == "until reached; the job goes on"
    (incident,) = await simulation.incidents()
    assert (incident.state, simulation.starts) == (IncidentState.VERIFYING, 2)


async def test_a_guard_cancelled_while_it_seeks_the_cause_does_not_restart_the_job(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    simulation = Simulation(Fault(FaultKind.NCCL, 95))
    collecting = QuickScheduler.collect

    async def cancelled_meanwhile(self: QuickScheduler, *arguments: Any) -> Any:
        await _cancel(simulation)
        return await collecting(self, *arguments)

    monkeypatch.setattr(QuickScheduler, "collect", cancelled_meanwhile)
    assert (await simulation.guard()).is_cancelled()
    assert simulation.starts == 1


async def _cancel(simulation: Simulation) -> None:
    async with await Ledger.open() as ledger:
        lease = await ledger.lease(simulation.job.key)
    assert lease is not None
    async with get_client() as client:
        await client.set_flow_run_state(UUID(lease.holder.rpartition(":")[2]), Cancelling())


async def test_a_guard_cancelled_in_prefect_stops_and_leaves_the_job_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("trainguard.tasks.prefect_view.CANCEL_SECONDS", 0.2)
    simulation = Simulation(total=10**6)
    guarding = simulation.guard()
    await until(lambda: _leased(simulation), "the guard")
    await _cancel(simulation)
    state = await guarding
    assert state.is_cancelled()
    assert simulation.native.run.ended is None
    async with await Ledger.open() as ledger:
        freed = await ledger.lease(simulation.job.key)
    assert freed is None or freed.expires_at <= time.time()


async def test_a_cluster_out_of_reach_is_neither_healthy_nor_failed() -> None:
    simulation = Simulation(Fault(FaultKind.NCCL, 200), total=300)
    guarding = simulation.guard()
    await until(lambda: _leased(simulation), "the guard")
    simulation.cluster.reachable = False
    await asyncio.sleep(8)  # long past the failure: nothing can be seen of it, nothing may be done
    assert simulation.starts == 1
    assert not await simulation.incidents()
    simulation.cluster.reachable = True
    state = await guarding
    assert state.message == "succeeded, recovered 1 time"
    assert simulation.starts == 2


async def test_a_lost_answer_is_looked_up_and_never_repeated() -> None:
    simulation = Simulation(Fault(FaultKind.NCCL, 95))
    simulation.cluster.lose_answers = True
    state = await simulation.guard()
    assert state.message == "succeeded, recovered 1 time"
    assert simulation.starts == 2


async def test_a_stall_seen_by_a_guard_that_dies_at_once_is_answered_by_the_next(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    simulation = Simulation(Fault(FaultKind.HANG, 95), total=200)
    opening, seen = open_incident, asyncio.Event()

    async def dying(context: GuardContext, signals: tuple[Signal, ...]) -> str | None:
        if any(signal.kind is SignalKind.STALL for signal in signals):
            seen.set()
            await asyncio.Event().wait()
        return await opening(context, signals)

    monkeypatch.setattr(guard_module, "open_incident", dying)
    guarding = simulation.guard(Policy(allow=(Allow(action=ActionKind.RESTART),)))
    await asyncio.wait_for(seen.wait(), 60)
    monkeypatch.setattr(guard_module, "open_incident", opening)
    guarding.cancel()
    await asyncio.gather(guarding, return_exceptions=True)
    assert not await simulation.incidents()
    again = simulation.guard(Policy(allow=(Allow(action=ActionKind.RESTART),)))
    (incident,) = await until(lambda: _incidents(simulation), "the incident")
    assert [signal.kind for signal in incident.signals] == [SignalKind.STALL]
    again.cancel()
    await asyncio.gather(again, return_exceptions=True)


async def _incidents(simulation: Simulation) -> list[Incident] | None:
    return await simulation.incidents() or None


async def test_a_log_that_hangs_holds_up_no_detection(monkeypatch: pytest.MonkeyPatch) -> None:
    simulation = Simulation(Fault(FaultKind.NCCL, 95))
    reading, hung = SimulatedScheduler.logs, asyncio.Event()

    async def hanging(self: SimulatedScheduler, job: Job, cursor: str, limit: int) -> LogBatch:
        if simulation.native.run.ended is not None and simulation.starts == 1:
            hung.set()
            await asyncio.Event().wait()
        return await reading(self, job, cursor, limit)

    monkeypatch.setattr(SimulatedScheduler, "logs", hanging)
    guarding = simulation.guard(Policy(preset=Preset.OBSERVE))
    await asyncio.wait_for(hung.wait(), 60)
    began = time.monotonic()
    await until(lambda: _incidents(simulation), "the incident")
    assert time.monotonic() - began < 60, "a read may take two minutes"
    guarding.cancel()
    await asyncio.gather(guarding, return_exceptions=True)


async def test_a_long_guard_hands_over_with_nothing_lost() -> None:
    simulation = Simulation(total=10**6)
    state = await simulation.guard(checks_a_run=2)
    assert state.name == "HandedOver"
    successor = simulation.guard()
    await until(lambda: _leased(simulation), "the successor")
    simulation.cluster.stop("job")
    assert (await successor).name == "Completed"


async def test_an_unknown_job_is_said_to_be_unknown() -> None:
    simulation = Simulation()
    del simulation.cluster.jobs["job"]
    state = await simulation.guard()
    assert state.name == "CredentialError"
    assert "no job" in state.message


async def test_checkpoints_that_may_not_be_read_at_the_failure_end_no_guard(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def refused(self: QuickScheduler, job: Job) -> None:
        raise AccessRefusedError("not you")

    monkeypatch.setattr(QuickScheduler, "checkpoints", refused)
    simulation = Simulation(Fault(FaultKind.NCCL, 95), print_steps=False)
    state = await simulation.guard()
    assert state.name == "Completed"
    assert "before its first step" in state.message


async def test_an_error_of_the_cluster_that_nobody_expected_ends_no_guard_on_duty(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls = itertools.count()

    async def refused_once(context: GuardContext) -> Any:
        if next(calls) == 0:
            raise AccessRefusedError("not you")
        return await check_job(context)

    monkeypatch.setattr(guard_module, "check_job", refused_once)
    state = await Simulation(total=100).guard()
    assert (state.name, state.message) == ("Completed", "succeeded")


async def test_a_job_given_by_its_id_alone_is_on_the_cluster_that_is_given_with_it() -> None:
    simulation = Simulation(total=50)
    placed = simulation.job
    simulation.job = Job(ref=JobRef(id="job"))
    state = await simulation.guard()
    assert (state.name, state.message) == ("Completed", "succeeded")
    async with await Ledger.open() as ledger:
        assert await ledger.job_status(placed.key) is not None


async def test_a_job_of_another_cluster_is_refused_with_the_remedy() -> None:
    simulation = Simulation(total=50)
    simulation.job = Job(ref=JobRef(scheduler="simulated", cluster="elsewhere", id="job"))
    state = await simulation.guard()
    assert state.name == "Refused"
    assert "simulated/elsewhere" in state.message and "leave scheduler and cluster empty" in state.message
