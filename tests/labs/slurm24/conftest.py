"""The lab's one cluster: Slurm 24.11 with accounting."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.labs.slurm.lab_cluster import Cluster

HOW = "no Slurm 24.11 lab is running; `make test-labs LABS=slurm24` as root on Debian starts one"


@pytest.fixture
async def cluster() -> AsyncIterator[Cluster]:
    """The cluster."""
    lab = os.environ.get("TRAINGUARD_SLURM24_LAB", "")
    path = Path(lab) / "facts24.env"
    if not lab or not path.exists():
        pytest.skip(HOW)
    facts = dict(line.partition("=")[::2] for line in path.read_text().splitlines() if "=" in line)
    one = Cluster(facts)
    one.mend()
    yield one
    await one.close()
    one.run("scancel", "-u", one.facts["USER_NAME"], check=False)
    for fault in (one.folder / "faults").iterdir():
        fault.unlink()


@pytest.fixture
async def acct(cluster: Cluster) -> Cluster:
    """The tests of the other lab ask for it by this name."""
    return cluster


@pytest.fixture
async def bare(cluster: Cluster) -> Cluster:
    """Where the other lab's tests take the cluster without accounting for its speed."""
    return cluster
