"""Acting on nodes, and on trainings whose node is silent."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.labs.kubernetes.acting import action, fence, incarnation_of, workload
from tests.labs.kubernetes.conftest import (
    Hollow,
    Kubectl,
    MakeScheduler,
    job_of,
    pod_template,
)
from tests.labs.kubernetes.proxy import Proxy
from tests.labs.kubernetes.test_watch import seen, started, until, until_seen
from trainguard.core.action import ActionKind, Outcome, OutcomeStatus
from trainguard.core.errors import RefusedError, UnreachableError
from trainguard.core.observation import Liveness
from trainguard.schedulers.kubernetes import KubernetesScheduler

pytestmark = pytest.mark.lab("kubernetes")
Object = dict[str, Any]


NODES = ["hollow-a", "hollow-b", "hollow-c"]


@pytest.fixture
async def whole_nodes(kubectl: Kubectl, hollow: Hollow) -> AsyncIterator[None]:
    """No pod of an earlier test is on the nodes any more; whatever a test does to them is undone."""

    async def left_alone() -> bool | None:
        pods = (await kubectl.get("pods", "-A", "--field-selector=status.phase=Running"))["items"]
        return True if not any(pod["spec"].get("nodeName") in NODES for pod in pods) else None

    await until(left_alone, 60)
    yield
    for node in NODES:
        await hollow.post(f"/node/{node}/revive")
        await kubectl("taint", "node", node, "node.kubernetes.io/out-of-service-", check=False)
        await kubectl("uncordon", node, check=False)

    async def ready() -> bool | None:
        nodes = (await kubectl.get("nodes", "-l", "lab/hollow=true"))["items"]
        up = [
            n
            for n in nodes
            for c in n["status"]["conditions"]
            if c["type"] == "Ready" and c["status"] == "True"
        ]
        return True if len(up) == len(NODES) and not any(n["spec"].get("taints") for n in nodes) else None

    await until(ready, 150)


async def test_cordon_and_uncordon(
    scheduler: KubernetesScheduler,
    make_scheduler: MakeScheduler,
    kubectl: Kubectl,
    namespace: str,
    whole_nodes: None,
) -> None:
    job = await started(kubectl, namespace)
    now = (await until_seen(scheduler, job, Liveness.RUNNING)).incarnation
    mark = fence()
    await scheduler.perform(job, action(ActionKind.CORDON_NODE, now, nodes=("hollow-b",)), mark)
    assert (await kubectl.get("node", "hollow-b"))["spec"]["unschedulable"]
    found = await make_scheduler().find(job, mark)
    assert found is not None
    assert found.status is OutcomeStatus.DONE
    await scheduler.perform(job, action(ActionKind.UNCORDON_NODE, now, nodes=("hollow-b",)), fence())
    assert not (await kubectl.get("node", "hollow-b"))["spec"].get("unschedulable")
    with pytest.raises(RefusedError, match="no node nowhere"):
        await scheduler.perform(job, action(ActionKind.CORDON_NODE, now, nodes=("nowhere",)), fence())


@pytest.mark.parametrize("kind", [ActionKind.CORDON_NODE, ActionKind.DRAIN_NODE])
async def test_what_was_done_to_one_of_two_nodes_is_done_to_the_other_before_it_counts(
    scheduler: KubernetesScheduler,
    make_scheduler: MakeScheduler,
    proxy: Proxy,
    kubectl: Kubectl,
    namespace: str,
    whole_nodes: None,
    kind: ActionKind,
) -> None:
    job = await started(kubectl, namespace)
    now = (await until_seen(scheduler, job, Liveness.RUNNING)).incarnation
    blocked = proxy.refuse(
        503,
        "{}",
        lambda asked: (
            asked.method == "PATCH" and asked.path.endswith("hollow-b") and "dryRun" not in asked.path_qs
        ),
    )
    mark = fence()
    begun = await scheduler.perform(job, action(kind, now, nodes=("hollow-a", "hollow-b")), mark)
    assert begun.status is OutcomeStatus.UNKNOWN
    assert not (await kubectl.get("node", "hollow-b"))["spec"].get("unschedulable")
    blocked.times = 0
    found = await make_scheduler().find(job, mark)
    assert found is not None
    assert found.status is OutcomeStatus.DONE, found
    for node in ("hollow-a", "hollow-b"):
        assert (await kubectl.get("node", node))["spec"]["unschedulable"]


@pytest.mark.parametrize("lost", ["bare", "emptyDir"])
async def test_a_drain_is_refused_where_kubectl_refuses_it_and_changes_nothing(
    scheduler: KubernetesScheduler, kubectl: Kubectl, namespace: str, whole_nodes: None, lost: str
) -> None:
    theirs = {"apiVersion": "v1", "kind": "Pod", **pod_template("healthy", "Never", "theirs")}
    theirs["metadata"] |= {"name": "theirs", "namespace": namespace}
    if lost == "emptyDir":
        theirs = workload("Deployment", namespace, "healthy")
        theirs["metadata"]["name"] = "theirs"
        theirs["spec"]["template"]["spec"]["volumes"] = [{"name": "scratch", "emptyDir": {}}]
    await kubectl.apply(theirs)
    other = job_of(namespace, theirs["kind"], "theirs")
    node = (await until_seen(scheduler, other, Liveness.RUNNING)).nodes[0]
    job = await started(kubectl, namespace, name="mine")
    now = (await until_seen(scheduler, job, Liveness.RUNNING)).incarnation
    said = await kubectl("drain", node, "--dry-run=server", "--ignore-daemonsets", check=False)
    assert ("not managed by" if lost == "bare" else "local storage") in said
    with pytest.raises(RefusedError, match="nobody makes again" if lost == "bare" else "emptyDir"):
        await scheduler.perform(job, action(ActionKind.DRAIN_NODE, now, nodes=(node,)), fence())
    assert "unschedulable" not in (await kubectl.get("node", node))["spec"]
    told = await until_seen(scheduler, other, Liveness.RUNNING)
    own = action(ActionKind.DRAIN_NODE, told.incarnation, nodes=(node,))
    assert (await scheduler.perform(other, own, fence())).status is OutcomeStatus.DONE


async def test_a_drain_respects_a_disruption_budget_and_is_finished_later(
    make_scheduler: MakeScheduler,
    kubectl: Kubectl,
    hollow: Hollow,
    namespace: str,
    whole_nodes: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scheduler = make_scheduler(action_seconds=4.0)
    await kubectl.apply(workload("Deployment", namespace, "healthy"))
    job = job_of(namespace, "Deployment", "train")
    told = await until_seen(scheduler, job, Liveness.RUNNING)
    budget = {
        "apiVersion": "policy/v1beta1",
        "kind": "PodDisruptionBudget",
        "metadata": {"name": "keep", "namespace": namespace},
        "spec": {"minAvailable": 1, "selector": {"matchLabels": {"app": "train"}}},
    }
    await kubectl.apply(budget)

    async def counted() -> bool | None:
        status = (await kubectl.get("pdb", "keep", "-n", namespace)).get("status", {})
        return True if status.get("currentHealthy") == 1 else None

    await until(counted)
    mark, drain = fence(), action(ActionKind.DRAIN_NODE, told.incarnation, nodes=told.nodes)
    kept = await scheduler.perform(job, drain, mark)
    assert kept.status is OutcomeStatus.UNKNOWN
    assert "budget" in kept.detail
    assert (await hollow.count(namespace, "train"))["alive"] == 1
    with pytest.raises(UnreachableError, match="budget"):
        await make_scheduler(action_seconds=1.0).find(job, mark)
    with monkeypatch.context() as patch:
        patch.setattr("trainguard.schedulers.kubernetes.nodes.DRAIN_SECONDS", 1.0)
        given_up = await make_scheduler().find(job, mark)
    assert given_up is not None
    assert (given_up.status, "budget" in given_up.detail) == (OutcomeStatus.REFUSED, True)
    await kubectl("-n", namespace, "delete", "pdb", "keep")
    assert (await scheduler.perform(job, drain, mark)).status is OutcomeStatus.DONE
    await until_seen(scheduler, job, Liveness.RUNNING)
    assert not set((await seen(scheduler, job)).nodes) & set(told.nodes)


async def test_a_training_on_a_silent_node_is_not_started_twice(
    scheduler: KubernetesScheduler, kubectl: Kubectl, hollow: Hollow, namespace: str, whole_nodes: None
) -> None:
    """The node may be cut off and training on: only a fenced node lets the new one start."""
    job = await started(kubectl, namespace)
    told = await until_seen(scheduler, job, Liveness.RUNNING)
    node = told.nodes[0]
    await hollow.post(f"/node/{node}/mute")
    lost = await until_seen(scheduler, job, Liveness.FAILED, seconds=70)
    assert (lost.native, lost.bad_nodes) == ("NodeLost", (node,))
    restart = action(ActionKind.RESTART, lost.incarnation)
    with pytest.raises(RefusedError, match="may still run on node"):
        await scheduler.perform(job, restart, fence())
    assert (await hollow.count(namespace, "train"))["starts"] == 1
    await hollow.post(f"/node/{node}/die")
    await kubectl("taint", "node", node, "node.kubernetes.io/out-of-service=nodeshutdown:NoExecute")

    async def allowed() -> Outcome | None:
        try:
            now = await incarnation_of(scheduler, job)
            return await scheduler.perform(job, action(ActionKind.RESTART, now), fence())
        except RefusedError as error:
            assert "bringing" in str(error) or "came back" in str(
                error
            )  # 1.20 replaces the pod by itself once the node is given up
            return Outcome(fence="", status=OutcomeStatus.REFUSED, at=0)

    await until(allowed)

    async def one() -> bool | None:
        return True if (await hollow.count(namespace, "train"))["alive"] == 1 else None

    await until(one, 40)
