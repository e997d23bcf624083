"""Two workers on one pool, ledger and Prefect on Postgres: one is killed, one frozen, one stopped; no job notices.

One story, judged by several tests. Real jobs under their supervisors; the workers take each other for other
machines (see `far_worker`).
"""

from __future__ import annotations

import asyncio
import signal
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from prefect.client.schemas.objects import FlowRun
from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings

from tests.labs.postgres.composed import AUTH, ROOT, Site
from tests.labs.postgres.conftest import client_of
from tests.survival.guards import QUICK
from tests.survival.scene import Trial, until, until_there
from trainguard.blocks.local_host import LocalHost
from trainguard.cli.prefect_server import free_port
from trainguard.core.incident import IncidentState
from trainguard.core.policy import Policy, Preset
from trainguard.flows.guard import guard
from trainguard.ledger.ledger import Ledger

pytestmark = [pytest.mark.lab("postgres"), pytest.mark.timeout(600)]
NAMES = ("ant", "bee", "cat", "dog", "elk", "fox")
ONE, ALL = 3, 6
LOOKS = 8


@dataclass
class Story:
    """What happened."""

    site: Site
    folder: Path
    ledger: str
    trials: dict[str, Trial] = field(default_factory=dict)
    runs: dict[str, UUID] = field(default_factory=dict)
    held: dict[str, dict[str, str]] = field(default_factory=dict)
    """Moment -> job -> machine of the lease's holder."""
    starts: dict[str, dict[str, int]] = field(default_factory=dict)
    """Moment -> job -> how often it was started."""
    ends: dict[str, FlowRun] = field(default_factory=dict)
    fences: dict[str, list[str]] = field(default_factory=dict)
    incidents: dict[str, list[IncidentState]] = field(default_factory=dict)

    def worker(self, host: str, *words: str) -> subprocess.Popen[bytes]:
        """Start a worker as the compose file does, on `host`."""
        _, *command = self.site.command("worker")
        environment = {
            **self.site.environment("worker"),
            "HOME": str(self.folder),
            "PREFECT_HOME": str(self.folder / f"prefect-{host}"),
            "XDG_STATE_HOME": str(self.folder / "state"),
            "PREFECT_WORKER_WEBSERVER_PORT": str(free_port()),
            "PREFECT_WORKER_QUERY_SECONDS": "0.5",
            "TRAINGUARD_WORKER_STARTS_A_SECOND": "20",
            "TRAINGUARD_WORKER_ADOPT_SECONDS": "1",
            "TRAINGUARD_WORKER_WATCH_SECONDS": "0.5",
            "TRAINGUARD_WORKER_SILENT_SECONDS": "60",
        }
        program = [sys.executable, "-m", "tests.labs.postgres.far_worker", host, str(self.folder)]
        return self.site.launch([*program, *command, "--name", host, *words], environment, host)

    async def serves(self, host: str, count: int) -> None:
        """Wait until a worker serves so many runs."""

        async def so_many() -> bool | None:
            place = self.folder / f"{host}.serving"
            return (place.exists() and place.read_text() == str(count)) or None

        await until(so_many, f"{host} serves {count}: {self.site.log(host)[-2000:]}")

    async def holders(self) -> dict[str, str]:
        """Whose the jobs are now, by machine."""
        async with await Ledger.open(self.ledger) as ledger:
            leases = {name: await ledger.lease(trial.key) for name, trial in self.trials.items()}
        return {name: one.holder.partition("/")[0] for name, one in leases.items() if one is not None}

    async def guarded(self, **shares: int) -> None:
        """Wait until each job is guarded, so many by each machine."""

        async def so() -> bool | None:
            return Counter((await self.holders()).values()) == Counter(shares) or None

        await until(so, f"guarded by {shares}; last {await self.holders()}")

    async def stays(self, **shares: int) -> None:
        """See for some of the workers' looks that nobody loses a job."""
        for _ in range(LOOKS):
            assert Counter((await self.holders()).values()) == Counter(shares)
            await asyncio.sleep(0.5)

    async def recovered(self, *names: str) -> None:
        """Wait until these jobs are back."""
        for name in names:

            async def closed(name: str = name) -> bool | None:
                async with await Ledger.open(self.ledger) as ledger:
                    found = await ledger.incidents(self.trials[name].key)
                return (bool(found) and found[0].state.closed) or None

            await until(closed, f"{name} is back; holders {await self.holders()}")

    def note(self, moment: str, holders: dict[str, str]) -> None:
        """Remember how things stand."""
        self.held[moment] = holders
        self.starts[moment] = {name: len(trial.starts()) for name, trial in self.trials.items()}


async def schedule(story: Story) -> None:
    """Deploy as a user does and ask for a guard for each job."""
    environment = {**story.site.environment("worker"), "HOME": "/mnt", "PREFECT_HOME": "/mnt/prefect"}
    words = ["bash", "-c", 'cd "$0" && prefect --no-prompt deploy --name guard', str(ROOT)]
    data = story.folder / "deploy"
    data.mkdir()
    contain = str(Path(__file__).with_name("contain.sh"))
    deployed = story.site.launch([contain, str(data), *words], environment, "deploy")
    assert await asyncio.to_thread(deployed.wait, 120) == 0, story.site.log("deploy")
    with temporary_settings({PREFECT_API_URL: story.site.url, PREFECT_API_AUTH_STRING: AUTH}):
        await LocalHost(name=socket.gethostname()).save("this-machine", overwrite=True)
    async with client_of(story.site) as client:
        deployment = await client.read_deployment_by_name("guard/guard")
        for name, trial in story.trials.items():
            parameters: dict[str, Any] = {
                "job": trial.job,
                "policy": Policy(preset=Preset.AUTONOMOUS, **trial.policy),
                "cadence": QUICK,
            }
            run = await client.create_flow_run_from_deployment(
                deployment.id, parameters=guard.serialize_parameters(parameters)
            )
            story.runs[name] = run.id


async def tell(site: Site, folder: Path) -> Story:
    """Kill one worker, freeze one, stop one."""
    story = Story(site, folder, site.environment("worker")["TRAINGUARD_LEDGER_URL"])
    trials = [Trial(folder, name, "autonomous", budgets={"storm_jobs": 100}) for name in NAMES]
    story.trials = dict(zip(NAMES, await asyncio.gather(*(trial.start() for trial in trials)), strict=True))
    east = story.worker("east", "--limit", str(ONE))
    await story.serves("east", 0)
    await schedule(story)
    await story.serves("east", ONE)
    west = story.worker("west")
    await story.guarded(east=ONE, west=ONE)
    story.note("both", await story.holders())
    ours = [name for name, host in story.held["both"].items() if host == "east"]
    theirs = [name for name, host in story.held["both"].items() if host == "west"]
    await _kill(story, east, ours)
    south = story.worker("south")
    await story.serves("south", 0)
    await _freeze(story, west, theirs)
    south.send_signal(signal.SIGTERM)
    assert await asyncio.to_thread(south.wait, 60) is not None
    await story.guarded(west=ALL)
    story.note("south stopped", await story.holders())
    await _finish(story)
    return story


async def _fail(story: Story, name: str) -> None:
    """Let a job fail, and its guard get no further than collecting evidence."""
    trial = story.trials[name]
    trial.tell("hold-collect")
    trial.tell("fail")
    await until_there(trial.folder / "collecting", f"{name}: evidence is collected")


async def _kill(story: Story, worker: subprocess.Popen[bytes], names: list[str]) -> None:
    """Kill a worker in the middle of one job's incident; another of its jobs fails when nobody looks."""
    await _fail(story, names[0])
    worker.kill()
    worker.wait()
    story.trials[names[1]].tell("fail")
    (story.trials[names[0]].folder / "hold-collect").unlink()
    await story.recovered(names[0], names[1])
    await story.guarded(west=ALL)
    story.note("east killed", await story.holders())


async def _freeze(story: Story, worker: subprocess.Popen[bytes], names: list[str]) -> None:
    """Freeze a worker likewise, beyond its lease, and let it go on once the other has done its work."""
    await _fail(story, names[0])
    worker.send_signal(signal.SIGSTOP)
    story.trials[names[1]].tell("fail")
    (story.trials[names[0]].folder / "hold-collect").unlink()
    await story.recovered(names[0], names[1])
    await story.guarded(south=ALL)
    story.note("west frozen", await story.holders())
    worker.send_signal(signal.SIGCONT)
    await story.serves("west", 0)
    await story.stays(south=ALL)
    story.note("west continued", await story.holders())


async def _finish(story: Story) -> None:
    for trial in story.trials.values():
        trial.tell("finish")

    async def over() -> bool | None:
        async with client_of(story.site) as client:
            story.ends = {name: await client.read_flow_run(run) for name, run in story.runs.items()}
        return all(run.state is not None and run.state.is_final() for run in story.ends.values()) or None

    await until(over, f"all guards have ended: {story.ends}")
    async with await Ledger.open(story.ledger) as ledger:
        for name, trial in story.trials.items():
            incidents = await ledger.incidents(trial.key)
            story.incidents[name] = [one.state for one in incidents]
            known = [done for one in incidents for done in await ledger.intents(one.id)]
            story.fences[name] = [one.intent.fence.token for one in known if one.intent.action.kind.restarts]
            assert not await ledger.pending_intents(trial.key)


@pytest.fixture(scope="module")
def story(site: Site, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    folder = tmp_path_factory.mktemp("workers")
    try:
        yield asyncio.run(tell(site, folder))
    finally:
        for name in NAMES:
            if (folder / name).exists():
                (folder / name / "finish").touch()


def failed(story: Story) -> set[str]:
    """The jobs that were told to fail."""
    return {name for name, trial in story.trials.items() if (trial.folder / "failed").exists()}


def test_each_job_is_guarded_by_one_of_both_workers(story: Story) -> None:
    assert Counter(story.held["both"].values()) == {"east": ONE, "west": ONE}


def test_what_a_killed_worker_left_goes_on_with_the_other(story: Story) -> None:
    assert Counter(story.held["east killed"].values()) == {"west": ALL}
    assert sum(story.starts["east killed"].values()) == ALL + 2


def test_a_worker_frozen_beyond_its_leases_can_do_nothing_when_it_wakes(story: Story) -> None:
    assert Counter(story.held["west frozen"].values()) == {"south": ALL}
    assert story.held["west continued"] == story.held["west frozen"]
    assert story.starts["west continued"] == story.starts["west frozen"]


def test_a_worker_that_was_fenced_takes_what_a_stopped_one_hands_over(story: Story) -> None:
    assert Counter(story.held["south stopped"].values()) == {"west": ALL}


def test_no_restart_was_done_twice_and_none_forgotten(story: Story) -> None:
    assert len(failed(story)) == 4
    for name in NAMES:
        again = int(name in failed(story))
        assert len(story.trials[name].starts()) == 1 + again, name
        assert len(story.fences[name]) == again, name
        assert story.incidents[name] == [IncidentState.RECOVERED] * again, name


def test_every_flow_run_ended_well_on_its_own_page(story: Story) -> None:
    for name, run in story.ends.items():
        assert run.state is not None
        expected = "succeeded, recovered 1 time" if name in failed(story) else "succeeded"
        assert (run.state.type.value, run.state.message) == ("COMPLETED", expected), name


async def test_no_run_is_left_that_looks_alive(story: Story) -> None:
    async with client_of(story.site) as client:
        runs = await client.read_flow_runs(limit=200)
    alive = [(run.name, run.state) for run in runs if run.state is None or not run.state.is_final()]
    assert not alive


def test_neither_server_nor_services_had_anything_to_complain_of(story: Story) -> None:
    for name in ("server", "services"):
        assert "Traceback" not in story.site.log(name), story.site.log(name)[-3000:]
