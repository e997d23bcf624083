"""An incident's steps wait for no run to show them, are done inside it once it is there, and are done once."""

from __future__ import annotations

import asyncio
from contextvars import ContextVar
from typing import Any, cast

import httpx
import pytest

from trainguard.core.job import Job, JobRef
from trainguard.tasks import subflow
from trainguard.tasks.context import GuardContext
from trainguard.tasks.subflow import BEGIN_SECONDS, in_subflow, run_subflow, steps


class Wanted:
    """Looks like a flow to whoever runs it; its first run meets `problem`."""

    name = "recover"

    def __init__(self, problem: Exception) -> None:
        self.problem, self.runs = problem, 0

    async def __call__(self, incident_id: str, job_name: str, *, return_state: bool = False) -> None:
        await steps(self._work())

    fn = __call__

    async def _work(self) -> None:
        self.runs += 1
        if self.runs == 1:
            raise self.problem


@pytest.fixture
def context(monkeypatch: pytest.MonkeyPatch) -> GuardContext:
    async def answers() -> bool:
        return True

    monkeypatch.setattr(subflow, "prefect_answers", answers)
    monkeypatch.setattr(subflow, "_pace", subflow._Pace())
    nothing = cast(Any, None)
    job = Job(ref=JobRef(scheduler="local", cluster="here", id="j"), name="j")
    return GuardContext(
        job=job, policy=nothing, watch=nothing, ledger=nothing, lease=nothing, catalogue=nothing
    )


async def test_steps_go_on_without_prefect_where_it_went_away(context: GuardContext) -> None:
    wanted = Wanted(httpx.ConnectError("gone"))
    await run_subflow(context, wanted, "abcdefgh")
    assert wanted.runs == 2


@pytest.mark.parametrize("problem", [OSError("disk full"), TimeoutError("a hung question")])
async def test_steps_that_failed_by_themselves_are_not_run_again(
    context: GuardContext, problem: Exception
) -> None:
    wanted = Wanted(problem)
    with pytest.raises(type(problem)):
        await run_subflow(context, wanted, "abcdefgh")
    assert wanted.runs == 1


place: ContextVar[str] = ContextVar("place", default="guard")


class Late:
    """Looks like a flow whose run Prefect begins only when it is told to."""

    name = "recover"

    def __init__(self) -> None:
        self.may_begin, self.began = asyncio.Event(), asyncio.Event()
        self.places: list[str] = []
        self.go_on = asyncio.Event()

    async def __call__(self, incident_id: str, job_name: str, *, return_state: bool = False) -> None:
        await self.may_begin.wait()
        place.set("run")
        self.began.set()
        await steps(self._work())

    async def fn(self, incident_id: str, job_name: str, *, return_state: bool = False) -> None:
        await steps(self._work())

    async def _work(self) -> None:
        await in_subflow(self._step())
        await self.go_on.wait()
        await in_subflow(self._step())

    async def _step(self) -> None:
        self.places.append(place.get())


async def test_steps_do_not_wait_for_a_run_that_begins_late_and_it_ends_after_them(
    context: GuardContext,
) -> None:
    wanted = Late()
    wanted.go_on.set()
    await run_subflow(context, wanted, "abcdefgh")
    assert wanted.places == ["guard", "guard"]
    (engine,) = context.subflows
    wanted.may_begin.set()
    await engine
    assert wanted.places == ["guard", "guard"]


async def test_after_steps_that_waited_in_vain_the_next_do_not_wait(
    context: GuardContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited = []
    has_begun = subflow._Stage.has_begun

    async def recorded(self: Any, patience: float) -> bool:
        waited.append(patience)
        return await has_begun(self, patience)

    monkeypatch.setattr(subflow._Stage, "has_begun", recorded)
    for _ in range(2):
        wanted = Late()
        wanted.go_on.set()
        await run_subflow(context, wanted, "abcdefgh")
        wanted.may_begin.set()
    assert waited[0] == BEGIN_SECONDS
    assert set(waited[-3:]) == {0.0}
    await asyncio.gather(*context.subflows)


async def test_steps_are_done_inside_the_run_from_when_it_has_begun(context: GuardContext) -> None:
    wanted = Late()
    doing = asyncio.create_task(run_subflow(context, wanted, "abcdefgh"))
    while not wanted.places:
        await asyncio.sleep(0.01)
    wanted.may_begin.set()
    await wanted.began.wait()
    wanted.go_on.set()
    await doing
    assert wanted.places == ["guard", "run"]
