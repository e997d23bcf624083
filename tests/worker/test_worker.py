"""The worker on a real Prefect server, its guards on a simulated cluster."""

from __future__ import annotations

import asyncio
import threading
import time
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun, State
from prefect.flow_runs import aresume_flow_run
from prefect.states import Cancelling, Paused, Running
from prefect.utilities.engine import propose_state
from prefect.workers._worker_channel import WorkPoolWorkerChannel
from pydantic import SecretStr

from tests.flows.simulation import Simulation, until
from tests.worker.pool import GUARD, Pool, children_of, reached, run_of, state_of
from trainguard.blocks.notifier import SlackWebhook
from trainguard.core.decision import Answer
from trainguard.core.incident import IncidentState
from trainguard.core.job import Job, JobRef
from trainguard.core.policy import Policy, Preset
from trainguard.flows import guard as guard_module
from trainguard.flows.guard import guard
from trainguard.ledger.ledger import Ledger
from trainguard.tasks.context import GuardContext, lease_holder
from trainguard.testing.simulated import Fault, FaultKind, SimulatedJob
from trainguard.worker import GuardWorker
from trainguard.worker.adoption import Adoption
from trainguard.worker.engine import GuardRunEngine
from trainguard.worker.leases import served_by_another
from trainguard.worker.pace import Pace
from trainguard.worker.service import parameters_of

ASSIST = Policy(preset=Preset.ASSIST)


async def test_a_guard_runs_in_the_workers_process_and_brings_its_job_back(pool: Pool) -> None:
    simulation = Simulation(Fault(FaultKind.NCCL, 95))
    run = await pool.guard(simulation)
    async with pool.worker():
        state = await reached(run, "Completed", "Failed", "Crashed")
    assert state.message == "succeeded, recovered 1 time"
    assert simulation.starts == 2
    assert {child.state_name for child in await children_of(run)} == {"Completed", "Recovered"}


@flow
async def training(steps: int = 3) -> None:
    raise AssertionError("must never run here")


async def test_a_flow_that_is_no_guard_is_refused_and_told_where_it_may_run(pool: Pool) -> None:
    other = await pool.deploy(training, "flows/training.py:training")
    likeness = await pool.deploy(training.with_options(name="guard"), "flows/guard.py:guard")
    runs = [await pool.schedule(training, {}, deployment) for deployment in (other, likeness)]
    async with pool.worker():
        states = [await reached(run, "NotAGuard") for run in runs]
    assert all(state.is_failed() for state in states)
    assert "deploy this flow to a pool of type `process`" in (states[0].message or "")
    assert "takes steps, which the installed trainguard's guard does not" in (states[1].message or "")


async def _cancel(run: UUID) -> None:
    async with get_client() as client:
        await client.set_flow_run_state(run, Cancelling())


async def _is_free(simulation: Simulation) -> bool:
    async with await Ledger.open() as ledger:
        lease = await ledger.lease(simulation.job.key)
    return lease is None or lease.expires_at <= time.time()


async def test_a_cancelled_guard_stops_frees_its_lease_and_leaves_the_job_alone(pool: Pool) -> None:
    simulation = Simulation(total=10**6)
    run = await pool.guard(simulation)
    async with pool.worker():
        await reached(run, "Enabled")
        await _cancel(run)
        state = await reached(run, "Cancelled")
        assert (state.message or "").endswith("the job goes on")
        await until(lambda: _free(simulation), "the lease freed")
    assert simulation.native.run.ended is None and simulation.starts == 1


async def _free(simulation: Simulation) -> bool | None:
    return await _is_free(simulation) or None


async def test_a_guard_cancelled_while_it_waits_for_approval_leaves_no_run_that_looks_alive(
    pool: Pool,
) -> None:
    simulation = Simulation(Fault(FaultKind.NCCL, 95))
    run = await pool.guard(simulation, ASSIST)
    async with pool.worker():
        await simulation.question()
        await reached(run, "AwaitingApproval")
        await _cancel(run)
        await reached(run, "Cancelled")
        await until(lambda: _all_final(run), "no subflow alive")
    assert {child.name.split()[0]: child.state_name for child in await children_of(run)}[
        "recover"
    ] == "Cancelled"
    assert simulation.starts == 1


async def _all_final(run: UUID) -> bool | None:
    children = await children_of(run)
    return all(child.state is not None and child.state.is_final() for child in children) or None


@pytest.mark.parametrize("how", [SystemError, SystemExit])
async def test_the_trouble_of_one_guard_is_told_and_is_not_the_others(
    how: type[BaseException], pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = guard_module._stand_guard
    broken, sound = Simulation(total=10**6), Simulation(total=10**6)

    async def sometimes(context: GuardContext, *rest: Any) -> Any:
        if context.job.key == broken.job.key:
            raise how("the guard itself is broken")
        return await original(context, *rest)

    monkeypatch.setattr(guard_module, "_stand_guard", sometimes)
    runs = [await pool.guard(one) for one in (broken, sound)]
    async with pool.worker():
        await until(lambda: _says(runs[0], "the guard itself is broken"), "the trouble told")
        await reached(runs[1], "Enabled")
        await asyncio.sleep(1)
        assert (await state_of(runs[1])).name == "Enabled"
    assert (await state_of(runs[0])).name in {"Failed", "Crashed"}


async def _says(run: UUID, words: str) -> bool | None:
    return words in ((await state_of(run)).message or "") or None


async def test_nothing_asks_prefect_by_a_client_that_blocks_the_other_guards(
    pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = list[str]()

    def blocking(client: httpx.Client, request: httpx.Request, **_: Any) -> httpx.Response:
        asked.append(f"{threading.current_thread().name}: {request.url.path}")
        return original(client, request, **_)

    original = httpx.Client.send
    monkeypatch.setattr(httpx.Client, "send", blocking)
    run = await pool.guard(Simulation(Fault(FaultKind.NCCL, 95)))
    async with pool.worker():
        await reached(run, "Completed", "Failed", "Crashed")
    assert [one for one in asked if one.startswith("guards:")] == []


async def test_a_cluster_that_nobody_knows_fails_with_the_reason(pool: Pool) -> None:
    run = await pool.guard(Simulation(), cluster="simulated-cluster/nowhere")
    async with pool.worker():
        state = await reached(run, "Refused", "Failed", "Crashed")
    assert state.is_failed() and "there is no block" in (state.message or "")


async def test_a_flows_own_timeout_is_shown_as_such(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "timeout_seconds", 1.0)
    simulation = Simulation(total=10**6)
    run = await pool.guard(simulation)
    async with pool.worker():
        state = await reached(run, "TimedOut")
    assert state.is_failed()
    assert simulation.native.run.ended is None


async def test_a_stopped_worker_hands_its_guards_to_the_next_one_on_the_same_page(pool: Pool) -> None:
    simulation = Simulation(Fault(FaultKind.NCCL, 700), total=900)
    run = await pool.guard(simulation, minutes=60)
    async with pool.worker():
        await reached(run, "Enabled")
    state = await state_of(run)
    assert (state.name, state.is_scheduled()) == ("Resuming", True)
    assert await _is_free(simulation) and simulation.starts == 1
    async with pool.worker():
        state = await reached(run, "Completed", "Failed", "Crashed")
    assert state.message == "succeeded, recovered 1 time"
    assert simulation.starts == 2


async def test_a_question_is_handed_over_and_asked_and_answered_once(pool: Pool) -> None:
    simulation = Simulation(Fault(FaultKind.NCCL, 95))
    run = await pool.guard(simulation, ASSIST)
    async with pool.worker():
        before = await simulation.question()
        await reached(run, "AwaitingApproval")
    assert await _all_final(run)
    async with pool.worker():
        question = await until(
            lambda: _asked_again(simulation, before.flow_run_id), "the question asked again"
        )
        assert (question.id, question.deadline) == (before.id, before.deadline)
        await until(lambda: _paused(question.flow_run_id), "the pause")
        await aresume_flow_run(
            UUID(question.flow_run_id), run_input={"decision": "approve", "decided_by": "uma"}
        )
        state = await reached(run, "Completed", "Failed", "Crashed")
    assert state.message == "succeeded, recovered 1 time"
    assert simulation.starts == 2


async def _asked_again(simulation: Simulation, before: str):  # type: ignore[no-untyped-def]
    question = await simulation.question()
    return question if question.flow_run_id != before else None


async def _paused(flow_run_id: str) -> bool | None:
    return (await state_of(UUID(flow_run_id))).is_paused() or None


async def test_an_answer_given_between_two_workers_is_honoured(pool: Pool) -> None:
    simulation = Simulation(Fault(FaultKind.NCCL, 95))
    run = await pool.guard(simulation, ASSIST)
    async with pool.worker():
        question = await simulation.question()
    assert await simulation.answer(question, Answer.APPROVE)
    async with pool.worker():
        state = await reached(run, "Completed", "Failed", "Crashed")
    assert state.message == "succeeded, recovered 1 time"
    assert simulation.starts == 2


async def test_two_incidents_in_two_lives_of_one_run_each_get_their_own_subflows(pool: Pool) -> None:
    simulation = Simulation(Fault(FaultKind.NCCL, 95), Fault(FaultKind.HOST_OOM, 700), total=900)
    run = await pool.guard(simulation)
    async with pool.worker():
        await until(lambda: _recovered(simulation), "the first recovery")
        await reached(run, "Enabled")
    async with pool.worker():
        await reached(run, "Completed", "Failed", "Crashed")
    incidents = await simulation.incidents()
    assert [incident.state for incident in incidents] == [IncidentState.RECOVERED] * 2
    assert len(await children_of(run)) == 4


async def _recovered(simulation: Simulation) -> bool | None:
    incidents = await simulation.incidents()
    return (incidents and incidents[-1].state is IncidentState.RECOVERED) or None


async def test_a_suspended_guard_stops_and_goes_on_when_resumed(pool: Pool) -> None:
    simulation = Simulation(total=10**6)
    run = await pool.guard(simulation)
    async with pool.worker():
        await reached(run, "Enabled")
        async with get_client() as client:
            await client.set_flow_run_state(
                run, Paused(name="Suspended", reschedule=True, timeout_seconds=600)
            )
        await until(lambda: _free(simulation), "the lease freed")
        assert (await state_of(run)).name == "Suspended"
        await aresume_flow_run(run)
        await reached(run, "Enabled")
    assert simulation.starts == 1


async def test_a_worker_with_a_limit_takes_the_next_run_when_one_has_ended(pool: Pool) -> None:
    first, second = Simulation(total=10**6), Simulation(total=10**6)
    runs = [await pool.guard(one) for one in (first, second)]
    async with pool.worker(limit=1):
        await reached(runs[0], "Enabled")
        await asyncio.sleep(1.5)  # polls in which the second must not be taken
        assert (await state_of(runs[1])).is_scheduled()
        first.cluster.stop("job")
        await reached(runs[0], "Completed")
        await reached(runs[1], "Enabled")


async def test_prefect_answering_503_while_guards_start_delays_them_and_ends_nothing(
    pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from httpx import HTTPStatusError, Request, Response

    from trainguard.worker import guard_worker

    original, refused = propose_state, list[int]()

    async def busy(*arguments: object, **named: object) -> object:
        if len(refused) < 3:
            refused.append(1)
            request = Request("POST", "http://prefect")
            raise HTTPStatusError("database is locked", request=request, response=Response(503))
        return await original(*arguments, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(guard_worker, "propose_state", busy)
    simulation = Simulation(total=10**6)
    run = await pool.guard(simulation)
    async with pool.worker():
        await reached(run, "Enabled")
    assert len(refused) == 3


async def test_a_worker_beats_by_requests_which_are_sent_again_while_sqlite_is_busy(pool: Pool) -> None:
    """A heartbeat on Prefect's worker channel is sent once, and an error of the server where it meets a write."""
    async with pool.worker(heartbeat_interval_seconds=1) as worker, get_client() as client:
        beats: set[Any] = set()

        async def thrice() -> bool | None:
            beats.update(
                one.last_heartbeat_time for one in await client.read_workers_for_work_pool(pool.name)
            )
            return len(beats) >= 3 or None

        await until(thrice, "three heartbeats")
        channel = worker._worker_channel
        assert isinstance(channel, WorkPoolWorkerChannel)
        assert not channel.state.healthy


async def test_fifty_guards_share_one_watch_and_no_thread_is_theirs(pool: Pool) -> None:
    simulation = Simulation(total=10**6)
    runs = [await pool.guard(simulation)]
    for number in range(1, 50):
        ref = simulation.cluster.start(SimulatedJob(id=f"job-{number}"))
        job = simulation.job.model_copy(update={"ref": ref, "name": f"job-{number}"})
        runs.append(await pool.guard(_of(simulation, job)))
    before = threading.active_count()
    async with pool.worker():
        for run in runs:
            await reached(run, "Enabled", patience=120)
        threads = threading.active_count() - before
        queries, since = simulation.cluster.queries, time.monotonic()
        await asyncio.sleep(2)
        rate = (simulation.cluster.queries - queries) / (time.monotonic() - since)
    assert threads < 25
    # ten looks a second for all, and the log of each job every ten seconds or at its check
    assert rate < 10 + 50
    assert {(await run_of(run)).state_name for run in runs} == {"Resuming"}


def _of(simulation: Simulation, job: Job) -> Simulation:
    other = object.__new__(Simulation)
    other.cluster, other.job = simulation.cluster, job
    return other


def test_only_deployments_of_the_packages_own_flows_are_guards() -> None:
    from trainguard.worker.entrypoints import _own_name

    ours = [GUARD, "trainguard.flows.guard.guard", "flows/guard.py:guard", "/srv/tg/flows/guard.py:guard"]
    others = ["guard.py:guard", "flows/guard.py:guardian", "my.flows.guard:guard", "flows/guard:guard", ""]
    assert [_own_name(entrypoint) for entrypoint in ours] == ["guard"] * 4
    assert [_own_name(entrypoint) for entrypoint in others] == [None] * 5
    assert _own_name("flows/patrol.py:patrol") == "patrol"


async def test_a_worker_that_polls_once_waits_for_what_it_took(pool: Pool) -> None:
    simulation = Simulation(total=100)
    run = await pool.guard(simulation)
    await GuardWorker(pool.name).start(run_once=True, printer=lambda *_: None)
    assert (await state_of(run)).message == "succeeded"


def test_a_resumed_run_keeps_its_deadline_and_takes_no_job_from_anybody() -> None:
    began = datetime(2026, 1, 1, tzinfo=UTC)
    given = {"minutes": 90, "take_over": True, "until": None}
    run = FlowRun(flow_id=uuid4(), parameters=given)
    assert parameters_of(run) == given
    run = run.model_copy(update={"start_time": began})
    later = parameters_of(run)
    assert later == {"minutes": None, "take_over": False, "until": began + timedelta(minutes=90)}


async def test_starts_keep_their_pace_and_grow_rarer_while_prefect_is_busy() -> None:
    pace = Pace(100)
    began = time.monotonic()
    for _ in range(20):
        async with pace.turn():
            pass
    assert time.monotonic() - began >= 19 / 100
    for _ in range(3):
        pace.bad()
    assert pace.interval == pytest.approx(0.08)
    for _ in range(100):
        pace.bad()
    assert pace.interval <= 30
    for _ in range(100):
        pace.good()
    assert pace.interval == pytest.approx(0.01)


async def test_of_two_workers_that_find_an_orphan_one_puts_it_back(pool: Pool) -> None:
    simulation = Simulation(total=10**6)
    run = await pool.guard(simulation)
    async with get_client() as client:
        await client.set_flow_run_state(run, Running(name="Enabled"), force=True)
    here = lease_holder(str(run)).split(":")[0]
    gone = f"{here}:1:0:{run}"  # process 1 began at another time
    async with await Ledger.open() as ledger:
        await ledger.acquire_lease(simulation.job.key, gone, time.time(), 3600)
    looks = [Adoption(pool.name, silent_seconds=3600) for _ in range(4)]
    assert sum(await asyncio.gather(*(look.look(()) for look in looks))) == 1
    assert (await state_of(run)).name == "Resuming"
    assert sum(await asyncio.gather(*(look.look(()) for look in looks))) == 0


async def test_a_run_whose_guard_lives_elsewhere_is_left_alone(pool: Pool) -> None:
    simulation = Simulation(total=10**6)
    run = await pool.guard(simulation)
    async with get_client() as client:
        await client.set_flow_run_state(run, Running(name="Enabled"), force=True)
    async with await Ledger.open() as ledger:
        await ledger.acquire_lease(simulation.job.key, f"elsewhere:1:1:{run}", time.time(), 3600)
    assert await Adoption(pool.name, silent_seconds=0).look(()) == 0
    assert (await state_of(run)).name == "Enabled"


async def test_the_guard_of_a_job_given_by_its_id_alone_is_found_by_its_lease(pool: Pool) -> None:
    simulation = Simulation(total=10**6)
    by_id = simulation.job.model_copy(update={"ref": JobRef(id="job"), "name": "job"})
    run = await pool.guard(_of(simulation, by_id))
    async with get_client() as client:
        await client.set_flow_run_state(run, Running(name="Enabled"), force=True)
    async with await Ledger.open() as ledger:
        await ledger.acquire_lease(simulation.job.key, f"elsewhere:1:1:{run}", time.time(), 3600)
    assert await Adoption(pool.name, silent_seconds=0).look(()) == 0
    assert await served_by_another(await run_of(run))
    async with await Ledger.open() as ledger:
        gone = f"elsewhere:1:1:{run}"
        await ledger.acquire_lease(simulation.job.key, gone, time.time() - 7200, 3600)
    assert await Adoption(pool.name, silent_seconds=3600).look(()) == 1
    assert (await state_of(run)).name == "Resuming"


async def test_a_deployed_guard_hands_over_with_its_secrets(pool: Pool) -> None:
    hook = SlackWebhook(url=SecretStr("https://hooks.slack.com/services/T0/B0/secret"))
    await hook.save(f"hook-{pool.name}", overwrite=True)
    block = {"$ref": {"block_document_id": str(hook._block_document_id)}}
    simulation = Simulation(total=10**6)
    run = await pool.guard(simulation, checks_a_run=2, notifiers=[block])
    async with pool.worker():
        message = (await reached(run, "HandedOver")).message
        assert message is not None
        successor = UUID(message.rsplit(" ", 1)[1])
        await reached(successor, "Enabled", "HandedOver")
        given = (await run_of(successor)).parameters["notifiers"]
        assert given == [block]
    assert simulation.starts == 1


async def test_an_orphan_that_was_being_cancelled_is_cancelled(pool: Pool) -> None:
    run = await pool.guard(Simulation(total=10**6))
    async with get_client() as client:
        await client.set_flow_run_state(run, Running(), force=True)
        await client.set_flow_run_state(run, Cancelling(), force=True)
    await asyncio.sleep(0.01)
    assert await Adoption(pool.name, silent_seconds=0).look(()) == 1
    assert (await state_of(run)).is_cancelled()


async def test_a_guard_that_has_just_ended_is_not_handed_over(
    pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = GuardRunEngine.set_state

    async def told_late(engine: GuardRunEngine, state: State[Any], force: bool = False) -> State[Any]:
        reported = await original(engine, state.model_copy(), force)
        if state.is_completed():
            assert engine.flow_run is not None
            engine.flow_run.state = Running()  # the answer is still on its way when the worker stops
            await asyncio.sleep(30)
        return reported

    monkeypatch.setattr(GuardRunEngine, "set_state", told_late)
    run = await pool.guard(Simulation(total=100))
    async with pool.worker():
        await reached(run, "Completed")
    assert (await state_of(run)).message == "succeeded"
