"""An incident's steps are done inside a subflow, and again outside it only where it was Prefect that failed."""

from __future__ import annotations

from typing import Any, cast

import httpx
import pytest

from trainguard.core.job import Job, JobRef
from trainguard.tasks import subflow
from trainguard.tasks.context import GuardContext
from trainguard.tasks.subflow import run_subflow, steps


class Wanted:
    """Looks like a flow to whoever runs it; its first run meets `problem`."""

    name = "recover"

    def __init__(self, problem: Exception) -> None:
        self.problem, self.runs = problem, 0

    async def __call__(self, incident_id: str, job_name: str) -> None:
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
