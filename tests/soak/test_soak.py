"""A guard over virtual days: what it leaves in Prefect and the ledger is bounded, and it hands itself over."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path
from uuid import uuid4

import pytest

from benchmarks.lab import pages
from benchmarks.virtual_guard import stand_guard
from trainguard.tasks.prefect_view import cancellation_is_watched
from trainguard.testing.simulated_fleet import SimulatedFleet

DAYS = float(os.environ.get("TRAINGUARD_SOAK_DAYS", "1.5"))
CHECKS_A_RUN = 80
"""So few that the guard hands itself over within the short test."""
MB_A_DAY = 3.0
TASK_RUNS_A_DAY = 150
KEPT_OBSERVATIONS_A_DAY = 100


@pytest.mark.usefixtures("prefect_api")
async def test_days_of_a_healthy_job_leave_little_and_the_guard_hands_itself_over(ledger_url: str) -> None:
    prefect = Path(os.environ["PREFECT_HOME"]) / "prefect.db"
    ledger = Path(ledger_url.removeprefix("sqlite:///"))
    fleet = SimulatedFleet(cluster=f"soak-{uuid4().hex[:6]}", jobs=1, seed=5, poll_seconds=285, virtual=True)
    before = pages(prefect)
    cancellation_is_watched()
    found = await stand_guard(
        fleet,
        DAYS,
        lambda _: None,
        checks_a_run=CHECKS_A_RUN,
    )
    grown = (pages(prefect) - before + pages(ledger)) / 1e6
    assert found["state"].startswith("Completed: until reached")
    assert found["flow_runs"] > 1
    assert grown / DAYS < MB_A_DAY
    assert _count(prefect, f"WHERE flow_run_id IN ({_runs(fleet)})") / DAYS < TASK_RUNS_A_DAY
    assert _observations(ledger) / DAYS < KEPT_OBSERVATIONS_A_DAY
    assert found["starts"] == 1, "a healthy job is never touched"
    assert not found["incidents"]


def _runs(fleet: SimulatedFleet) -> str:
    return f"SELECT id FROM flow_run WHERE parameters LIKE '%{fleet.cluster}%'"


def _count(database: Path, where: str) -> int:
    with sqlite3.connect(f"file:{database}?mode=ro", uri=True) as connection:
        return int(connection.execute(f"SELECT count(*) FROM task_run {where}").fetchone()[0])


def _observations(database: Path) -> int:
    with sqlite3.connect(f"file:{database}?mode=ro", uri=True) as connection:
        return int(connection.execute("SELECT count(*) FROM tg_observations").fetchone()[0])
