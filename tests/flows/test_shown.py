"""What a person sees of incidents in Prefect's lists: how each ended, of which job, without opening a page."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from uuid import UUID

import httpx
import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import StateType
from prefect.states import Cancelling, Running

from tests.flows.simulation import Simulation, until
from trainguard.core.decision import Answer
from trainguard.core.policy import Policy, Preset
from trainguard.flows import guard as guarding_flow
from trainguard.flows.recover import recover
from trainguard.testing.simulated import Fault, FaultKind

pytestmark = pytest.mark.usefixtures("prefect_api", "ledger_url")


async def ends(simulation: Simulation) -> dict[str, tuple[str, StateType, str]]:
    """Name, type and message of the end of each subflow run of a job, by the flow's word."""
    async with get_client() as client:
        runs = [run for run in await client.read_flow_runs() if simulation.job.name in run.tags]
    return {
        run.name.split()[0]: (run.state.name or "", run.state.type, run.state.message or "")
        for run in runs
        if run.state is not None
    }


@pytest.mark.parametrize(
    ("preset", "name", "kind", "said"),
    [
        (Preset.AUTONOMOUS, "Recovered", StateType.COMPLETED, "past the failure's step 95"),
        (Preset.OBSERVE, "Unrecoverable", StateType.FAILED, "not whitelisted"),
    ],
)
async def test_the_list_of_runs_tells_what_became_of_an_incident(
    preset: Preset, name: str, kind: StateType, said: str
) -> None:
    simulation = Simulation(Fault(FaultKind.NCCL, 95))
    guarded = await simulation.guard(Policy(preset=preset))
    assert guarded.is_completed()
    shown = await ends(simulation)
    assert shown["recover"][:2] == (name, kind) and said in shown["recover"][2]
    assert shown["diagnose"][2].startswith("nccl_comm: ")


async def test_pages_are_found_by_the_jobs_name_and_say_how_it_stands() -> None:
    simulation = Simulation(Fault(FaultKind.NCCL, 95))
    await simulation.guard(Policy(preset=Preset.AUTONOMOUS))
    (incident,) = await simulation.incidents()
    async with get_client() as client:
        pages = {page.key: page for page in await client.read_artifacts()}
    job = simulation.job.name
    report, guard = pages[f"incident-{job}-{incident.id}"], pages[f"guard-{job}"]
    assert report.description == f"{job}: crash at step 95: recovered"
    assert guard.description == f"guard of {job}: Completed"
    assert f"/artifacts/artifact/{report.id}" in str(guard.data)
    assert f"/artifacts/artifact/{guard.id}" in str(report.data)


async def test_a_recovery_that_a_person_cancels_as_it_ends_leaves_no_run_that_looks_alive() -> None:
    simulation = Simulation(Fault(FaultKind.NCCL, 95))
    guarding = simulation.guard(Policy(preset=Preset.ASSIST))
    question = await simulation.question()
    assert await simulation.answer(question, Answer.REFUSE)
    async with get_client() as client:
        await client.set_flow_run_state(UUID(question.flow_run_id), Cancelling(), force=True)
    await guarding

    async def over() -> bool | None:
        return (await ends(simulation))["recover"][1] in {StateType.CANCELLED, StateType.FAILED} or None

    await until(over, "the end of the run")


async def test_a_run_whose_end_prefect_did_not_take_is_ended_while_the_guard_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Lost:
        """The flow, whose end Prefect hears of too late."""

        name, fn = recover.name, staticmethod(recover.fn)

        async def __call__(self, incident_id: str, job_name: str, *, return_state: bool = False) -> None:
            state = await recover(incident_id, job_name, return_state=True)
            async with get_client() as client:
                await client.set_flow_run_state(str(state.state_details.flow_run_id), Running(), force=True)
            raise httpx.ReadError("Prefect went away")

    monkeypatch.setattr(guarding_flow, "recover", Lost())
    simulation = Simulation(Fault(FaultKind.NCCL, 95), total=20_000)
    guarding = simulation.guard(Policy(preset=Preset.AUTONOMOUS))

    async def over() -> bool | None:
        found = (await ends(simulation)).get("recover")
        return (found is not None and "Prefect was away" in found[2]) or None

    await until(over, "the end of the run")
    assert not guarding.done()
    guarding.cancel()
    await asyncio.wait({guarding})


def test_no_setting_of_the_site_makes_a_flow_or_a_task_run_twice() -> None:
    said = subprocess.run(
        [sys.executable, "-c", _RETRIES],
        env={**os.environ, "PREFECT_FLOWS_DEFAULT_RETRIES": "2", "PREFECT_TASKS_DEFAULT_RETRIES": "2"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert set(said.stdout.split()) == {"0"}


_RETRIES = """
from prefect import Flow, Task
from trainguard.flows import diagnose, guard, patrol, recover
from trainguard.tasks import act, check, collect, decide, verify
modules = (diagnose, guard, patrol, recover, act, check, collect, decide, verify)
print(*(one.retries for module in modules for one in vars(module).values() if isinstance(one, (Flow, Task))))
"""
