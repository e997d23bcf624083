"""Killed, locked, full, gone, cancelled: nothing said is lost, nothing half done, and it works again."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.ledger import facts
from tests.ledger.facts import KEY, NOW
from trainguard.core.decision import Lease
from trainguard.core.errors import LedgerUnavailableError
from trainguard.ledger.ledger import Ledger


async def process(part: str, *arguments: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.ledger.processes", part, *arguments,
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip


async def prepare(url: str) -> None:
    async with await Ledger.open(url) as ledger:
        lease = await ledger.acquire_lease(KEY, "guard", NOW, 1e6)
        await ledger.open_incident(lease, facts.incident())


@pytest.mark.parametrize(("where", "written"), [("before", 0), ("after", 1)])
async def test_killed_at_the_commit_an_intent_is_there_or_it_is_not(
    url: str, where: str, written: int
) -> None:
    await prepare(url)
    dying = await process("die", url, where)
    assert await dying.wait() == -signal.SIGKILL
    async with await Ledger.open(url) as ledger:
        pending = await ledger.pending_intents(KEY)
        assert [intent.fence.token for intent in pending] == ["tg-inc00001-1"][:written]
        lease = await ledger.acquire_lease(KEY, "guard-2", NOW, 60, take_over=True)
        if pending:
            await ledger.write_outcome(lease, facts.outcome())
        assert await ledger.pending_intents(KEY) == []


async def test_what_a_killed_writer_said_is_always_there(url: str) -> None:
    await prepare(url)
    chance = random.Random(7)
    said: list[str] = []
    for killed in range(3):
        first = 1 + sum(line.startswith("intent") for line in said) + killed
        writer = await process("act", url, str(first))
        assert writer.stdout is not None
        said.append((await writer.stdout.readline()).decode().strip())
        await asyncio.sleep(chance.random() * 0.1)
        writer.send_signal(signal.SIGKILL)
        rest = (await writer.stdout.read()).decode()
        await writer.wait()
        said += [line for line in rest.split("\n")[:-1] if line]
        async with await Ledger.open(url) as ledger:
            check(said, {r.intent.fence.token: r.outcome for r in await ledger.intents("inc00001")})


def check(said: list[str], known: dict[str, object]) -> None:
    numbers = {token.rsplit("-", 1)[1]: outcome for token, outcome in known.items()}
    for line in said:
        word, number = line.split()
        assert number in numbers, f"{line} was said and is lost"
        if word == "outcome":
            assert numbers[number] is not None, f"{line} was said and is lost"


async def test_two_processes_contend_for_the_lease_and_no_write_is_lost(url: str) -> None:
    await prepare(url)
    async with await Ledger.open(url) as ledger:
        held = await ledger.lease(KEY)
        assert held is not None
        await ledger.release_lease(held)
        guards = await process("contend", url, "-", "2")
        out, _ = await guards.communicate()
        assert (guards.returncode, out) == (0, b"done\n" * 2)
        assert await ledger.health(KEY) == "50"
        again = await ledger.acquire_lease(KEY, "three", NOW, 60)
        assert again.number == held.number + 51


async def test_a_locked_ledger_is_waited_for(sqlite: Ledger, sqlite_lease: Lease) -> None:
    assert sqlite.location.path is not None
    with sqlite3.connect(sqlite.location.path, isolation_level=None) as other:
        other.execute("BEGIN IMMEDIATE")
        writing = asyncio.create_task(sqlite.save_health(sqlite_lease, KEY, "x"))
        done, _ = await asyncio.wait([writing], timeout=0.3)
        assert not done
        assert await sqlite.health(KEY) == ""
        other.execute("ROLLBACK")
        await writing
    other.close()
    assert await sqlite.health(KEY) == "x"


async def test_a_ledger_locked_for_long_is_unavailable_and_then_works_again(
    sqlite: Ledger, sqlite_lease: Lease
) -> None:
    assert sqlite.location.path is not None
    with sqlite3.connect(sqlite.location.path, isolation_level=None) as other:
        other.execute("BEGIN IMMEDIATE")
        writes = [sqlite.save_health(sqlite_lease, KEY, f"x{n}") for n in range(3)]
        results = await asyncio.gather(*writes, return_exceptions=True)
        assert all(isinstance(result, LedgerUnavailableError) for result in results)
        other.execute("ROLLBACK")
    other.close()
    assert await sqlite.health(KEY) == ""
    await sqlite.save_health(sqlite_lease, KEY, "again")
    assert await sqlite.health(KEY) == "again"


async def test_a_file_that_may_not_grow_is_a_full_disk(url: str, backend: str, tmp_path: Path) -> None:
    if backend != "sqlite":
        pytest.skip("a server's disk is not ours to limit")
    await prepare(url)
    filling = await process("fill", url, str(600_000))
    out, _ = await filling.communicate()
    refusal, end = out.decode().splitlines()
    assert str(tmp_path) in refusal
    assert end == "recovered"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    place = tmp_path / "small"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)]
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("needs root to mount a small disk")
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("this kernel does not let us mount a small disk")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


async def test_a_full_disk_refuses_loses_nothing_and_passes(small_disk: Path) -> None:
    url = f"sqlite:///{small_disk}/ledger.db"
    await prepare(url)
    async with await Ledger.open(url, patience=1) as ledger:
        lease = await ledger.acquire_lease(KEY, "guard", NOW, 1e6)
        await ledger.write_intent(lease, facts.intent(lease))
        ballast = small_disk / "ballast"
        with ballast.open("wb") as file:
            file.write(b"\0" * (shutil.disk_usage(small_disk).free - 8192))
        with pytest.raises(LedgerUnavailableError, match="full"):
            await ledger.save_health(lease, KEY, "x" * 100_000)
        with pytest.raises(LedgerUnavailableError, match="can't be written"):
            await ledger.add_evidence(lease, "inc00001", [facts.evidence("x" * 200_000)])
        assert await ledger.health(KEY) == ""
        assert await ledger.evidence("inc00001") == []
        assert len(await ledger.pending_intents(KEY)) == 1
        ballast.unlink()
        await ledger.save_health(lease, KEY, "x" * 100_000)
        await ledger.write_outcome(lease, facts.outcome())
    async with await Ledger.open(url) as ledger:
        assert await ledger.pending_intents(KEY) == []


async def test_a_ledger_that_is_gone_is_unavailable_until_it_is_back(
    sqlite: Ledger, sqlite_lease: Lease
) -> None:
    path = sqlite.location.path
    assert path is not None
    away = path.parent / "away"
    away.mkdir()
    for part in path.parent.glob("file.db*"):
        part.rename(away / part.name)
    with pytest.raises(LedgerUnavailableError, match="is gone"):
        await sqlite.save_health(sqlite_lease, KEY, "x")
    with pytest.raises(LedgerUnavailableError, match="is gone"):
        await sqlite.health(KEY)
    assert not path.exists()
    for part in away.iterdir():
        part.rename(path.parent / part.name)
    await sqlite.save_health(sqlite_lease, KEY, "y")
    assert await sqlite.health(KEY) == "y"


async def test_an_empty_database_in_the_ledgers_place_is_not_filled(
    sqlite: Ledger, sqlite_lease: Lease
) -> None:
    """One that somebody is still putting back, or made by mistake, would otherwise become a second ledger."""
    path = sqlite.location.path
    assert path is not None
    await sqlite.save_health(sqlite_lease, KEY, "before")
    away = path.parent / "away"
    away.mkdir()
    for part in path.parent.glob("file.db*"):
        part.rename(away / part.name)
    with sqlite3.connect(path) as empty:
        empty.execute("PRAGMA journal_mode=WAL")
        assert path.stat().st_size
        with pytest.raises(LedgerUnavailableError, match="no ledger yet"):
            await sqlite.health(KEY)
        with pytest.raises(LedgerUnavailableError, match="no ledger yet"):
            await sqlite.save_health(sqlite_lease, KEY, "x")
        assert empty.execute("SELECT count(*) FROM sqlite_master").fetchone() == (0,)
    empty.close()
    for part in path.parent.glob("file.db*"):
        part.unlink()
    for part in away.iterdir():
        part.rename(path.parent / part.name)
    assert await sqlite.health(KEY) == "before"
    await sqlite.save_health(sqlite_lease, KEY, "after")
    assert await sqlite.health(KEY) == "after"


async def test_a_connection_that_opens_while_the_file_is_away_makes_none(tmp_path: Path) -> None:
    async with await Ledger.open(f"sqlite:///{tmp_path / 'a b#c%.db'}", patience=2) as ledger:
        path = ledger.location.path
        assert path is not None and path.exists()
        held = path.rename(tmp_path / "away")
        await ledger._engine.dispose()
        ledger._identity = None  # as though the look just before had still found it
        with pytest.raises(LedgerUnavailableError):
            await ledger.health(KEY)
        assert not path.exists()
        held.rename(path)
        assert await ledger.health(KEY) == ""


async def test_a_ledger_put_back_from_a_copy_is_noticed(
    sqlite: Ledger, sqlite_lease: Lease, tmp_path: Path
) -> None:
    """SQLite would go on writing into the deleted file, and all of it would be lost."""
    path = sqlite.location.path
    assert path is not None
    await sqlite.save_health(sqlite_lease, KEY, "before")
    with sqlite3.connect(path) as source, sqlite3.connect(tmp_path / "copy.db") as target:
        source.backup(target)
    source.close()
    target.close()
    await sqlite.save_health(sqlite_lease, KEY, "after")
    for side in path.parent.glob("file.db-*"):
        side.unlink()
    (tmp_path / "copy.db").rename(path)
    assert await sqlite.health(KEY) == "before"
    await sqlite.save_health(sqlite_lease, KEY, "again")
    async with await Ledger.open(f"sqlite:///{path}") as other:
        assert await other.health(KEY) == "again"


async def test_a_cancelled_write_is_whole_and_leaves_no_lock(ledger: Ledger, lease: Lease) -> None:
    chance, last = random.Random(3), ""
    for number in range(40):
        task = asyncio.create_task(ledger.save_health(lease, KEY, str(number)))
        await asyncio.sleep(chance.random() * 0.004)
        task.cancel()
        await asyncio.wait([task])
        assert await ledger.health(KEY) in {str(number), last}
        last = await ledger.health(KEY)
    started = time.monotonic()
    await ledger.save_health(lease, KEY, "last")
    assert await ledger.health(KEY) == "last"
    assert time.monotonic() - started < 4


async def test_a_write_begun_is_finished_though_its_caller_is_cancelled(
    sqlite: Ledger, sqlite_lease: Lease
) -> None:
    assert sqlite.location.path is not None
    with sqlite3.connect(sqlite.location.path, isolation_level=None) as other:
        other.execute("BEGIN IMMEDIATE")
        writing = asyncio.create_task(sqlite.save_health(sqlite_lease, KEY, "whole"))
        await asyncio.wait([writing], timeout=0.2)
        writing.cancel()
        await asyncio.wait([writing], timeout=0.1)
        other.execute("ROLLBACK")
    other.close()
    await asyncio.wait([writing])
    assert writing.cancelled()
    assert await sqlite.health(KEY) == "whole"


async def test_a_server_that_went_silent_is_unavailable_in_time() -> None:
    async def say_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    silent = await asyncio.start_server(say_nothing, "127.0.0.1", 0)
    port = silent.sockets[0].getsockname()[1]
    with pytest.raises(LedgerUnavailableError):
        await asyncio.wait_for(Ledger.open(f"postgresql://u:p@127.0.0.1:{port}/x", patience=0.5), 20)
    silent.close()


async def test_hundreds_of_guards_share_one_ledger(ledger: Ledger) -> None:
    async def guard(number: int) -> None:
        key = f"local/here/{number}"
        lease = await ledger.acquire_lease(key, "worker", NOW, 60)
        await ledger.save_health(lease, key, str(number))
        assert await ledger.health(key) == str(number)

    await asyncio.gather(*(guard(number) for number in range(200)))
