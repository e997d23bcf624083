"""The ledger on a real Postgres: its own tests, and what only a database with many users can suffer."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from uuid import uuid4

import pytest

from tests.labs.postgres.composed import ROOT
from trainguard.core.decision import Lease
from trainguard.core.errors import LedgerUnavailableError
from trainguard.ledger.ledger import Ledger

pytestmark = [pytest.mark.lab("postgres"), pytest.mark.timeout(280)]
OWN = ("test_survival.py", "test_intents.py")
PATIENCE = 2.0


@pytest.fixture
def url() -> str:
    lab = os.environ
    return f"postgresql://trainguard:{lab['TG_PG_PASSWORD']}@127.0.0.1:{lab['TG_PG_PORT']}/trainguard"


@pytest.fixture
async def ledger(url: str) -> AsyncIterator[Ledger]:
    async with await Ledger.open(url, patience=PATIENCE) as opened:
        yield opened


def test_the_ledgers_own_tests_pass_on_this_server() -> None:
    """Those about crashes and contention; `pytest tests/ledger` in this lab's environment runs all."""
    files = [str(ROOT / "tests" / "ledger" / name) for name in OWN]
    command = [sys.executable, "-m", "pytest", "-q", "-k", "postgres", "-p", "no:cacheprovider", *files]
    told = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert told.returncode == 0, told.stdout[-4000:]
    assert "passed" in told.stdout


async def test_who_freezes_in_the_middle_of_a_write_holds_up_the_next_guard_for_seconds_only(
    url: str, ledger: Ledger
) -> None:
    job = f"frozen/{uuid4().hex}"
    words = [sys.executable, "-m", "tests.labs.postgres.frozen_writer", url, job]
    frozen = await asyncio.create_subprocess_exec(*words, cwd=ROOT, stdout=subprocess.PIPE)
    assert frozen.stdout is not None
    try:
        assert await asyncio.wait_for(frozen.stdout.readline(), 60) == b"held\n"
        while not is_stopped(frozen.pid):
            await asyncio.sleep(0.05)
        taken = await taken_over(ledger, job)
        assert taken.number == 2
        frozen.send_signal(signal.SIGCONT)
        rest = await asyncio.wait_for(frozen.stdout.read(), 60)
        assert rest == b"not written\nlost\n"
        await ledger.check_lease(taken)
    finally:
        if frozen.returncode is None:
            frozen.kill()
        await frozen.wait()


def is_stopped(pid: int) -> bool:
    """Whether a process is frozen."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


async def taken_over(ledger: Ledger, job: str) -> Lease:
    """Take the job as the next guard does: it tries again while the ledger is busy."""
    deadline = time.monotonic() + 40
    while True:
        try:
            return await ledger.acquire_lease(job, "next", time.time(), 60.0, take_over=True)
        except LedgerUnavailableError:
            assert time.monotonic() < deadline, "the frozen writer still holds its locks"
