"""What the watch shows where it has fallen silent: limits run on what is known afresh, never on old news."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from tests.schedulers.kubernetes_fake import FakeKube
from trainguard.core.job import Job, JobRef
from trainguard.core.observation import Liveness, Observation
from trainguard.schedulers.kubernetes import sight
from trainguard.schedulers.kubernetes.api import ClusterApi
from trainguard.schedulers.kubernetes.reading import Limits
from trainguard.schedulers.kubernetes.sight import ClusterSight
from trainguard.schedulers.kubernetes.store import ManifestStore

Object = dict[str, Any]
JOBS, PODS, NODES = "/apis/batch/v1/namespaces/ml/jobs", "/api/v1/namespaces/ml/pods", "/api/v1/nodes"
JOB = Job(ref=JobRef(scheduler="kubernetes", cluster="c", id="ml/Job/train"), name="train")
NODE_LIMIT = 1.0


def condition(status: str) -> Object:
    stamp = datetime.now(UTC).isoformat()
    return {"conditions": [{"type": "Ready", "status": status, "lastTransitionTime": stamp}]}


@pytest.fixture
def kube() -> FakeKube:
    """A Job whose node has just fallen silent."""
    one = FakeKube()
    spec = {"template": {"spec": {"containers": []}}, "backoffLimit": 0}
    one.add(JOBS, {"metadata": {"name": "train", "namespace": "ml", "uid": "j"}, "spec": spec, "status": {}})
    owner = {"kind": "Job", "name": "train", "uid": "j", "controller": True}
    meta = {"name": "train-1", "namespace": "ml", "ownerReferences": [owner]}
    status = {"phase": "Running", **condition("False")}
    one.add(PODS, {"metadata": meta, "spec": {"nodeName": "n1"}, "status": status})
    one.add(NODES, {"metadata": {"name": "n1"}, "spec": {}, "status": condition("Unknown")})
    return one


@pytest.fixture
async def seen(
    kube: FakeKube, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> AsyncIterator[ClusterSight]:
    monkeypatch.setattr(sight, "FRESH_SECONDS", 0.2)
    monkeypatch.setattr(sight, "REFRESH_PATIENCE", 0.5)
    limits = Limits(node=NODE_LIMIT)
    one = ClusterSight(ClusterApi(kube), "c", limits, 10.0, ManifestStore(tmp_path))
    yield one
    await one.close()


async def look(seen: ClusterSight) -> Observation:
    return (await seen.observe([JOB]))[JOB.ref]


async def silence(seen: ClusterSight) -> None:
    """See the node fall silent, then hear nothing until its limit is long over."""
    assert (await look(seen)).liveness is Liveness.UNKNOWN
    await asyncio.sleep(NODE_LIMIT + 0.5)


async def test_a_node_that_is_back_is_not_lost_though_the_stream_did_not_say_so(
    kube: FakeKube, seen: ClusterSight
) -> None:
    await silence(seen)
    for path in (f"{NODES}/n1", f"{PODS}/train-1"):
        kube.objects[path]["status"] |= condition("True")
    assert (await look(seen)).liveness is Liveness.RUNNING


async def test_a_node_that_is_still_away_is_lost_after_asking_once(
    kube: FakeKube, seen: ClusterSight
) -> None:
    await silence(seen)
    before = len(kube.asked)
    for _ in range(20):
        told = await look(seen)
        assert (told.liveness, told.native) == (Liveness.FAILED, "NodeLost")
    assert len(kube.asked) - before == 3


async def test_where_nothing_can_be_asked_nothing_is_known(kube: FakeKube, seen: ClusterSight) -> None:
    await silence(seen)
    kube.rules.append(lambda asked: (503, "away"))
    began = time.monotonic()
    for _ in range(3):
        told = await look(seen)
        assert (told.liveness, bool(told.reason)) == (Liveness.UNKNOWN, True)
    assert time.monotonic() - began < 5


async def test_an_answer_that_can_not_be_understood_blinds_and_is_asked_for_again(
    kube: FakeKube, seen: ClusterSight
) -> None:
    garbage: Any = "no object"
    kube.objects[f"{JOBS}/strange"] = garbage
    assert (await look(seen)).liveness is Liveness.UNKNOWN
    del kube.objects[f"{JOBS}/strange"]
    for path in (f"{NODES}/n1", f"{PODS}/train-1"):
        kube.objects[path]["status"] |= condition("True")
    async with asyncio.timeout(20):
        while (await look(seen)).liveness is not Liveness.RUNNING:
            await asyncio.sleep(0.1)
