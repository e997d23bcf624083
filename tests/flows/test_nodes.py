"""What a guard learns of nodes from incidents, and does with it: a simulated cluster, a real server and ledger."""

from __future__ import annotations

import asyncio
import time
from typing import Any
from uuid import UUID

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.responses import SetStateStatus
from prefect.flow_runs import apause_flow_run

from tests.flows.simulation import QuickScheduler, Simulation, until
from trainguard.core.action import Action, ActionKind, Fence, Outcome
from trainguard.core.decision import Answer, ApprovalAnswer, ApprovalRequest
from trainguard.core.errors import RefusedError
from trainguard.core.incident import Incident, IncidentState
from trainguard.core.job import Job
from trainguard.core.policy import Policy, Preset
from trainguard.core.report import incident_report
from trainguard.core.verdict import FaultClass
from trainguard.ledger.ledger import Ledger
from trainguard.tasks import approval_form
from trainguard.tasks.records import incident_file
from trainguard.testing.simulated_cluster import LAST_WORDS, Fault, FaultKind

pytestmark = pytest.mark.usefixtures("prefect_api", "ledger_url")

NAMED = "sim-node-2"
AGAIN, WITHOUT = ActionKind.RESTART, ActionKind.RESTART_EXCLUDING_NODE


@pytest.fixture
def names_a_node(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a fault that may pass by itself name its node, as the launcher's prefix does."""
    lines = tuple(f"{NAMED}: {line}" for line in LAST_WORDS[FaultKind.NCCL])
    monkeypatch.setitem(LAST_WORDS, FaultKind.NCCL, lines)


async def accused_elsewhere(simulation: Simulation) -> None:
    """Another job of the cluster, whose incident lies at the node's door."""
    ref = simulation.job.ref.model_copy(update={"id": "other"})
    now = time.time()
    async with await Ledger.open() as ledger:
        lease = await ledger.acquire_lease(ref.key, "another guard", now, 60)
        one = Incident(id="elsewher", job_key=ref.key, incarnation=None, signals=(), detected_at=now)
        await ledger.open_incident(lease, one)
        await ledger.add_node_events(lease, one.id, (NAMED,), FaultClass.GPU_HARDWARE, now)


async def done(incident: Incident) -> list[tuple[ActionKind, tuple[str, ...], str]]:
    async with await Ledger.open() as ledger:
        records = await ledger.intents(incident.id)
    return [
        (r.intent.action.kind, r.intent.action.nodes, r.outcome.status.value if r.outcome else "?")
        for r in records
    ]


async def test_a_node_that_went_down_is_remembered_with_its_incident() -> None:
    simulation = Simulation(Fault(FaultKind.NODE_DOWN, 95))
    state = await simulation.guard()
    assert state.message == "succeeded, recovered 1 time"
    (incident,) = await simulation.incidents()
    async with await Ledger.open() as ledger:
        (event,) = await ledger.node_events("sim-node-1")
        assert await ledger.node_events(NAMED) == []
    assert (event.job_key, event.incident) == (simulation.job.key, incident.id)
    assert event.fault is FaultClass.NODE_FAILURE


@pytest.mark.usefixtures("names_a_node")
async def test_a_fault_seen_for_the_first_time_is_met_with_a_plain_restart_and_remembered() -> None:
    simulation = Simulation(Fault(FaultKind.NCCL, 95))
    state = await simulation.guard()
    assert state.message == "succeeded, recovered 1 time"
    (incident,) = await simulation.incidents()
    assert await done(incident) == [(AGAIN, (), "done")]
    async with await Ledger.open() as ledger:
        assert [event.incident for event in await ledger.node_events(NAMED)] == [incident.id]


@pytest.mark.usefixtures("names_a_node")
async def test_a_node_that_another_job_accused_is_left_out_and_the_report_says_why() -> None:
    simulation = Simulation(Fault(FaultKind.NCCL, 95))
    await accused_elsewhere(simulation)
    state = await simulation.guard()
    assert state.message == "succeeded, recovered 1 time"
    (incident,) = await simulation.incidents()
    assert await done(incident) == [(WITHOUT, (NAMED,), "done")]
    assert NAMED not in simulation.native.run.nodes
    async with await Ledger.open() as ledger:
        known = await incident_file(ledger, incident.id)
    assert known is not None and known.plan is not None
    assert f"{NAMED} was named by 1 earlier incident of 1 job" in known.plan.steps[-1].basis
    assert r"| sim\-node\-2 | nccl_comm, gpu_hardware | 2 | 2 |" in incident_report(known)


def full_but_for_the_node(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cluster on which the job needs every node."""
    performing = QuickScheduler._perform

    async def perform(self: QuickScheduler, job: Job, action: Action, fence: Fence) -> Outcome:
        if action.kind is WITHOUT:
            raise RefusedError("only 1 usable node is left, the job needs 2")
        return await performing(self, job, action, fence)

    monkeypatch.setattr(QuickScheduler, "_perform", perform)


@pytest.mark.usefixtures("names_a_node")
async def test_a_job_that_needs_the_node_comes_back_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    full_but_for_the_node(monkeypatch)
    simulation = Simulation(Fault(FaultKind.NCCL, 95))
    await accused_elsewhere(simulation)
    state = await simulation.guard()
    assert state.message == "succeeded, recovered 1 time"
    (incident,) = await simulation.incidents()
    assert await done(incident) == [(WITHOUT, (NAMED,), "refused"), (AGAIN, (), "done")]
    assert simulation.starts == 2


async def _second_question(simulation: Simulation, first: ApprovalRequest) -> ApprovalRequest:
    async def another() -> ApprovalRequest | None:
        async with await Ledger.open() as ledger:
            asked = await ledger.open_requests(simulation.job.key)
        return next((one for one in asked if one.id != first.id), None)

    return await until(another, "another question")


@pytest.mark.usefixtures("names_a_node")
async def test_a_restart_with_the_node_is_asked_for_anew_where_a_person_allowed_the_one_without(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    full_but_for_the_node(monkeypatch)
    simulation = Simulation(Fault(FaultKind.NCCL, 95))
    await accused_elsewhere(simulation)
    guarding = simulation.guard(Policy(preset=Preset.ASSIST))
    first = await simulation.question()
    assert await simulation.answer(first, Answer.APPROVE)
    second = await _second_question(simulation, first)
    kinds: list[Any] = [[step.action.kind for step in one.plan.steps] for one in (first, second)]
    assert (kinds, simulation.starts) == ([[WITHOUT], [AGAIN]], 1)
    assert await simulation.answer(second, Answer.APPROVE)
    assert (await guarding).message == "succeeded, recovered 1 time"
    (incident,) = await simulation.incidents()
    assert incident.state is IncidentState.RECOVERED


@pytest.mark.usefixtures("names_a_node")
@pytest.mark.parametrize("first_form", ["appears after its answer", "stands for ever"])
async def test_a_second_question_is_shown_whatever_became_of_the_form_of_the_first(
    first_form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    full_but_for_the_node(monkeypatch)
    simulation = Simulation(Fault(FaultKind.NCCL, 95))
    await accused_elsewhere(simulation)
    resumed, resuming = asyncio.Event(), approval_form._resume

    async def resume(request: ApprovalRequest, answer: ApprovalAnswer) -> None:
        if first_form == "appears after its answer" or not request.id.endswith("-0"):
            await resuming(request, answer)
        resumed.set()

    async def pause(**wanted: Any) -> Any:
        if first_form == "appears after its answer":
            await resumed.wait()
        return await apause_flow_run(**wanted)

    monkeypatch.setattr(approval_form, "_resume", resume)
    monkeypatch.setattr(approval_form, "apause_flow_run", pause)
    guarding = simulation.guard(Policy(preset=Preset.ASSIST))
    first = await simulation.question()
    assert await simulation.answer(first, Answer.APPROVE)
    second = await _second_question(simulation, first)
    form = {"decision": "approve", "decided_by": "uma"}

    async def filled_in() -> bool | None:
        async with get_client() as client:
            run = await client.read_flow_run(UUID(second.flow_run_id))
            paused = run.state is not None and run.state.is_paused()
            keys = (run.state.state_details.run_input_keyset or {}) if run.state else {}
            if not paused or second.keyset not in keys.get("response", ""):
                return None
            taken = await client.resume_flow_run(UUID(second.flow_run_id), run_input=form)
        return taken.status is SetStateStatus.ACCEPT or None

    await until(filled_in, "the form of the second question")
    assert (await guarding).message == "succeeded, recovered 1 time"
    async with await Ledger.open() as ledger:
        answer = await ledger.answer_of(second.id)
    assert answer is not None and (answer.by, answer.via) == ("uma", "ui")
