"""The lab's clusters, and what every test leaves behind: nothing."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.labs.slurm.lab_cluster import Cluster

HOW = "no Slurm lab is running; `make test-labs LABS=slurm` as root on Debian starts one"


def _facts(name: str) -> dict[str, str]:
    lab = os.environ.get("TRAINGUARD_SLURM_LAB", "")
    path = Path(lab) / name / "facts.env"
    if not lab or not path.exists():
        pytest.skip(HOW)
    return dict(line.partition("=")[::2] for line in path.read_text().splitlines() if "=" in line)


def _names() -> list[str]:
    return os.environ.get("TRAINGUARD_SLURM_CLUSTERS", "tgacct tgbare").split()


@pytest.fixture(params=_names())
async def cluster(request: pytest.FixtureRequest) -> AsyncIterator[Cluster]:
    """Each of the lab's clusters in turn."""
    async for one in _cluster(request.param):
        yield one


@pytest.fixture
async def acct() -> AsyncIterator[Cluster]:
    """The cluster with accounting."""
    async for one in _cluster(_names()[0]):
        yield one


@pytest.fixture
async def bare() -> AsyncIterator[Cluster]:
    """The cluster without accounting."""
    if len(_names()) < 2:
        pytest.skip("this lab has no cluster without accounting")
    async for one in _cluster(_names()[1]):
        yield one


async def _cluster(name: str) -> AsyncIterator[Cluster]:
    one = Cluster(_facts(name))
    one.mend()
    yield one
    await one.close()
    one.run("scancel", "-u", one.facts["USER_NAME"], check=False)
    for fault in (one.folder / "faults").iterdir():
        fault.unlink()
