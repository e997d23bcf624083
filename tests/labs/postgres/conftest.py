"""What deployments/compose starts, started once for all tests here."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
from prefect.client.orchestration import PrefectClient

from tests.labs.postgres.composed import AUTH, Site

HOW = "no Postgres lab is running; `make test-labs LABS=postgres` as root on Debian starts one"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if "TG_PG_PORT" not in os.environ:
        here = Path(__file__).parent
        for item in items:
            if here in item.path.parents:
                item.add_marker(pytest.mark.skip(reason=HOW))


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Migrated, server and services running."""
    made = Site(tmp_path_factory.mktemp("site"), os.environ)
    try:
        migrated = made.start("migrate").wait(240)
        assert migrated == 0, made.log("migrate")[-3000:]
        made.start("services")
        made.until_healthy("server", made.start("server"))
        yield made
    finally:
        made.close()


@asynccontextmanager
async def client_of(site: Site) -> AsyncIterator[PrefectClient]:
    """A client that knows the name and password."""
    auth = httpx.BasicAuth(*AUTH.split(":"))
    async with PrefectClient(site.url, auth_string=AUTH, httpx_settings={"auth": auth}) as client:
        yield client
