"""The ledger is locked, full or gone: nothing is done that is not on record, and nothing is forgotten."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.survival.scene import HERE, Channel, Scene, Server, Trial, scene, until, until_there
from trainguard.core.incident import IncidentState
from trainguard.ledger.ledger import Ledger

pytestmark = pytest.mark.timeout(600)
AWAY = float(os.environ.get("TRAINGUARD_LEDGER_SECONDS", "7"))
"""How long the ledger stays away."""
QUICK: dict[str, Any] = {
    "renew_seconds": 1.0,
    "retry_seconds": 1.0,
    "unrecorded_seconds": 3.0,
    "ledger_patience": 2.0,
}
WAYS = ("locked", "full", "gone")


@asynccontextmanager
async def taken(how: str, ledger: Path) -> AsyncIterator[None]:
    """Take the ledger away by another process."""
    vandal = await asyncio.create_subprocess_exec(
        sys.executable,
        str(HERE / "vandal.py"),
        how,
        str(ledger),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert vandal.stdout is not None
    assert await vandal.stdout.readline() == b"taken\n"
    try:
        yield
    finally:
        await vandal.communicate(b"\n")
        assert vandal.returncode == 0


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path | None]:
    """A file system that can be filled without harm; None where none can be made (needs root)."""
    place = tmp_path / "small"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(place)]
    able = os.geteuid() == 0 and shutil.which("mount") is not None
    if not able or subprocess.run(mount, capture_output=True, check=False).returncode:
        yield None
        return
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


async def closed(stage: Scene, trial: Trial) -> bool | None:
    """Whether the job's newest incident ended well."""
    found = await stage.incidents(trial)
    return (bool(found) and found[-1].state is IncidentState.RECOVERED) or None


async def one_way(how: str, folder: Path, mortal: Server) -> None:
    """Take the ledger away in one way from a guard process with three jobs, and give it back."""
    channel = await Channel().open()
    with scene(folder, mortal) as stage:
        if how == "full":
            stage.keep_ledger_in(folder.parent / "small")
        alone = {"budgets": {"storm_jobs": 100}}
        made = await stage.trials(
            early=("autonomous", alone), amid=("autonomous", alone), asked=("assist", alone)
        )
        await through(how, stage, made, channel)
    await channel.close()


async def through(how: str, stage: Scene, trials: list[Trial], channel: Channel) -> None:
    """Let three jobs fail: before the ledger goes, while it is away, and with an answer given meanwhile."""
    early, amid, asked = trials
    amid.tell("hold-collect")
    process = stage.guard(*trials, tell=channel.url, **QUICK)
    for trial in trials:
        await stage.status(trial, "Enabled")
    amid.tell("fail")
    asked.tell("fail")
    question = await stage.question(asked)
    await until_there(amid.folder / "collecting", "the diagnosis")
    async with taken(how, stage.ledger_file):
        early.tell("fail")
        (amid.folder / "hold-collect").unlink()
        await stage.server.click(question)
        taken_at = time.monotonic()
        await until(lambda: all_told(channel), f"{how}: the owners told")
        await asyncio.sleep(max(0.0, AWAY - (time.monotonic() - taken_at)))
        assert [trial.starts() for trial in trials] == [[0]] * 3, how
        assert process.poll() is None
    for trial in trials:
        await until(lambda trial=trial: closed(stage, trial), f"{how}: {trial.name}: recovery")  # type: ignore[misc]
        trial.tell("finish")
        assert (await trial.ended())[3] == "succeeded, recovered 1 time", how
        assert len(trial.starts()) == 2, how
        assert len(await stage.restarts(trial)) == 1, how
    async with await Ledger.open(stage.ledger_url) as ledger:
        answer = await ledger.answer_of(question.id)
    assert answer is not None and (answer.by, answer.via) == ("uma", "ui")
    assert channel.count("Can't keep records") == 3, how
    assert channel.count("Can keep records again") == 3, how


async def all_told(channel: Channel) -> bool | None:
    """Whether the owners of all three jobs know."""
    return channel.count("Can't keep records") == 3 or None


async def test_without_a_ledger_nothing_is_done_and_afterwards_everything(
    tmp_path: Path, mortal: Server, small_disk: Path | None
) -> None:
    async with asyncio.TaskGroup() as ways:
        for how in WAYS if small_disk else ("locked", "gone"):
            (tmp_path / how).mkdir()
            ways.create_task(one_way(how, tmp_path / how, mortal), name=how)
