"""Finding jobs: each once, by the object that people know it by, and nothing that is no job."""

from __future__ import annotations

from typing import Any

import pytest

from tests.schedulers import kubernetes_fake
from tests.schedulers.kubernetes_fake import FakeKube
from trainguard.core.errors import AccessRefusedError
from trainguard.schedulers.kubernetes.api import ClusterApi
from trainguard.schedulers.kubernetes.kinds import KINDS
from trainguard.schedulers.kubernetes.patrol import discover, parse_selector

Object = dict[str, Any]


@pytest.fixture
def kube(monkeypatch: pytest.MonkeyPatch) -> FakeKube:
    monkeypatch.setattr(kubernetes_fake, "PLURALS", {kind.plural for kind in KINDS.values()})
    return FakeKube()


def put(kube: FakeKube, kind: str, name: str, owner: Object | None = None, **more: Any) -> Object:
    known = KINDS[kind]
    owners = [] if owner is None else [{"controller": True, "uid": f"{owner['name']}-uid", **owner}]
    labels = more.pop("labels", {})
    meta = {
        "name": name,
        "namespace": "ml",
        "uid": f"{name}-uid",
        "ownerReferences": owners,
        "labels": labels,
    }
    return kube.add(known.path(known.versions[0], "ml"), {"metadata": meta, **more})


async def found(kube: FakeKube, selector: str = "namespace=ml") -> list[str]:
    return sorted(name.id for name in await discover(ClusterApi(kube), parse_selector(selector)))


REPLICAS = {"apiVersion": "apps/v1", "kind": "ReplicaSet"}


@pytest.mark.parametrize("selector", ["namespace=ml", "namespace=ml kind=Pod"])
async def test_a_ray_clusters_pods_are_its_rayjobs(kube: FakeKube, selector: str) -> None:
    cluster = {"apiVersion": "ray.io/v1", "kind": "RayCluster"}
    put(kube, "RayJob", "train", status={"rayClusterName": "train-x7k2p"})
    put(kube, "Pod", "train-x7k2p-head", {**cluster, "name": "train-x7k2p"})
    put(kube, "Pod", "service-head", {**cluster, "name": "a-service"})
    put(kube, "Job", "train", {"apiVersion": "ray.io/v1", "kind": "RayJob", "name": "train"})
    assert await found(kube, selector) == ["ml/RayJob/train"]


@pytest.mark.parametrize("selector", ["namespace=ml", "namespace=ml kind=Pod", "namespace=ml label=team=a"])
async def test_a_replicaset_is_its_deployment_where_there_is_one(kube: FakeKube, selector: str) -> None:
    team = {"team": "a"}
    put(kube, "Deployment", "web", labels=team)
    put(kube, "Pod", "web-1", {**REPLICAS, "name": "web-5d9"}, labels={**team, "pod-template-hash": "5d9"})
    put(kube, "Pod", "my-own-1", {**REPLICAS, "name": "my-own"}, labels=team)
    assert await found(kube, selector) == ["ml/Deployment/web"]


@pytest.mark.parametrize("selector", ["namespace=ml", "namespace=ml kind=Pod"])
async def test_a_deployment_that_was_deleted_and_left_its_pods_is_none(kube: FakeKube, selector: str) -> None:
    put(kube, "Pod", "web-1", {**REPLICAS, "name": "web-5d9"}, labels={"pod-template-hash": "5d9"})
    assert await found(kube, selector) == []


async def test_where_deployments_may_not_be_listed_the_pods_word_counts(kube: FakeKube) -> None:
    refusal = 'deployments.apps is forbidden: User "u" cannot list resource "deployments"'
    kube.rules.append(lambda asked: (403, refusal) if asked.path.endswith("/deployments") else None)
    put(kube, "Pod", "web-1", {**REPLICAS, "name": "web-5d9"}, labels={"pod-template-hash": "5d9"})
    assert await found(kube) == ["ml/Deployment/web"]


async def test_a_pod_of_a_controller_that_nobody_here_knows_is_no_job(kube: FakeKube) -> None:
    put(kube, "Pod", "step", {"apiVersion": "argoproj.io/v1alpha1", "kind": "Workflow", "name": "flow"})
    put(kube, "Pod", "task", {"apiVersion": "batch.volcano.sh/v1alpha1", "kind": "Job", "name": "volcano"})
    put(kube, "Pod", "alone")
    put(
        kube, "Job", "wrapped", {"apiVersion": "workload.codeflare.dev/v1", "kind": "AppWrapper", "name": "w"}
    )
    assert await found(kube) == ["ml/Job/wrapped", "ml/Pod/alone"]


async def test_nothing_may_be_listed_that_was_asked_for(kube: FakeKube) -> None:
    refusal = 'pods is forbidden: User "u" cannot list resource "pods"'
    kube.rules.append(lambda asked: (403, refusal) if asked.path.endswith("/pods") else None)
    assert await found(kube) == []
    with pytest.raises(AccessRefusedError):
        await found(kube, "namespace=ml kind=Pod")
