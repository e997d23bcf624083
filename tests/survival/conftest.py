"""One Prefect server for all tests here: it is killed and frozen, so it is not the one of the other tests."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.survival.scene import Channel, Scene, Server, scene


@pytest.fixture(scope="session")
def mortal(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that tests may kill; each leaves it running."""
    server = Server(tmp_path_factory.mktemp("mortal") / "prefect")
    server.start()
    try:
        yield server
    finally:
        server.stop()


@pytest.fixture
def stage(tmp_path: Path, mortal: Server) -> Iterator[Scene]:
    """A scene of this test alone."""
    with scene(tmp_path, mortal) as made:
        yield made


@pytest.fixture
async def channel() -> AsyncIterator[Channel]:
    """Where the owner is told."""
    made = await Channel().open()
    yield made
    await made.close()
