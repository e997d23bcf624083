"""The Prefect server dies or freezes while guards watch, diagnose and ask: the view comes later, the recovery does not.

TRAINGUARD_OUTAGE_SECONDS says how long the outage takes. The short form makes Prefect's client give up early, so
that it is an outage for the client too; a long one leaves the client as it is.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from prefect.client.schemas.objects import FlowRun

from tests.survival.scene import Scene, Server, Trial, scene, until, until_there
from trainguard.core.incident import IncidentState

OUTAGE = float(os.environ.get("TRAINGUARD_OUTAGE_SECONDS", "35"))
SHORT = OUTAGE < 120
SOON = 60.0
"""Seconds within which recovery must go on though Prefect is away: seconds when idle, more on a busy machine."""
LATER = 150.0

pytestmark = pytest.mark.timeout(900 + 2 * OUTAGE)


@dataclass
class Story:
    """What happened, told once and judged by several tests."""

    scene: Scene
    trials: dict[str, Trial]
    in_time: dict[str, float] = field(default_factory=dict)
    """Seconds from the server's death to a job's restart, of those restarted during the outage."""
    answers: dict[str, str] = field(default_factory=dict)
    ends: dict[str, tuple[int, str, str, str]] = field(default_factory=dict)
    runs: list[FlowRun] = field(default_factory=list)
    log: str = ""


async def tell(stage: Scene, way: str) -> Story:
    """Let the server go, go on without it, bring it back, go on with it."""
    alone = {"budgets": {"storm_jobs": 100}}  # all fail within a minute here: no storm
    presets = {
        "watched": "autonomous",
        "diagnosed": "autonomous",
        "over": "autonomous",
        "before": "assist",
        "during": "assist",
        "after": "assist",
    }
    made = await stage.trials(**{name: (preset, alone) for name, preset in presets.items()})
    story = Story(stage, {trial.name: trial for trial in made})
    trials = story.trials
    trials["diagnosed"].tell("hold-collect")
    process = stage.guard(*made, environment={"PREFECT_CLIENT_MAX_RETRIES": "3"} if SHORT else None)
    for trial in made:
        await stage.status(trial, "Enabled")
    for name in ("diagnosed", "before", "during", "after"):
        trials[name].tell("fail")
    questions = {name: await stage.question(trials[name]) for name in ("before", "during", "after")}
    await until_there(trials["diagnosed"].folder / "collecting", "the diagnosis")

    await stage.server.click(questions["before"], by="early")
    stage.server.signal(signal.SIGKILL if way == "killed" else signal.SIGSTOP)
    died = time.monotonic()
    trials["watched"].tell("fail")
    trials["over"].tell("finish")
    (trials["diagnosed"].folder / "hold-collect").unlink()
    code, said = await stage.approve(questions["during"], by="midway")
    assert code == 0, said
    for name in ("watched", "diagnosed", "during"):
        await trials[name].restarted("a restart during the outage", SOON)
        story.in_time[name] = time.monotonic() - died
    await asyncio.sleep(max(0.0, OUTAGE - (time.monotonic() - died)))
    assert not stage.server.answers()
    if way == "killed":
        await asyncio.to_thread(stage.server.start)
    else:
        stage.server.signal(signal.SIGCONT)

    await trials["before"].restarted("a restart by the answer given before the outage", LATER)
    again = await stage.question(trials["after"])
    await stage.server.click(again, by="late")
    await trials["after"].restarted("a restart by the answer given after the outage", LATER)
    await finish(story)
    await asyncio.to_thread(process.wait)
    story.log = stage.log_of(process)
    story.runs = await stage.server.runs("guard ", "diagnose ", "recover ")
    return story


async def finish(story: Story) -> None:
    """Let all jobs finish once they are recovered."""
    for name, trial in story.trials.items():
        if name != "over":
            await recovered(story.scene, trial)
            trial.tell("finish")
    for name, trial in story.trials.items():
        story.ends[name] = await trial.ended(patience=LATER)


async def recovered(stage: Scene, trial: Trial) -> None:
    """Wait until the job's incident has ended well."""

    async def closed() -> bool | None:
        found = await stage.incidents(trial)
        return (bool(found) and found[-1].state.closed) or None

    await until(closed, f"{trial.name}: the incident's end", LATER)
    found = await stage.incidents(trial)
    assert found[-1].state is IncidentState.RECOVERED, found[-1]


@pytest.fixture(scope="module", params=["killed", "frozen"])
def story(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, mortal: Server
) -> Iterator[Story]:
    """One outage of each kind for all tests of this file."""
    with scene(Path(tmp_path_factory.mktemp("outage")), mortal) as stage:
        yield asyncio.run(tell(stage, request.param))


def test_detection_and_whitelisted_recovery_go_on_while_prefect_is_away(story: Story) -> None:
    assert set(story.in_time) == {"watched", "diagnosed", "during"}


def test_every_job_came_back_exactly_once(story: Story) -> None:
    for name in ("watched", "diagnosed", "before", "during", "after"):
        assert len(story.trials[name].starts()) == 2, (name, story.trials[name].starts())
        assert story.trials[name].starts()[1] > 0
        assert len(asyncio.run(story.scene.restarts(story.trials[name]))) == 1
    assert len(story.trials["over"].starts()) == 1


def test_every_guard_ended_well_and_its_run_says_so_in_prefect(story: Story) -> None:
    for name, (_, kind, _, message) in story.ends.items():
        expected = "succeeded" if name == "over" else "succeeded, recovered 1 time"
        assert (kind, message) == ("COMPLETED", expected), (name, story.log[-3000:])
    guards = {run.name: run.state for run in story.runs if run.name.startswith("guard ")}
    for name in story.trials:
        state = guards[f"guard {name}"]
        assert state is not None and state.is_completed(), (name, state)


def test_no_run_is_left_that_looks_alive(story: Story) -> None:
    alive = [(run.name, run.state) for run in story.runs if run.state is None or not run.state.is_final()]
    assert not alive


def test_what_happened_during_the_outage_is_shown_in_prefect_afterwards(story: Story) -> None:
    for name in ("watched", "diagnosed", "before", "during", "after"):
        (incident,) = asyncio.run(story.scene.incidents(story.trials[name]))
        pages = asyncio.run(story.scene.server.pages(f"incident-{name}-{incident.id}"))
        assert pages, f"{name}: no report of its incident"
        assert "recovered" in str(pages[-1].data).lower(), (name, pages[-1].data)
    assert asyncio.run(story.scene.server.pages("guard-over"))


def test_each_answer_is_on_record_once_under_its_name(story: Story) -> None:
    for name, by in (("before", "early"), ("during", "midway"), ("after", "late")):
        (incident,) = asyncio.run(story.scene.incidents(story.trials[name]))
        pages = asyncio.run(story.scene.server.pages(f"incident-{name}-{incident.id}"))
        assert by in str(pages[-1].data), (name, pages[-1].data)
