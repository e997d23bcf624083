"""Every test of what the ledger records runs on SQLite and, where TRAINGUARD_TEST_POSTGRES names a
server on which databases may be made (postgresql://user@host:port/postgres), on Postgres too."""

from __future__ import annotations

import os
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from sqlalchemy import text
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import create_async_engine

from tests.ledger import facts
from trainguard.core.decision import Lease
from trainguard.ledger.ledger import Ledger

SERVER = os.environ.get("TRAINGUARD_TEST_POSTGRES", "")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "backend" in metafunc.fixturenames:
        metafunc.parametrize("backend", ["sqlite", "postgres"] if SERVER else ["sqlite"])


async def _run(*statements: str) -> None:
    address = make_url(SERVER).set(drivername="postgresql+asyncpg")
    engine = create_async_engine(address, isolation_level="AUTOCOMMIT")
    async with engine.connect() as connection:
        for statement in statements:
            await connection.execute(text(statement))
    await engine.dispose()


@pytest.fixture
async def url(backend: str, tmp_path: Path) -> AsyncIterator[str]:
    if backend == "sqlite":
        yield f"sqlite:///{tmp_path / 'ledger.db'}"
        return
    name = f"tg_{uuid.uuid4().hex[:12]}"
    await _run(f"CREATE DATABASE {name}")
    yield make_url(SERVER).set(database=name).render_as_string(hide_password=False)
    await _run(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
async def ledger(url: str) -> AsyncIterator[Ledger]:
    async with await Ledger.open(url, patience=5) as opened:
        yield opened


@pytest.fixture
async def lease(ledger: Ledger) -> Lease:
    await ledger.register_job(facts.JOB, "{}", facts.NOW)
    return await ledger.acquire_lease(facts.KEY, "guard-1", facts.NOW, 600)


@pytest.fixture
async def fenced(ledger: Ledger, lease: Lease) -> Lease:
    """A lease that another guard took over."""
    await ledger.open_incident(lease, facts.incident())
    await ledger.acquire_lease(facts.KEY, "guard-2", facts.NOW, 600, take_over=True)
    return lease


@pytest.fixture
async def sqlite(tmp_path: Path) -> AsyncIterator[Ledger]:
    """A ledger in a file, for what only files can suffer."""
    async with await Ledger.open(f"sqlite:///{tmp_path / 'file.db'}", patience=2) as opened:
        yield opened


@pytest.fixture
async def sqlite_lease(sqlite: Ledger) -> Lease:
    lease = await sqlite.acquire_lease(facts.KEY, "guard-1", facts.NOW, 600)
    await sqlite.open_incident(lease, facts.incident())
    return lease


@pytest.fixture
async def sqlite_fenced(sqlite: Ledger, sqlite_lease: Lease) -> Lease:
    await sqlite.acquire_lease(facts.KEY, "guard-2", facts.NOW, 600, take_over=True)
    return sqlite_lease
