"""Transactions on the ledger: durable, bounded in time, whole or not at all."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import Table, event, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Connection, Row
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_delay, wait_random_exponential

from trainguard.core.decision import Lease
from trainguard.core.errors import LeaseLostError, LedgerError, LedgerUnavailableError
from trainguard.ledger import tables
from trainguard.ledger.foreign import LedgerBusyError, translate
from trainguard.ledger.location import Location
from trainguard.ledger.schema import inspect_file, migrate

T = TypeVar("T")
Work = Callable[[AsyncConnection], Awaitable[T]]

_BUSY_MS = 1000
"""How long SQLite itself waits for a lock, in its own thread; then we wait, without one."""
_CONNECTIONS = 5
_MORE = 10
"""Connections beyond those while many guards write at once; closed again afterwards."""
_QUEUE = 60.0
"""Seconds to wait for the guards of this process that came first. They move on, or fail for their own reasons."""
_FROZEN = 3
"""Times the patience that Postgres lets a transaction stand still before it takes its locks away."""
_SETTLED = 0.5
"""Seconds for which a file that was put back must stay the same, its side files too, before it is opened."""
_WRITES = "tg_writes"


class Store:
    """One database, its connections and its transactions. Belongs to one event loop."""

    def __init__(self, location: Location, patience: float) -> None:
        self.location = location
        self._patience = patience
        self._engine = _engine(location, patience)
        self._writer = asyncio.Lock()
        self._finder = asyncio.Lock()
        self._identity: tuple[int, int] | None = None

    async def _prepare(self) -> None:
        """Look, then migrate. Raises the errors of `schema.inspect_file`."""
        path = self.location.path
        if path is not None:
            await asyncio.to_thread(_make_room, path)
            await asyncio.to_thread(inspect_file, path)

        async def work(tx: AsyncConnection) -> None:
            await tx.run_sync(migrate, path)

        await _finish(self._patiently(lambda: self._transaction(work, writes=True)))
        self._identity = None if path is None else _identity(path)

    async def _write(self, work: Work[T], lease: Lease | None = None) -> T:
        """Run `work` in one durable transaction, refused with LeaseLostError if `lease` is fenced off.

        It runs to its end though the caller is cancelled, so that no half of it is ever left hanging.
        """

        async def fenced(tx: AsyncConnection) -> T:
            if lease is not None:
                await require(tx, lease)
            return await work(tx)

        return await _finish(self._patiently(lambda: self._serially(fenced)))

    async def _read(self, work: Work[T]) -> T:
        """Run `work`; to its end too: a connection cut off while it opens is never closed."""

        async def once() -> T:
            await self._find_file()
            return await self._transaction(work, writes=False)

        return await _finish(self._patiently(once))

    async def _patiently(self, attempt: Callable[[], Awaitable[T]]) -> T:
        """Try again while the database is locked, at most `patience` seconds."""
        retrying = AsyncRetrying(
            retry=retry_if_exception_type(LedgerBusyError),
            wait=wait_random_exponential(multiplier=0.05, max=1.0),
            stop=stop_after_delay(self._patience),
            reraise=True,
        )
        async for one in retrying:
            with one:
                return await attempt()
        raise AssertionError("tenacity gives up by raising")

    async def _serially(self, work: Work[T]) -> T:
        """Let one write of this process at a time at a SQLite file; Postgres locks rows itself."""
        if self.location.path is None:
            return await self._transaction(work, writes=True)
        try:
            await asyncio.wait_for(self._writer.acquire(), _QUEUE)
        except TimeoutError as error:
            raise LedgerUnavailableError(f"{self.location} is busy") from error
        try:
            await self._find_file()
            result = await self._transaction(work, writes=True)
            # What was committed into a file that was deleted meanwhile is lost: say so.
            self._check_file(self.location.path)
            return result
        finally:
            self._writer.release()

    async def _transaction(self, work: Work[T], *, writes: bool) -> T:
        try:
            async with self._connection(writes) as connection, connection.begin():
                return await work(connection)
        except (SQLAlchemyError, sqlite3.Error, OSError) as error:
            raise translate(error, str(self.location)) from error

    @asynccontextmanager
    async def _connection(self, writes: bool) -> AsyncIterator[AsyncConnection]:
        async with self._engine.connect() as connection:
            await connection.execution_options(**{_WRITES: writes})
            try:
                yield connection
            except (DBAPIError, OSError):
                # After a full disk or a lost server the connection's own state is not to be trusted.
                if not connection.invalidated:
                    await connection.invalidate()
                raise

    async def _find_file(self) -> None:
        """Notice that the file was removed or replaced, which SQLite itself does not."""
        path = self.location.path
        if path is None or self._identity is None:
            return
        try:
            self._check_file(path)
        except _ReplacedError:
            async with self._finder:
                await self._reopen(path)

    async def _reopen(self, path: Path) -> None:
        """Use the file that lies at `path` now, once it is whole: a ledger is put back in several steps."""
        with contextlib.suppress(_ReplacedError):
            return self._check_file(path)  # another of this process's tasks has seen to it
        before = _parts(path)
        await asyncio.sleep(_SETTLED)
        if _parts(path) != before or not await asyncio.to_thread(inspect_file, path):
            raise _ReplacedError(f"{path} was replaced by a file that is no ledger yet")
        await self._engine.dispose()
        await self._prepare()
        return None

    def _check_file(self, path: Path) -> None:
        if _identity(path) != self._identity:
            raise _ReplacedError(f"{path} was replaced by another file")

    async def _dispose(self) -> None:
        await _finish(self._engine.dispose())


class _ReplacedError(LedgerUnavailableError):
    """Another file lies at the ledger's path."""


async def lock_job(tx: AsyncConnection, job_key: str) -> Row[Any]:
    """Serialise on the job and give its lease row, making an unheld one where there is none."""
    await insert_missing(
        tx, tables.leases, {"job_key": job_key, "holder": "", "number": 0, "expires_at": 0.0}
    )
    found = select(tables.leases).where(tables.leases.c.job_key == job_key).with_for_update()
    return (await tx.execute(found)).one()


async def require(tx: AsyncConnection, lease: Lease) -> Row[Any]:
    """Give the lease's row, locked. Raises LeaseLostError where another guard owns the job by now."""
    found = select(tables.leases).where(tables.leases.c.job_key == lease.job_key).with_for_update()
    row = (await tx.execute(found)).one_or_none()
    if row is None or row.number != lease.number or row.holder != lease.holder:
        owner = f"{row.holder} owns it" if row is not None and row.holder else "nobody owns it"
        raise LeaseLostError(
            f"{lease.holder} no longer guards {lease.job_key} (lease {lease.number}): {owner}"
        )
    return row


async def insert_missing(tx: AsyncConnection, table: Table, values: dict[str, Any]) -> bool:
    """Insert unless the row's key or a unique constraint is taken; say whether it was inserted."""
    if tx.dialect.name == "postgresql":
        result = await tx.execute(postgresql.insert(table).values(values).on_conflict_do_nothing())
    else:
        result = await tx.execute(sqlite.insert(table).values(values).on_conflict_do_nothing())
    return result.rowcount == 1


async def upsert(tx: AsyncConnection, table: Table, key: dict[str, Any], values: dict[str, Any]) -> None:
    """Insert, or set only `values` where the row of that primary key exists."""
    columns = list(key)
    if tx.dialect.name == "postgresql":
        statement = postgresql.insert(table).values({**key, **values})
        await tx.execute(statement.on_conflict_do_update(index_elements=columns, set_=values))
    else:
        other = sqlite.insert(table).values({**key, **values})
        await tx.execute(other.on_conflict_do_update(index_elements=columns, set_=values))


async def _finish(work: Coroutine[Any, Any, T]) -> T:
    """Run to the end in spite of the caller's cancellation, which is passed on afterwards."""
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        if not task.cancelled():
            task.exception()  # seen: nobody is left to be told
        raise


def _engine(location: Location, patience: float) -> AsyncEngine:
    pool = {"pool_size": _CONNECTIONS, "max_overflow": _MORE, "pool_timeout": _QUEUE}
    if location.path is None:
        # Without limits a server that went silent would be waited for until TCP gives up, and a process that
        # froze, or whose machine is gone, in the middle of a write would keep its rows locked for everybody.
        idle = {"idle_in_transaction_session_timeout": f"{int(patience * _FROZEN * 1000)}"}
        limits = {"timeout": patience, "command_timeout": patience, "server_settings": idle}
        return create_async_engine(location.url, pool_pre_ping=True, connect_args=limits, **pool)
    # mode=rw: a connection that opens while the file is away must fail, not put an empty one in its place.
    existing = location.url.set(database=location.path.as_uri(), query={"mode": "rw", "uri": "true"})
    engine = create_async_engine(existing, **pool)
    event.listen(engine.sync_engine, "connect", _set_up_sqlite)
    event.listen(engine.sync_engine, "begin", _begin_sqlite)
    return engine


def _set_up_sqlite(connection: DBAPIConnection, record: object) -> None:
    del record
    connection.isolation_level = None  # we begin transactions, the driver never
    cursor = connection.cursor()
    cursor.execute(f"PRAGMA busy_timeout={_BUSY_MS}")
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=FULL")
    cursor.execute("PRAGMA foreign_keys=ON")
    cursor.execute("PRAGMA journal_size_limit=67108864")
    cursor.close()


def _begin_sqlite(connection: Connection) -> None:
    writes = connection.get_execution_options().get(_WRITES, False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _make_room(path: Path) -> None:
    """Make the folder and an empty file that only its owner can read; SQLite's side files follow it."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.touch(mode=0o600)
    except OSError as error:
        raise LedgerUnavailableError(f"{path} can't be made: {error.strerror}") from error


def _parts(path: Path) -> dict[str, tuple[int, int]]:
    """Which files the database consists of."""
    return {part.name: _identity(part) for part in path.parent.glob(f"{path.name}*") if part.is_file()}


def _identity(path: Path) -> tuple[int, int]:
    try:
        found = os.stat(path)  # noqa: PTH116
    except FileNotFoundError as error:
        raise LedgerUnavailableError(f"{path} is gone") from error
    except OSError as error:
        raise LedgerUnavailableError(f"{path} can't be reached: {error.strerror}") from error
    return found.st_dev, found.st_ino


def missing(what: str, name: str) -> LedgerError:
    """Name what the ledger does not know."""
    return LedgerError(f"the ledger knows no {what} {name}")
