"""Opening a ledger of any version: looked at first, then migrated, or refused and left as it was."""

from __future__ import annotations

import os
import sqlite3
import tempfile
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from alembic.operations import Operations
from alembic.runtime.migration import MigrationContext, StampStep
from alembic.script import ScriptDirectory
from alembic.util.exc import CommandError
from sqlalchemy import Connection, inspect, text

from trainguard.core.errors import LedgerDamagedError, LedgerUnavailableError, LedgerVersionError
from trainguard.ledger import tables

MIGRATIONS = Path(__file__).parent / "migrations"
_CHECKED_WHOLE = 32 * 1024 * 1024
"""Bytes up to which the whole file is checked on opening; larger ones are checked as they are read."""
_LOCK = 0x7467_6C64
"""The Postgres advisory lock that lets one process migrate at a time."""


def inspect_file(path: Path, migrations: Path = MIGRATIONS) -> bool:
    """Look at a SQLite file without changing it, and say whether it holds a ledger: it may be empty yet.

    Raises LedgerDamagedError, LedgerVersionError or LedgerUnavailableError, each with the path and the remedy.
    """
    try:
        # Only SQLite may open the file: closing any other handle on it would drop the locks of this process's
        # other connections (fcntl), and another process would then delete the WAL under them.
        if path.stat().st_size == 0:
            return False
    except FileNotFoundError:
        return False
    except OSError as error:
        raise LedgerUnavailableError(f"{path} can't be read: {error.strerror}") from error
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=5)) as found:
            return _inspect(found, path, migrations)
    except sqlite3.DatabaseError as error:
        if isinstance(error, sqlite3.OperationalError):
            raise LedgerUnavailableError(f"{path} can't be read: {error}") from error
        raise LedgerDamagedError(f"{path} is damaged: {error}. {_REMEDY}") from error


_REMEDY = "It was not touched; move it away, or put back a copy from its folder, and start again."


def _inspect(found: sqlite3.Connection, path: Path, migrations: Path) -> bool:
    if path.stat().st_size <= _CHECKED_WHOLE:
        (verdict,) = found.execute("PRAGMA quick_check(1)").fetchone()
        if verdict != "ok":
            raise LedgerDamagedError(f"{path} is damaged: {verdict}. {_REMEDY}")
    names = {name for (name,) in found.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    if tables.VERSION_TABLE not in names:
        if names:
            raise LedgerDamagedError(
                f"{path} is the database of something else (it has the table {min(names)}). {_REMEDY}"
            )
        return False
    # The table's name is a constant of this package.
    rows = found.execute(f"SELECT version_num FROM {tables.VERSION_TABLE}").fetchall()  # noqa: S608
    require_known([version for (version,) in rows], str(path), migrations)
    return bool(rows)


def require_known(versions: Sequence[str], where: str, migrations: Path = MIGRATIONS) -> None:
    """Raise LedgerVersionError for a version that no migration here leads to."""
    script = ScriptDirectory(str(migrations))
    for version in versions:
        try:
            script.get_revision(version)
        except CommandError as error:
            raise LedgerVersionError(
                f"{where} was written by a newer trainguard (schema {version}; this one knows up to"
                f" {script.get_current_head()}). It was not touched; upgrade trainguard, or set"
                " TRAINGUARD_LEDGER_URL to another ledger."
            ) from error


def migrate(connection: Connection, path: Path | None, migrations: Path = MIGRATIONS) -> None:
    """Bring the schema up to date inside the caller's transaction, which holds the write lock."""
    if path is None:
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK})
    versions = _versions(connection)
    require_known(versions, "the ledger", migrations)
    script = ScriptDirectory(str(migrations))
    if set(versions) == set(script.get_heads()):
        return
    if path is not None and versions:
        back_up(path, "-".join(versions))

    def upgrade(revision: tuple[str, ...], context: MigrationContext) -> list[StampStep]:
        del context
        return script._upgrade_revs("heads", revision)  # type: ignore[arg-type, return-value]

    opts = {"fn": upgrade, "version_table": tables.VERSION_TABLE}
    context = MigrationContext.configure(connection, opts=opts)
    # Given to the migrations by hand: alembic's own `op` is one for the process, and two ledgers that are opened
    # at once in one event loop would write each other's tables.
    context.run_migrations(op=Operations(context))


def _versions(connection: Connection) -> list[str]:
    if not inspect(connection).has_table(tables.VERSION_TABLE):
        return []
    found = connection.execute(text(f"SELECT version_num FROM {tables.VERSION_TABLE}"))  # noqa: S608
    return [row[0] for row in found]


def back_up(path: Path, version: str) -> Path:
    """Copy a SQLite ledger beside itself, whole and synced, under a name not yet taken."""
    folder = path.parent
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".copying", dir=folder)
    os.close(handle)
    copying = Path(name)
    try:
        with (
            closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as source,
            closing(sqlite3.connect(copying)) as target,
        ):
            source.backup(target)
        number = 1
        while True:
            backup = folder / f"{path.name}.before-{version}-{number}"
            try:
                os.link(copying, backup)  # unlike a rename it never replaces
                return backup
            except FileExistsError:
                number += 1
    except (sqlite3.Error, OSError) as error:
        raise LedgerUnavailableError(f"{path} could not be copied before its migration: {error}") from error
    finally:
        copying.unlink(missing_ok=True)
