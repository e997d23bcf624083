"""What the watch shows where it has fallen silent: limits run on what is known afresh, never on old news."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from tests.schedulers.kubernetes_fake import Asked, FakeKube
from trainguard.core.job import Job, JobRef
from trainguard.core.observation import Liveness, Observation
from trainguard.schedulers.kubernetes import informer, sight
from trainguard.schedulers.kubernetes.api import ClusterApi
from trainguard.schedulers.kubernetes.kinds import KINDS, NODE
from trainguard.schedulers.kubernetes.reading import Limits
from trainguard.schedulers.kubernetes.sight import ClusterSight
from trainguard.schedulers.kubernetes.store import ManifestStore

Object = dict[str, Any]
Rule = Callable[[Asked], tuple[int, str] | None]
SETS = "/apis/apps/v1/namespaces/ml/statefulsets"
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
    limits = Limits(node=NODE_LIMIT, ready=0.5)
    one = ClusterSight(ClusterApi(kube), "c", limits, 10.0, ManifestStore(tmp_path))
    yield one
    await one.close()


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lists again whenever it is asked to, and reads again at every look."""
    monkeypatch.setattr(informer, "REFRESH_SECONDS", 0.0)
    monkeypatch.setattr(sight, "REUSE_SECONDS", 0.0)


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


def refuse_nodes(status: int, why: str) -> Rule:
    return lambda asked: (status, why) if asked.path == NODES else None


async def test_where_nodes_can_not_be_reached_a_pod_that_is_not_ready_may_be_on_a_dead_one(
    kube: FakeKube, seen: ClusterSight
) -> None:
    kube.rules.append(refuse_nodes(503, "away"))
    told = await look(seen)
    assert (told.liveness, "nodes" in told.reason) == (Liveness.UNKNOWN, True)
    kube.rules.clear()
    sequence = -1
    async with asyncio.timeout(20):
        while (await look(seen)).native != "NodeLost":
            sequence = await seen.wait(sequence, 1)


async def test_where_nodes_can_not_be_reached_a_pod_that_is_ready_runs(
    kube: FakeKube, seen: ClusterSight
) -> None:
    kube.rules.append(refuse_nodes(503, "away"))
    kube.objects[f"{PODS}/train-1"]["status"] |= condition("True")
    assert (await look(seen)).liveness is Liveness.RUNNING


async def test_nodes_that_may_not_be_seen_are_held_against_nobody(kube: FakeKube, seen: ClusterSight) -> None:
    kube.rules.append(refuse_nodes(403, 'nodes is forbidden: User "u" cannot list resource "nodes"'))
    assert (await look(seen)).liveness is Liveness.RUNNING


async def test_a_pod_that_went_with_its_node_was_stopped_by_nobody_and_one_that_somebody_deleted_stays_stopped(
    kube: FakeKube, seen: ClusterSight, eager: None
) -> None:
    job = Job(ref=JobRef(scheduler="kubernetes", cluster="c", id="ml/Pod/train-1"), name="train")

    async def told() -> Observation:
        return (await seen.observe([job]))[job.ref]

    async def without(path: str) -> None:
        del kube.objects[path]
        for kind in (KINDS["Pod"], NODE):
            await seen.informer(kind, "" if kind is NODE else "ml").refresh(5)

    one = kube.objects[f"{PODS}/train-1"]
    one["status"] |= condition("True")
    assert (await told()).liveness is Liveness.RUNNING
    await without(f"{PODS}/train-1")
    assert (await told()).liveness is Liveness.STOPPED
    await without(f"{NODES}/n1")
    assert (await told()).liveness is Liveness.STOPPED
    kube.add(PODS, {**one, "metadata": {**one["metadata"], "uid": "another"}})
    await seen.informer(KINDS["Pod"], "ml").refresh(5)
    assert (await told()).liveness is Liveness.RUNNING
    await without(f"{PODS}/train-1")
    assert ((await told()).liveness, (await told()).native) == (Liveness.FAILED, "NodeLost")


async def test_a_statefulset_that_may_make_no_pod_is_stuck_and_one_that_was_just_changed_is_not(
    kube: FakeKube, seen: ClusterSight, eager: None
) -> None:
    status = {"observedGeneration": 1}
    meta = {"name": "train", "namespace": "ml", "generation": 1, "creationTimestamp": "2026-01-01T00:00:00Z"}
    kube.add(SETS, {"metadata": meta, "spec": {"replicas": 1}, "status": status})
    job = Job(ref=JobRef(scheduler="kubernetes", cluster="c", id="ml/StatefulSet/train"), name="train")

    async def told() -> Observation:
        return (await seen.observe([job]))[job.ref]

    assert not (await told()).stuck
    await asyncio.sleep(0.7)
    assert "quota" in (await told()).stuck
    kube.add(SETS, {"metadata": {**meta, "uid": "uid-other"}, "spec": {"replicas": 1}, "status": status})
    await seen.informer(KINDS["StatefulSet"], "ml").refresh(5)
    assert not (await told()).stuck
