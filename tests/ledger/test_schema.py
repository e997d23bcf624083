"""A ledger of any version is migrated, or refused and left as it was."""

from __future__ import annotations

import asyncio
import os
import shutil
import sqlite3
import sys
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection

from tests.ledger import facts
from trainguard.core.errors import LedgerDamagedError, LedgerUnavailableError, LedgerVersionError
from trainguard.ledger import schema, store, tables
from trainguard.ledger.ledger import Ledger

HEAD = ScriptDirectory(str(schema.MIGRATIONS)).get_current_head()
NEXT = '''"""A later version."""
import sqlalchemy as sa
revision = "9999"
down_revision = "{head}"
def upgrade(op):
    op.add_column("tg_jobs", sa.Column("colour", sa.Text(), nullable=False, server_default="red"))
    {then}
'''


@pytest.fixture
def newer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Migrations as a later trainguard would have them; `use` makes this one that version."""
    folder = tmp_path / "migrations"
    shutil.copytree(schema.MIGRATIONS, folder, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def use(folder: Path, monkeypatch: pytest.MonkeyPatch, then: str = "") -> None:
    (folder / "versions" / "v9999_next.py").write_text(NEXT.format(head=HEAD, then=then))
    monkeypatch.setattr(store, "inspect_file", lambda path: schema.inspect_file(path, folder))
    monkeypatch.setattr(store, "migrate", lambda connection, path: schema.migrate(connection, path, folder))


async def make(path: Path) -> None:
    async with await Ledger.open(f"sqlite:///{path}") as ledger:
        await ledger.register_job(facts.JOB, "{}", facts.NOW)


async def test_the_migrations_make_the_tables_that_the_code_expects(ledger: Ledger) -> None:
    def differences(connection: Connection) -> list[object]:
        context = MigrationContext.configure(connection, opts={"version_table": tables.VERSION_TABLE})
        return list(compare_metadata(context, tables.metadata))

    async with ledger._engine.connect() as connection:
        assert await connection.run_sync(differences) == []


async def test_what_was_written_is_there_when_opened_again(url: str) -> None:
    async with await Ledger.open(url) as ledger:
        await ledger.register_job(facts.JOB, "{}", facts.NOW)
    async with await Ledger.open(url) as ledger:
        assert await ledger.jobs() == [facts.JOB]


async def test_an_older_ledger_is_migrated_after_a_copy(
    tmp_path: Path, newer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "ledger.db"
    await make(path)
    use(newer, monkeypatch)
    for _ in range(2):
        async with await Ledger.open(f"sqlite:///{path}") as ledger:
            assert await ledger.jobs() == [facts.JOB]
    (copy,) = tmp_path.glob("ledger.db.before-*")
    assert copy.name == f"ledger.db.before-{HEAD}-1"
    monkeypatch.undo()
    async with await Ledger.open(f"sqlite:///{copy}") as ledger:
        assert await ledger.jobs() == [facts.JOB]
    with sqlite3.connect(path) as raw:
        assert raw.execute("SELECT colour FROM tg_jobs").fetchall() == [("red",)]
    raw.close()
    assert [left.name for left in tmp_path.glob(".ledger.db*")] == []


async def test_a_migration_that_fails_half_way_changes_nothing(
    tmp_path: Path, newer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "ledger.db"
    await make(path)
    use(newer, monkeypatch, then="raise OSError('pulled the plug')")
    with pytest.raises(LedgerUnavailableError, match="pulled the plug"):
        await Ledger.open(f"sqlite:///{path}")
    monkeypatch.undo()
    async with await Ledger.open(f"sqlite:///{path}") as ledger:
        assert await ledger.jobs() == [facts.JOB]


async def test_a_newer_ledger_is_refused_untouched(
    tmp_path: Path, newer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "ledger.db"
    use(newer, monkeypatch)
    await make(path)
    monkeypatch.undo()
    before = path.read_bytes()
    with pytest.raises(LedgerVersionError, match=r"newer trainguard \(schema 9999"):
        await Ledger.open(f"sqlite:///{path}")
    assert path.read_bytes() == before


async def test_a_newer_ledger_on_a_server_is_refused(
    url: str, newer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(newer, monkeypatch)
    await (await Ledger.open(url)).close()
    monkeypatch.undo()
    with pytest.raises(LedgerVersionError, match="9999"):
        await Ledger.open(url)


async def damage(path: Path, how: str) -> None:
    if how == "foreign":
        path.write_text("These are the minutes of the meeting.")
    elif how == "another":
        with sqlite3.connect(path) as raw:
            raw.execute("CREATE TABLE flow_run (id INTEGER)")
        raw.close()
    else:
        await make(path)
        content = bytearray(path.read_bytes())
        if how == "truncated":
            content = content[: len(content) // 2]
        elif how == "cut in its header":
            content = content[:60]
        else:
            content[8192:16384] = os.urandom(8192)
        path.write_bytes(content)


@pytest.mark.parametrize("how", ["foreign", "another", "truncated", "cut in its header", "overwritten"])
async def test_what_is_no_sound_ledger_is_refused_untouched(tmp_path: Path, how: str) -> None:
    path = tmp_path / "ledger.db"
    await damage(path, how)
    before = path.read_bytes()
    with pytest.raises(LedgerDamagedError, match="not touched") as refused:
        await Ledger.open(f"sqlite:///{path}")
    assert str(path) in str(refused.value)
    assert path.read_bytes() == before


async def test_damage_that_shows_later_is_named(sqlite: Ledger) -> None:
    path = sqlite.location.path
    assert path is not None
    lease = await sqlite.acquire_lease(facts.KEY, "guard", facts.NOW, 60)
    for number in range(200):
        await sqlite.record_observation(lease, facts.observation(native=f"n{number}"), "x" * 2000)
    await sqlite.close()
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(os.urandom(path.stat().st_size - 4096))
    with pytest.raises(LedgerDamagedError):
        await sqlite.observations(facts.KEY)


async def test_an_empty_file_becomes_a_ledger(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    path.touch()
    await make(path)


async def test_a_folder_that_cant_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(LedgerUnavailableError, match="can't be made"):
        await Ledger.open(f"sqlite:///{tmp_path}/file/ledger.db")


async def test_a_server_that_does_not_answer_is_unavailable() -> None:
    with pytest.raises(LedgerUnavailableError):
        await Ledger.open("postgresql://nobody:secret@127.0.0.1:1/x", patience=1)


async def test_many_processes_may_open_a_new_ledger_at_once(url: str) -> None:
    openers = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.ledger.processes", "open_it", url, "-", "6",
        stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, _ = await openers.communicate()
    assert (openers.returncode, out) == (0, b"opened\n" * 6)
    async with await Ledger.open(url) as ledger:
        assert all([await ledger.lease(f"job-{number}") for number in range(6)])


async def test_ledgers_opened_at_once_in_one_event_loop_each_get_their_own_tables(tmp_path: Path) -> None:
    opened = await asyncio.gather(*(Ledger.open(f"sqlite:///{tmp_path / str(n)}.db") for n in range(8)))
    for ledger in opened:
        assert await ledger.jobs() == []
        await ledger.close()
