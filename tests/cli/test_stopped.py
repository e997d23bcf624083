"""A guard, a patrol and the demo that are told to end do so in a sentence; a guarded job is left alone."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from pathlib import Path

import pytest

from trainguard.supervisor import supervisor

pytestmark = pytest.mark.usefixtures("prefect_api", "ledger_url")

CLI = (sys.executable, "-m", "trainguard.cli.main")
SECONDS = 90.0


async def _ended(*words: str, after: str, told: signal.Signals, **environment: str) -> tuple[int | None, str]:
    """Run a command, tell it to end once it has said something; give its code and what it said."""
    process = await asyncio.create_subprocess_exec(
        *CLI,
        *words,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, **environment},
    )
    assert process.stderr is not None
    said = ""
    try:
        async with asyncio.timeout(SECONDS):
            while after not in said:
                line = await process.stderr.readline()
                assert line, said
                said += line.decode()
            process.send_signal(told)
            process.send_signal(told)  # as `timeout` does: to the process, and to its group
            said += (await process.stderr.read()).decode()
            return await process.wait(), said
    finally:
        if process.returncode is None:
            process.kill()


@pytest.mark.parametrize(("told", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
async def test_a_guard_that_is_told_to_end_says_how_to_go_on(
    told: signal.Signals, code: int, tmp_path: Path
) -> None:
    folder = tmp_path / "job"
    words = ("run", "--state", str(folder), "--", "sleep", "600")
    try:
        ended, said = await _ended(*words, after="Enabled", told=told)
        assert (ended, "Traceback" in said) == (code, False), said
        assert f"the job goes on. Guard it again: trainguard watch {folder}" in said
        state = supervisor.read_json(folder / "state.json")
        assert state is not None
        os.kill(state["pid"], 0)
        shown = await asyncio.create_subprocess_exec(*CLI, "status", "--json", stdout=asyncio.subprocess.PIPE)
        (job,) = json.loads((await shown.communicate())[0])["jobs"]
        assert job["guard"] is None
    finally:
        stop = await asyncio.create_subprocess_exec(
            sys.executable, supervisor.__file__, "tell", str(folder), "stop"
        )
        await stop.wait()


async def test_a_signal_that_was_ignored_stays_so() -> None:
    """A shell starts its background jobs with SIGINT ignored."""
    script = (
        "import asyncio, os, signal\n"
        "from trainguard.cli.told import until_told\n"
        "signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        "async def work():\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    await asyncio.sleep(0.5)\n"
        "    return 'done'\n"
        "print(until_told(work()))\n"
    )
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", script, stdout=asyncio.subprocess.PIPE
    )
    said, _ = await process.communicate()
    assert (process.returncode, said.decode().strip()) == (0, "done")


async def test_a_patrol_that_is_told_to_end_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_LOGGING_LEVEL", "INFO")
    ended, said = await _ended("patrol", "name=none-*", after="Beginning flow run", told=signal.SIGTERM)
    assert (ended, "Traceback" in said) == (143, False), said
    assert "The patrol stopped; the jobs go on." in said


async def test_a_demo_that_is_told_to_end_leaves_nothing_behind(tmp_path: Path) -> None:
    ended, said = await _ended("demo", after="Enabled", told=signal.SIGINT, TMPDIR=str(tmp_path))
    assert (ended, "Traceback" in said) == (130, False), said
    assert "The demo was stopped." in said
    assert list(tmp_path.iterdir()) == []
    left = [one.read_bytes() for one in Path("/proc").glob("[0-9]*/cmdline") if one.exists()]
    assert not [line for line in left if os.fsencode(tmp_path) in line]


async def test_a_notifier_without_a_block_is_named_before_the_job_starts(tmp_path: Path) -> None:
    config, state = tmp_path / "trainguard.toml", tmp_path / "job"
    config.write_text('notifiers = ["trainguard-slack-webhook/nope"]\n')
    words = ("run", "--config", str(config), "--state", str(state), "--", "sleep", "600")
    process = await asyncio.create_subprocess_exec(*CLI, *words, stderr=asyncio.subprocess.PIPE)
    said = (await process.communicate())[1].decode()
    assert (process.returncode, "Traceback" in said) == (2, False), said
    assert "notifiers: there is no block 'trainguard-slack-webhook/nope'" in said
    assert not state.exists()


@pytest.mark.parametrize(
    ("words", "wrong"),
    [
        (("patrol", "user=me"), "selector: 'user=me' is none of name=GLOB"),
        (("patrol", "*", "--cluster", "nope"), "cluster: there is no block 'nope'"),
    ],
)
async def test_a_patrol_that_can_find_nothing_says_what_is_wrong(words: tuple[str, ...], wrong: str) -> None:
    process = await asyncio.create_subprocess_exec(*CLI, *words, stderr=asyncio.subprocess.PIPE)
    said = (await process.communicate())[1].decode()
    assert (process.returncode, "Traceback" in said) == (2, False), said
    assert wrong in said
