"""A guard frozen beyond its lease and continued: another has taken over, and the fenced one can do nothing."""

from __future__ import annotations

import asyncio
import signal
import time
from typing import Any

import pytest

from tests.survival.scene import Scene, Trial, until
from trainguard.core.incident import IncidentState
from trainguard.ledger.ledger import Ledger

pytestmark = pytest.mark.timeout(600)
LEASE: dict[str, Any] = {"lease_seconds": 4.0, "renew_seconds": 1.0}
PLACES = ("intent", "act", "command", "outcome")
"""Just before: the intent is written; the scheduler is asked to act; the command is sent; the outcome is written."""


async def run_out(stage: Scene, trial: Trial) -> None:
    """Wait until the lease on a job has run out."""

    async def over() -> bool | None:
        async with await Ledger.open(stage.ledger_url) as ledger:
            lease = await ledger.lease(trial.key)
        return (lease is not None and lease.expires_at < time.time()) or None

    await until(over, f"{trial.name}: the end of the lease")


async def recovered(stage: Scene, trial: Trial) -> None:
    """Wait until the job's incident ended well."""

    async def closed() -> bool | None:
        found = await stage.incidents(trial)
        return (bool(found) and found[-1].state is IncidentState.RECOVERED) or None

    await until(closed, f"{trial.name}: recovery")


async def test_a_guard_frozen_at_any_step_of_an_action_can_do_nothing_when_it_wakes(stage: Scene) -> None:
    trials = await stage.trials(
        **{place: ("autonomous", {"budgets": {"storm_jobs": 100}}) for place in PLACES}
    )
    frozen = [stage.guard(trial, freeze_at=trial.name, **LEASE) for trial in trials]
    for trial in trials:
        await stage.status(trial, "Enabled")
        trial.tell("fail")
    for process, trial in zip(frozen, trials, strict=True):
        await stage.frozen(process)
        await run_out(stage, trial)

    second = stage.guard(*trials, **LEASE)
    for trial in trials:
        await recovered(stage, trial)
    before = {trial.name: trial.starts() for trial in trials}
    for process in frozen:
        process.send_signal(signal.SIGCONT)
    for trial in trials:
        fenced = await trial.ended()
        assert fenced[0] != second.pid
        assert fenced[2] == "Fenced", fenced
    assert {trial.name: trial.starts() for trial in trials} == before
    for trial in trials:
        trial.tell("finish")
        assert (await trial.ended(2))[3] == "succeeded, recovered 1 time"
        assert len(trial.starts()) == 2, (trial.name, trial.starts())
        assert len(await stage.restarts(trial)) == 1
    await asyncio.to_thread(second.wait)
    await no_run_looks_alive(stage)


async def no_run_looks_alive(stage: Scene) -> None:
    """Every run has ended, those of the fenced guards too."""
    for run in await stage.server.runs("guard ", "diagnose ", "recover "):
        assert run.state is not None and run.state.is_final(), (run.name, run.state)
