"""Acting: every kind its way, once, never two of the same training at once."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import time
import uuid
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.labs.kubernetes.conftest import (
    LIMITS,
    Hollow,
    Kubectl,
    MakeScheduler,
    job_manifest,
    job_of,
    pod_template,
)
from tests.labs.kubernetes.proxy import Proxy
from tests.labs.kubernetes.test_watch import pod_of, seen, started, until, until_seen
from trainguard.core.action import Action, ActionKind, Fence, Outcome, OutcomeStatus
from trainguard.core.errors import AccessRefusedError, RefusedError, UnreachableError
from trainguard.core.job import CheckpointSpec, Incarnation, Job, Resume, ResumeBy
from trainguard.core.observation import Liveness
from trainguard.schedulers.base import Scheduler
from trainguard.schedulers.kubernetes import KubernetesScheduler

pytestmark = pytest.mark.lab("kubernetes")
Object = dict[str, Any]


def fence() -> Fence:
    return Fence(token=f"tg-{uuid.uuid4().hex[:12]}-1", incident="i", lease=1)


def action(kind: ActionKind, incarnation: Incarnation | None, **more: Any) -> Action:
    assert incarnation is not None
    return Action(kind=kind, incarnation=incarnation, **more)


async def incarnation_of(scheduler: Scheduler, job: Job) -> Incarnation | None:
    return (await seen(scheduler, job)).incarnation


async def until_new(
    scheduler: Scheduler, job: Job, old: Incarnation | None, seconds: float = 40
) -> Incarnation:
    assert old is not None

    async def look() -> Incarnation | None:
        told = await seen(scheduler, job)
        new = told.incarnation
        return (
            new if new is not None and new.token != old.token and told.liveness is Liveness.RUNNING else None
        )

    return await until(look, seconds)


class Peak:
    """The most pods of a job that ever ran at once."""

    def __init__(self, hollow: Hollow, namespace: str, job: str) -> None:
        self.most, self._hollow, self._namespace, self._job = 0, hollow, namespace, job

    async def __aenter__(self) -> Peak:
        self._task = asyncio.create_task(self._count())
        return self

    async def __aexit__(self, *gone: object) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _count(self) -> None:
        while True:
            self.most = max(self.most, (await self._hollow.count(self._namespace, self._job))["alive"])
            await asyncio.sleep(0.05)


def workload(kind: str, namespace: str, does: str, replicas: int = 1) -> Object:
    spec: Object = {
        "selector": {"matchLabels": {"app": "train"}},
        "template": pod_template(does, "Always", "train"),
    }
    if kind != "DaemonSet":
        spec["replicas"] = replicas
    if kind == "StatefulSet":
        spec["serviceName"] = "train"
    return {
        "apiVersion": "apps/v1",
        "kind": kind,
        "metadata": {"name": "train", "namespace": namespace},
        "spec": spec,
    }


@pytest.mark.parametrize(("kind", "size"), [("Deployment", 1), ("StatefulSet", 2), ("DaemonSet", 3)])
async def test_a_rollout_restart_replaces_all_pods_and_never_runs_two_at_once(
    scheduler: KubernetesScheduler,
    make_scheduler: MakeScheduler,
    kubectl: Kubectl,
    hollow: Hollow,
    namespace: str,
    kind: str,
    size: int,
) -> None:
    await kubectl.apply(workload(kind, namespace, "healthy", size))
    job = job_of(
        namespace,
        kind,
        "train",
        checkpoints=CheckpointSpec(directory="/c", resume=Resume(by=ResumeBy.ENVIRONMENT, name="FROM")),
    )
    await until_seen(scheduler, job, Liveness.RUNNING)

    async def all_up() -> bool | None:
        return True if (await hollow.count(namespace, "train"))["alive"] == size else None

    await until(all_up)
    old, mark = await incarnation_of(scheduler, job), fence()
    restart = action(ActionKind.RESTART, old, checkpoint="/c/10")
    async with Peak(hollow, namespace, "train") as peak:
        first = await scheduler.perform(job, restart, mark)
        assert first.status is OutcomeStatus.DONE
        new = await until_new(scheduler, job, old)
        await until(all_up)
    assert peak.most <= size
    # the generation counts twice where the new pods were held back
    assert new.attempt == (old.attempt if old else 0) + (1 if kind == "Deployment" else 2)
    assert (await make_scheduler().perform(job, restart, mark)).status is OutcomeStatus.DONE
    with pytest.raises(RefusedError):
        await scheduler.perform(job, restart, fence())

    async def all_again() -> bool | None:
        return True if (await hollow.count(namespace, "train"))["starts"] == 2 * size else None

    await until(all_again)
    pods = (await kubectl.get("pods", "-n", namespace))["items"]
    live = [pod for pod in pods if not pod["metadata"].get("deletionTimestamp")]
    assert all({"name": "FROM", "value": "/c/10"} in pod["spec"]["containers"][0]["env"] for pod in live)


@contextlib.asynccontextmanager
async def kept(kubectl: Kubectl, namespace: str, pod: str) -> AsyncIterator[None]:
    """A pod that is slow to go: its object stays though it is deleted."""

    async def finalizers(wanted: list[str] | None) -> None:
        patch = json.dumps({"metadata": {"finalizers": wanted}})
        await kubectl("-n", namespace, "patch", "pod", pod, "-p", patch)

    await finalizers(["lab.example/keep"])
    try:
        yield
    finally:
        await finalizers(None)


@pytest.mark.parametrize(
    ("kind", "more", "size"),
    [
        ("StatefulSet", {}, 2),
        ("StatefulSet", {"podManagementPolicy": "Parallel"}, 2),
        ("DaemonSet", {}, 3),
        ("Deployment", {}, 2),
    ],
)
async def test_no_rank_starts_again_while_another_of_before_may_still_run(
    make_scheduler: MakeScheduler,
    kubectl: Kubectl,
    hollow: Hollow,
    namespace: str,
    kind: str,
    more: Object,
    size: int,
) -> None:
    scheduler, job = make_scheduler(action_seconds=6.0), job_of(namespace, kind, "train")
    manifest = workload(kind, namespace, "healthy", size)
    manifest["spec"] |= more
    await kubectl.apply(manifest)

    async def started_in_all(wanted: int) -> bool | None:
        count = await hollow.count(namespace, "train")
        return True if (count["alive"], count["starts"]) == (size, wanted) else None

    await until(lambda: started_in_all(size))
    told = await until_seen(scheduler, job, Liveness.RUNNING)
    slow = await pod_of(kubectl, namespace)
    mark, restart = fence(), action(ActionKind.RESTART, told.incarnation)
    async with kept(kubectl, namespace, slow):
        begun = await scheduler.perform(job, restart, mark)
        if kind != "Deployment":
            assert (begun.status, slow in begun.detail) == (OutcomeStatus.UNKNOWN, True), begun
        assert (await hollow.count(namespace, "train"))["starts"] == size
    found = await make_scheduler().find(job, mark)
    assert found is not None
    assert found.status is OutcomeStatus.DONE
    await until(lambda: started_in_all(2 * size))
    made = (await kubectl.get(kind, "train", "-n", namespace))["spec"]
    assert made.get("replicas", size) == size
    assert set(made["template"]["spec"]["nodeSelector"]) == {"lab/hollow"}


@pytest.mark.parametrize("kind", ["Deployment", "StatefulSet"])
async def test_a_broken_rollout_is_replaced_though_its_controller_waits(
    scheduler: KubernetesScheduler, kubectl: Kubectl, namespace: str, kind: str
) -> None:
    await kubectl.apply(workload(kind, namespace, "imagepull"))
    job = job_of(namespace, kind, "train")
    told = await until_seen(scheduler, job, Liveness.FAILED)
    assert told.native == "ImagePullBackOff"
    patch = {"spec": {"template": {"metadata": {"annotations": {"lab/does": "healthy"}}}}}
    await kubectl("-n", namespace, "patch", kind, "train", "-p", json.dumps(patch))

    async def second() -> Incarnation | None:
        now = (await seen(scheduler, job)).incarnation
        return now if now is not None and now.token.endswith("2") else None

    await scheduler.perform(job, action(ActionKind.RESTART, await until(second)), fence())
    await until_seen(scheduler, job, Liveness.RUNNING)


OPERATORS = {
    "PyTorchJob": ("kubeflow.org/v1", "pytorchReplicaSpecs"),
    "TFJob": ("kubeflow.org/v1", "tfReplicaSpecs"),
    "MPIJob": ("kubeflow.org/v1", "mpiReplicaSpecs"),
    "JobSet": ("jobset.x-k8s.io/v1alpha2", ""),
    "TrainJob": ("trainer.kubeflow.org/v1alpha1", ""),
    "RayJob": ("ray.io/v1", ""),
}


def custom(kind: str, namespace: str) -> Object:
    version, replicas = OPERATORS[kind]
    template = pod_template("healthy", "Never", "train")
    spec: Object = {"note": ""}  # an empty string must survive
    if replicas:
        spec |= {replicas: {"Worker": {"replicas": 1, "template": template}}}
    elif kind == "JobSet":
        spec |= {"replicatedJobs": [{"name": "node", "template": {"spec": {"template": template}}}]}
    elif kind == "RayJob":
        spec |= {"entrypoint": "python t.py", "rayClusterSpec": {"headGroupSpec": {"template": template}}}
    else:
        spec |= {"trainer": {"numNodes": 1}}
    return {
        "apiVersion": version,
        "kind": kind,
        "metadata": {"name": "train", "namespace": namespace},
        "spec": spec,
    }


class Operator:
    """What the training operator would do: make pods, write status."""

    def __init__(self, kubectl: Kubectl, proxy: Proxy, namespace: str, kind: str) -> None:
        self._kubectl, self._proxy, self._namespace, self._kind = kubectl, proxy, namespace, kind
        self.plural = f"{kind.lower()}s"

    async def make_pod(self, does: str = "healthy") -> str:
        obj = await self._kubectl.get(self.plural, "train", "-n", self._namespace)
        name = f"train-{uuid.uuid4().hex[:5]}"
        pod = {"apiVersion": "v1", "kind": "Pod", **pod_template(does, "Never", "train")}
        owner = {
            "apiVersion": obj["apiVersion"],
            "kind": self._kind,
            "name": "train",
            "uid": obj["metadata"]["uid"],
        }
        pod["metadata"] |= {
            "name": name,
            "namespace": self._namespace,
            "ownerReferences": [{**owner, "controller": True, "blockOwnerDeletion": True}],
        }
        if self._kind in ("JobSet", "TrainJob"):
            pod["metadata"]["labels"]["jobset.sigs.k8s.io/jobset-name"] = "train"
        await self._kubectl.apply(pod)
        return name

    async def make_running_pod(self, scheduler: Scheduler, job: Job) -> str:
        """A pod, once the guard has seen the job run."""
        name = await self.make_pod()
        if self._kind == "RayJob":
            await self.say(jobStatus="RUNNING")
        await until_seen(scheduler, job, Liveness.RUNNING)
        return name

    async def say(self, **status: Any) -> None:
        version = OPERATORS[self._kind][0]
        url = f"{self._proxy.url}/apis/{version}/namespaces/{self._namespace}/{self.plural}/train/status"
        headers = {"Content-Type": "application/merge-patch+json"}
        body = json.dumps({"status": status})
        async with (
            aiohttp.ClientSession() as session,
            session.patch(url, data=body, headers=headers) as answer,
        ):
            assert answer.status == 200, await answer.text()

    @contextlib.asynccontextmanager
    async def obeying(self, wanted: bool = True) -> AsyncIterator[None]:
        """What the operator does about `suspend`: no pod while it is set, one while it is not."""
        task = asyncio.create_task(self._obey()) if wanted else None
        try:
            yield
        finally:
            if task is not None:
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task

    async def _obey(self) -> None:
        while True:
            spec = (await self._kubectl.get(self.plural, "train", "-n", self._namespace))["spec"]
            suspended = spec.get("suspend") or spec.get("runPolicy", {}).get("suspend")
            pods = (await self._kubectl.get("pods", "-n", self._namespace))["items"]
            if suspended and pods:
                await self._kubectl("-n", self._namespace, "delete", "pods", "--all", "--wait=false")
            elif not suspended and not pods:
                await self.make_pod()
            if self._kind == "RayJob":
                await self.say(jobStatus="" if suspended else "RUNNING")
            await asyncio.sleep(0.5)

    async def fail(self) -> None:
        if self._kind == "RayJob":
            await self.say(jobStatus="FAILED", jobDeploymentStatus="Failed", message="it broke")
        else:
            now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
            await self.say(
                conditions=[
                    {"type": "Failed", "status": "True", "reason": "ItBroke", "lastTransitionTime": now}
                ]
            )


@pytest.mark.parametrize("kind", sorted(OPERATORS))
async def test_an_operators_job_that_failed_is_made_again_under_its_name(
    scheduler: KubernetesScheduler,
    make_scheduler: MakeScheduler,
    proxy: Proxy,
    kubectl: Kubectl,
    hollow: Hollow,
    namespace: str,
    kind: str,
) -> None:
    operator = Operator(kubectl, proxy, namespace, kind)
    resume = Resume(by=ResumeBy.ENVIRONMENT, name="FROM")
    job = job_of(namespace, kind, "train", checkpoints=CheckpointSpec(directory="/c", resume=resume))
    await kubectl.apply(custom(kind, namespace))
    pod = await operator.make_pod()
    if kind == "RayJob":
        await operator.say(jobStatus="RUNNING")
    await until_seen(scheduler, job, Liveness.RUNNING)
    await hollow.exit(namespace, pod, 3)
    await operator.fail()
    told = await until_seen(scheduler, job, Liveness.FAILED)
    assert "proxy" not in told.reason
    mark = fence()
    restart = action(ActionKind.RESTART, told.incarnation, checkpoint="/c/9")
    outcome = await scheduler.perform(job, restart, mark)
    assert outcome.status is OutcomeStatus.DONE
    made = await kubectl.get(operator.plural, "train", "-n", namespace)
    assert told.incarnation is not None
    assert made["metadata"]["uid"] != told.incarnation.token.partition("/")[0]
    assert made["spec"]["note"] == ""
    assert '{"name": "FROM", "value": "/c/9"}' in json.dumps(made["spec"])
    assert "status" not in made
    assert (await make_scheduler().find(job, mark)) is not None
    now = await until_seen(scheduler, job, Liveness.PENDING)
    assert now.incarnation is not None
    assert now.incarnation.attempt == 2


async def test_a_pod_that_is_a_job_is_made_again(
    scheduler: KubernetesScheduler, kubectl: Kubectl, namespace: str
) -> None:
    pod = {"apiVersion": "v1", "kind": "Pod", **pod_template("oom", "Never", "train")}
    pod["metadata"] |= {"name": "train", "namespace": namespace}
    await kubectl.apply(pod)
    job = job_of(namespace, "Pod", "train")
    told = await until_seen(scheduler, job, Liveness.FAILED)
    assert told.oom_killed
    more = action(ActionKind.RESTART_WITH_MORE_MEMORY, told.incarnation, memory_bytes=2**30)
    assert (await scheduler.perform(job, more, fence())).status is OutcomeStatus.DONE
    made = await kubectl.get("pod", "train", "-n", namespace)
    assert made["spec"]["containers"][0]["resources"]["limits"]["memory"] in ("1Gi", str(2**30))


async def test_a_restart_avoids_the_nodes_that_are_named(
    scheduler: KubernetesScheduler, kubectl: Kubectl, hollow: Hollow, namespace: str
) -> None:
    job = await started(kubectl, namespace)
    told = await until_seen(scheduler, job, Liveness.RUNNING)
    others = tuple(sorted({"hollow-a", "hollow-b", "hollow-c"} - set(told.nodes)))
    avoid = action(ActionKind.RESTART_EXCLUDING_NODE, told.incarnation, nodes=(*told.nodes, others[0]))
    assert (await scheduler.perform(job, avoid, fence())).status is OutcomeStatus.DONE
    await until_new(scheduler, job, told.incarnation)
    assert (await seen(scheduler, job)).nodes == (others[1],)


async def test_a_restart_with_a_longer_time_limit(
    scheduler: KubernetesScheduler, kubectl: Kubectl, namespace: str
) -> None:
    await kubectl.apply(job_manifest(namespace, "train", "healthy", activeDeadlineSeconds=2))
    job = job_of(namespace, "Job", "train")
    told = await until_seen(scheduler, job, Liveness.FAILED)
    assert told.native == "DeadlineExceeded"
    longer = action(ActionKind.EXTEND_TIME_LIMIT, told.incarnation, time_limit=600)
    await scheduler.perform(job, longer, fence())
    await until_new(scheduler, job, told.incarnation)
    assert (await kubectl.get("job", "train", "-n", namespace))["spec"]["activeDeadlineSeconds"] == 600


def suspendable(kind: str, namespace: str) -> Object:
    if kind == "Job":
        return job_manifest(namespace, "train", "healthy", parallelism=2, completions=2)
    return workload(kind, namespace, "healthy", 2)


@pytest.mark.parametrize("kind", ["Job", "Deployment", "StatefulSet"])
async def test_suspended_is_pending_and_resumed_as_large_as_before(
    scheduler: KubernetesScheduler, kubectl: Kubectl, hollow: Hollow, namespace: str, kind: str
) -> None:
    await kubectl.apply(suspendable(kind, namespace))
    job = job_of(namespace, kind, "train")
    await until_seen(scheduler, job, Liveness.RUNNING)
    now = await incarnation_of(scheduler, job)
    await scheduler.perform(job, action(ActionKind.SUSPEND, now), fence())
    await until_seen(scheduler, job, Liveness.PENDING)
    assert (await hollow.count(namespace, "train"))["alive"] == 0
    with pytest.raises(RefusedError, match="held"):
        await scheduler.perform(
            job, action(ActionKind.RESTART, await incarnation_of(scheduler, job)), fence()
        )
    await scheduler.perform(job, action(ActionKind.RESUME, await incarnation_of(scheduler, job)), fence())
    await until_seen(scheduler, job, Liveness.RUNNING)

    async def both() -> bool | None:
        return True if (await hollow.count(namespace, "train"))["alive"] == 2 else None

    await until(both)


@pytest.mark.parametrize("kind", sorted(OPERATORS))
async def test_an_operators_job_is_suspended_once_its_pods_are_gone_and_resumed(
    make_scheduler: MakeScheduler, proxy: Proxy, kubectl: Kubectl, hollow: Hollow, namespace: str, kind: str
) -> None:
    scheduler = make_scheduler(action_seconds=10.0)
    operator, job = Operator(kubectl, proxy, namespace, kind), job_of(namespace, kind, "train")
    await kubectl.apply(custom(kind, namespace))
    await operator.make_running_pod(scheduler, job)
    suspend = action(ActionKind.SUSPEND, await incarnation_of(scheduler, job))
    async with operator.obeying():
        assert (await scheduler.perform(job, suspend, fence())).status is OutcomeStatus.DONE
        assert (await hollow.count(namespace, "train"))["alive"] == 0
        told = await until_seen(scheduler, job, Liveness.PENDING)
        resume = action(ActionKind.RESUME, told.incarnation)
        assert (await scheduler.perform(job, resume, fence())).status is OutcomeStatus.DONE
        await until_seen(scheduler, job, Liveness.RUNNING)
    assert (await hollow.count(namespace, "train"))["starts"] == 2


async def test_the_newest_job_of_a_cron_job_is_suspended_and_resumed(
    scheduler: KubernetesScheduler, kubectl: Kubectl, namespace: str
) -> None:
    job = await started_by_cron(kubectl, namespace)
    told = await until_seen(scheduler, job, Liveness.RUNNING)
    await scheduler.perform(job, action(ActionKind.SUSPEND, told.incarnation), fence())
    told = await until_seen(scheduler, job, Liveness.PENDING)
    assert (await kubectl.get("cronjob", "nightly", "-n", namespace))["spec"]["suspend"] is False
    await scheduler.perform(job, action(ActionKind.RESUME, told.incarnation), fence())
    await until_seen(scheduler, job, Liveness.RUNNING)


async def test_what_may_still_run_is_neither_called_suspended_nor_resumed(
    make_scheduler: MakeScheduler, kubectl: Kubectl, hollow: Hollow, namespace: str
) -> None:
    scheduler = make_scheduler(action_seconds=3.0)
    await kubectl.apply(workload("Deployment", namespace, "healthy"))
    job = job_of(namespace, "Deployment", "train")
    told = await until_seen(scheduler, job, Liveness.RUNNING)
    pod = await pod_of(kubectl, namespace)
    mark = fence()
    async with kept(kubectl, namespace, pod):
        begun = await scheduler.perform(job, action(ActionKind.SUSPEND, told.incarnation), mark)
        assert (begun.status, pod in begun.detail) == (OutcomeStatus.UNKNOWN, True)
        told = await until_seen(scheduler, job, Liveness.PENDING)
        with pytest.raises(RefusedError, match="may still run from before"):
            await scheduler.perform(job, action(ActionKind.RESUME, told.incarnation), fence())
    found = await scheduler.find(job, mark)
    assert found is not None
    assert found.status is OutcomeStatus.DONE
    told = await until_seen(scheduler, job, Liveness.PENDING)
    await scheduler.perform(job, action(ActionKind.RESUME, told.incarnation), fence())
    await until_seen(scheduler, job, Liveness.RUNNING)
    assert (await hollow.count(namespace, "train"))["starts"] == 2


async def test_what_its_owner_suspended_is_not_resumed(
    scheduler: KubernetesScheduler, kubectl: Kubectl, namespace: str
) -> None:
    await kubectl.apply(workload("Deployment", namespace, "healthy"))
    job = job_of(namespace, "Deployment", "train")
    await until_seen(scheduler, job, Liveness.RUNNING)
    await kubectl("-n", namespace, "scale", "deployment", "train", "--replicas=0")
    told = await until_seen(scheduler, job, Liveness.PENDING)
    with pytest.raises(RefusedError, match="by its owner"):
        await scheduler.perform(job, action(ActionKind.RESUME, told.incarnation), fence())


async def test_a_job_of_a_jobset_is_not_touched(
    scheduler: KubernetesScheduler, proxy: Proxy, kubectl: Kubectl, namespace: str
) -> None:
    await kubectl.apply(custom("JobSet", namespace))
    owner = (await kubectl.get("jobset", "train", "-n", namespace))["metadata"]["uid"]
    child = job_manifest(namespace, "train-node-0", "crash")
    child["metadata"]["ownerReferences"] = [
        {
            "apiVersion": "jobset.x-k8s.io/v1alpha2",
            "kind": "JobSet",
            "name": "train",
            "uid": owner,
            "controller": True,
        }
    ]
    await kubectl.apply(child)
    job = job_of(namespace, "Job", "train-node-0")
    told = await until_seen(scheduler, job, Liveness.FAILED)
    with pytest.raises(RefusedError, match="JobSet/train"):
        await scheduler.perform(job, action(ActionKind.RESTART, told.incarnation), fence())
    found = await scheduler.discover(f"namespace={namespace}")
    assert [ref.id for ref in found] == [f"{namespace}/JobSet/train"]


async def test_patrol_reports_the_top_of_each_chain_once_and_by_label_and_kind(
    scheduler: KubernetesScheduler, kubectl: Kubectl, namespace: str
) -> None:
    await kubectl.apply(workload("Deployment", namespace, "healthy", 2))
    await kubectl.apply(job_manifest(namespace, "one", "healthy"))
    labelled = job_manifest(namespace, "two", "healthy")
    labelled["metadata"]["labels"] = {"team": "red"}
    await kubectl.apply(labelled)
    await until_seen(scheduler, job_of(namespace, "Job", "one"), Liveness.RUNNING)

    async def found(selector: str) -> set[str]:
        refs = await scheduler.discover(f"namespace={namespace} {selector}")
        assert len(set(refs)) == len(refs)
        return {ref.id.partition("/")[2] for ref in refs}

    assert await found("") == {"Deployment/train", "Job/one", "Job/two"}
    assert await found("kind=Job") == {"Job/one", "Job/two"}
    assert await found("kind=Pod,Job label=team=red") == {"Job/two"}


async def test_a_stuck_pod_is_deleted_once_and_its_owner_makes_another(
    scheduler: KubernetesScheduler, make_scheduler: MakeScheduler, kubectl: Kubectl, namespace: str
) -> None:
    await kubectl.apply(workload("Deployment", namespace, "imagepull"))
    job = job_of(namespace, "Deployment", "train")
    told = await until_seen(scheduler, job, Liveness.FAILED)
    before = (await kubectl.get("pods", "-n", namespace))["items"][0]["metadata"]["name"]
    mark = fence()
    delete = action(ActionKind.DELETE_POD, told.incarnation)
    assert (await scheduler.perform(job, delete, mark)).status is OutcomeStatus.DONE

    async def another() -> str | None:
        names = [pod["metadata"]["name"] for pod in (await kubectl.get("pods", "-n", namespace))["items"]]
        return names[0] if len(names) == 1 and before not in names else None

    name = await until(another)
    assert (await make_scheduler().perform(job, delete, mark)).status is OutcomeStatus.DONE
    await asyncio.sleep(1)
    assert await another() == name


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
    await asyncio.sleep(1)
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


async def test_a_guard_that_dies_between_deletion_and_creation_loses_nothing(
    make_scheduler: MakeScheduler,
    proxy: Proxy,
    kubectl: Kubectl,
    hollow: Hollow,
    namespace: str,
    tmp_path: Path,
) -> None:
    first = make_scheduler(manifest_folder=tmp_path, action_seconds=3.0)
    job = await started(kubectl, namespace, "crash")
    told = await until_seen(first, job, Liveness.FAILED)
    blocked = proxy.refuse(
        503,
        "{}",
        lambda asked: (
            asked.method == "POST" and asked.path.endswith("/jobs") and "dryRun" not in asked.path_qs
        ),
    )
    mark, restart = fence(), action(ActionKind.RESTART, told.incarnation)
    assert (await first.perform(job, restart, mark)).status is OutcomeStatus.UNKNOWN
    assert "NotFound" in await kubectl("-n", namespace, "get", "job", "train", check=False)
    await first.close()
    blocked.times = 0
    second = make_scheduler(manifest_folder=tmp_path)
    found = await second.find(job, mark)
    assert found is not None
    assert found.status is OutcomeStatus.DONE
    assert (await make_scheduler().perform(job, restart, mark)).status is OutcomeStatus.DONE

    async def twice() -> bool | None:
        return True if (await hollow.count(namespace, "train"))["starts"] == 2 else None

    await until(twice)
    assert not list(tmp_path.iterdir())


async def test_what_one_process_began_another_finishes_without_sharing_anything(
    make_scheduler: MakeScheduler, kubectl: Kubectl, hollow: Hollow, namespace: str
) -> None:
    first = make_scheduler(action_seconds=3.0)
    job = await started(kubectl, namespace)
    told = await until_seen(first, job, Liveness.RUNNING)
    keep = json.dumps({"metadata": {"finalizers": ["lab.example/keep"]}})
    pod = await pod_of(kubectl, namespace)
    await kubectl("-n", namespace, "patch", "pod", pod, "-p", keep)
    mark = fence()
    begun = await first.perform(job, action(ActionKind.RESTART, told.incarnation), mark)
    assert begun.status is OutcomeStatus.UNKNOWN
    assert "being deleted" in begun.detail
    assert (await seen(make_scheduler(), job)).restart_underway
    await first.close()
    finishing = asyncio.create_task(make_scheduler().find(job, mark))
    await asyncio.sleep(0.5)
    await kubectl("-n", namespace, "patch", "pod", pod, "-p", json.dumps({"metadata": {"finalizers": None}}))
    found = await finishing
    assert found is not None
    assert found.status is OutcomeStatus.DONE

    async def twice() -> bool | None:
        return True if (await hollow.count(namespace, "train"))["starts"] == 2 else None

    await until(twice)


async def test_a_job_whose_quota_is_full_as_long_as_it_is_there_is_made_again(
    scheduler: KubernetesScheduler, kubectl: Kubectl, hollow: Hollow, namespace: str
) -> None:
    """The trial is refused, and so is the creation until the quota is counted anew."""
    job = await started(kubectl, namespace, "crash")
    await kubectl("-n", namespace, "create", "quota", "one", "--hard=count/jobs.batch=1")

    async def full() -> bool | None:
        quota = await kubectl.get("quota", "one", "-n", namespace)
        return True if quota["status"].get("used") == {"count/jobs.batch": "1"} else None

    await until(full)
    told = await until_seen(scheduler, job, Liveness.FAILED)
    outcome = await scheduler.perform(job, action(ActionKind.RESTART, told.incarnation), fence())
    assert outcome.status is OutcomeStatus.DONE, outcome

    async def twice() -> bool | None:
        return True if (await hollow.count(namespace, "train"))["starts"] == 2 else None

    await until(twice)


async def test_a_namespace_that_is_deleted_meanwhile_is_the_end_of_it(
    make_scheduler: MakeScheduler, kubectl: Kubectl, namespace: str
) -> None:
    scheduler = make_scheduler(action_seconds=2.0)
    job = await started(kubectl, namespace)
    told = await until_seen(scheduler, job, Liveness.RUNNING)
    pod = await pod_of(kubectl, namespace)
    keep = json.dumps({"metadata": {"finalizers": ["lab.example/keep"]}})
    await kubectl("-n", namespace, "patch", "pod", pod, "-p", keep)
    mark = fence()
    begun = await scheduler.perform(job, action(ActionKind.RESTART, told.incarnation), mark)
    assert begun.status is OutcomeStatus.UNKNOWN
    with pytest.raises(UnreachableError, match="being deleted"):
        await scheduler.find(job, mark)
    await kubectl("delete", "namespace", namespace, "--wait=false")
    await kubectl("-n", namespace, "patch", "pod", pod, "-p", json.dumps({"metadata": {"finalizers": None}}))

    async def ended() -> Outcome | None:
        try:
            return await scheduler.find(job, mark)
        except UnreachableError:
            return None

    found = await until(ended)
    assert (found.status, f"namespace {namespace} was deleted" in found.detail) == (
        OutcomeStatus.REFUSED,
        True,
    ), found


async def test_a_failed_job_that_kubernetes_removed_is_made_again_from_what_was_seen(
    scheduler: KubernetesScheduler, proxy: Proxy, kubectl: Kubectl, hollow: Hollow, namespace: str
) -> None:
    operator, manifest = Operator(kubectl, proxy, namespace, "PyTorchJob"), custom("PyTorchJob", namespace)
    manifest["spec"]["runPolicy"] = {"ttlSecondsAfterFinished": 1}
    await kubectl.apply(manifest)
    job = job_of(namespace, "PyTorchJob", "train")
    await hollow.exit(namespace, await operator.make_running_pod(scheduler, job), 3)
    await operator.fail()
    told = await until_seen(scheduler, job, Liveness.FAILED)
    await kubectl("-n", namespace, "delete", "pytorchjobs", "train", "--wait=true")  # as its operator does
    await until(lambda: removed(scheduler, job))
    outcome = await scheduler.perform(job, action(ActionKind.RESTART, told.incarnation), fence())
    assert outcome.status is OutcomeStatus.DONE
    made = await kubectl.get("pytorchjobs", "train", "-n", namespace)
    assert made["metadata"]["annotations"]["trainguard.dev/attempt"] == "2"


async def test_a_failed_job_that_somebody_deleted_stays_deleted(
    scheduler: KubernetesScheduler, kubectl: Kubectl, namespace: str
) -> None:
    job = await started(kubectl, namespace, "crash")
    told = await until_seen(scheduler, job, Liveness.FAILED)
    await kubectl("-n", namespace, "delete", "job", "train", "--wait=true")
    await until(lambda: removed(scheduler, job))
    with pytest.raises(RefusedError, match="deleted"):
        await scheduler.perform(job, action(ActionKind.RESTART, told.incarnation), fence())
    assert "NotFound" in await kubectl("-n", namespace, "get", "job", "train", check=False)


async def removed(scheduler: Scheduler, job: Job) -> bool | None:
    """The watch has heard of the removal."""
    told = await seen(scheduler, job)
    return True if "removed" in told.reason or told.liveness is Liveness.STOPPED else None


def cron_job(namespace: str, policy: str, **spec: Any) -> Object:
    """A CronJob that makes a Job each minute."""
    return {
        "apiVersion": "batch/v1beta1",
        "kind": "CronJob",
        "metadata": {"name": "nightly", "namespace": namespace},
        "spec": {
            "schedule": "* * * * *",
            "concurrencyPolicy": policy,
            "jobTemplate": {
                "spec": {"backoffLimit": 0, "template": pod_template("healthy", "Never", "train")}
            },
            **spec,
        },
    }


async def started_by_cron(kubectl: Kubectl, namespace: str, does: str = "healthy") -> Job:
    """A CronJob that may run beside itself, far from its schedule, with a Job of its own."""
    await kubectl.apply(cron_job(namespace, "Allow", schedule="0 0 1 1 *"))
    uid = (await kubectl.get("cronjob", "nightly", "-n", namespace))["metadata"]["uid"]
    made = job_manifest(namespace, "nightly-1", does)
    owner = {"apiVersion": "batch/v1beta1", "kind": "CronJob", "name": "nightly", "uid": uid}
    made["metadata"]["ownerReferences"] = [{**owner, "controller": True}]
    await kubectl.apply(made)
    return job_of(namespace, "CronJob", "nightly")


async def jobs_of(kubectl: Kubectl, namespace: str) -> list[Object]:
    found = (await kubectl.get("jobs", "-n", namespace))["items"]
    return sorted(found, key=lambda one: str(one["metadata"]["name"]))


@pytest.mark.timeout(300)
async def test_a_cron_job_whose_trainings_must_not_overlap_never_runs_two(
    scheduler: KubernetesScheduler, kubectl: Kubectl, hollow: Hollow, namespace: str
) -> None:
    """Its controller would not count a Job that somebody else made: that one and the next would run at once."""
    await kubectl.apply(cron_job(namespace, "Forbid"))
    job = job_of(namespace, "CronJob", "nightly")
    told = await until_seen(scheduler, job, Liveness.RUNNING, seconds=90)
    async with Peak(hollow, namespace, "train") as peak:
        with pytest.raises(RefusedError, match="concurrencyPolicy Forbid"):
            await scheduler.perform(job, action(ActionKind.RESTART, told.incarnation), fence())
        await hollow.exit(namespace, await pod_of(kubectl, namespace), 3)
        told = await until_seen(scheduler, job, Liveness.FAILED)
        with pytest.raises(RefusedError, match="wait for that schedule"):
            await scheduler.perform(job, action(ActionKind.RESTART, told.incarnation), fence())
        await until_new(scheduler, job, told.incarnation, 90)
    assert peak.most == 1


@pytest.mark.timeout(300)
async def test_a_cron_jobs_job_is_made_again_where_trainings_may_overlap_and_not_beside_a_newer_one(
    make_scheduler: MakeScheduler, proxy: Proxy, kubectl: Kubectl, hollow: Hollow, namespace: str
) -> None:
    scheduler = make_scheduler(action_seconds=2.0)
    job = await started_by_cron(kubectl, namespace)
    told = await until_seen(scheduler, job, Liveness.RUNNING)
    await hollow.exit(namespace, await pod_of(kubectl, namespace, "nightly-1"), 3)
    told = await until_seen(scheduler, job, Liveness.FAILED)
    first = (await jobs_of(kubectl, namespace))[0]["metadata"]["name"]
    again = await scheduler.perform(job, action(ActionKind.RESTART, told.incarnation), fence())
    assert again.status is OutcomeStatus.DONE, again
    assert [one["metadata"]["name"] for one in await jobs_of(kubectl, namespace)] == [first]
    new = await until_new(scheduler, job, told.incarnation)
    blocked = proxy.refuse(503, "{}", WRITES["creation"])
    mark = fence()
    begun = await scheduler.perform(job, action(ActionKind.RESTART, new), mark)
    assert begun.status is OutcomeStatus.UNKNOWN
    now = json.dumps({"spec": {"schedule": "* * * * *"}})
    await kubectl("-n", namespace, "patch", "cronjob", "nightly", "-p", now)

    async def scheduled() -> list[Object] | None:
        return [one for one in await jobs_of(kubectl, namespace) if one["metadata"]["name"] != first] or None

    newer = (await until(scheduled, 90))[0]["metadata"]["name"]
    blocked.times = 0
    found = await scheduler.find(job, mark)
    assert found is not None
    assert (found.status, f"has started Job/{newer}" in found.detail) == (OutcomeStatus.REFUSED, True)
    assert first not in [one["metadata"]["name"] for one in await jobs_of(kubectl, namespace)]


WRITES: dict[str, Callable[[Any], bool]] = {
    "mark": lambda asked: asked.method == "PATCH",
    "deletion": lambda asked: asked.method == "DELETE",
    "trial": lambda asked: asked.method == "POST" and "dryRun" in asked.path_qs,
    "creation": lambda asked: (
        asked.method == "POST" and asked.path.endswith("/jobs") and "dryRun" not in asked.path_qs
    ),
}


def just_before(proxy: Proxy, write: str, number: int, does: Callable[[], object]) -> None:
    """Do something as a request reaches the proxy, once; the request goes on to the server."""
    left = [number]

    def when(asked: Any) -> bool:
        if WRITES[write](asked) and "dryRun" not in asked.path_qs:
            left[0] -= 1
            if left[0] == 0:
                does()
        return False

    proxy.refuse(500, "", when)


def edits(namespace: str, *words: str) -> Callable[[], object]:
    """Somebody runs kubectl on the Job."""
    command = [os.environ["TG_KUBECTL"], "--kubeconfig", os.environ["TG_KUBE_CONFIG"], "-n", namespace]
    return lambda: subprocess.run([*command, *words], check=True, capture_output=True, timeout=60)


TRIED_BEFORE = {"mark": 0, "deletion": 1, "creation": 0}
"""Dry runs that can't be told from the write by their path."""


@pytest.mark.parametrize("write", ["mark", "deletion"])
async def test_what_somebody_writes_in_the_middle_of_a_restart_is_kept(
    scheduler: KubernetesScheduler, proxy: Proxy, kubectl: Kubectl, hollow: Hollow, namespace: str, write: str
) -> None:
    """The server itself answers 409."""
    job = await started(kubectl, namespace, "crash")
    told = await until_seen(scheduler, job, Liveness.FAILED)
    label = edits(namespace, "label", "job", "train", "team=red")
    just_before(proxy, write, TRIED_BEFORE[write] + 1, label)
    outcome = await scheduler.perform(job, action(ActionKind.RESTART, told.incarnation), fence())
    assert outcome.status is OutcomeStatus.DONE
    made = await kubectl.get("job", "train", "-n", namespace)
    assert made["metadata"]["labels"]["team"] == "red"

    async def twice() -> bool | None:
        return True if (await hollow.count(namespace, "train"))["starts"] == 2 else None

    await until(twice)


async def test_what_its_owner_holds_in_the_middle_of_a_restart_is_left_alone(
    scheduler: KubernetesScheduler, proxy: Proxy, kubectl: Kubectl, namespace: str
) -> None:
    job = await started(kubectl, namespace, "crash")
    told = await until_seen(scheduler, job, Liveness.FAILED)
    hold = edits(namespace, "annotate", "job", "train", "trainguard.dev/hold=true")
    just_before(proxy, "deletion", 2, hold)
    with pytest.raises(RefusedError, match="held by its owner"):
        await scheduler.perform(job, action(ActionKind.RESTART, told.incarnation), fence())
    uid = (await kubectl.get("job", "train", "-n", namespace))["metadata"]["uid"]
    assert told.incarnation is not None
    assert uid == told.incarnation.token


@pytest.mark.timeout(240)
@pytest.mark.parametrize("write", ["deletion", "creation"])
async def test_a_restart_in_whose_middle_the_api_server_is_killed_is_done_once(
    make_scheduler: MakeScheduler, proxy: Proxy, kubectl: Kubectl, hollow: Hollow, namespace: str, write: str
) -> None:
    scheduler = make_scheduler(limits=replace(LIMITS, node=60.0))
    job = await started(kubectl, namespace, "crash")
    told = await until_seen(scheduler, job, Liveness.FAILED)
    run = Path(os.environ["TG_KUBE_RUN"])
    server = int((run / "kube-apiserver.pid").read_text())
    just_before(proxy, write, TRIED_BEFORE[write] + 1, lambda: os.kill(server, signal.SIGKILL))
    mark, restart = fence(), action(ActionKind.RESTART, told.incarnation)

    async def acted() -> Outcome | None:
        try:
            outcome = await scheduler.find(job, mark) or await scheduler.perform(job, restart, mark)
        except UnreachableError:
            return None
        return None if outcome.status is OutcomeStatus.UNKNOWN else outcome

    try:
        assert await acted() is None
    finally:
        process = await asyncio.create_subprocess_exec(str(run / "start-kube-apiserver"))
        await process.wait()
    outcome = await until(acted, 120)
    assert outcome.status is OutcomeStatus.DONE, outcome

    async def twice() -> bool | None:
        return True if (await hollow.count(namespace, "train"))["starts"] == 2 else None

    await until(twice, 60)
    assert (await kubectl.get("job", "train", "-n", namespace))["metadata"]["annotations"][
        "trainguard.dev/attempt"
    ] == "2"


async def test_what_the_server_says_of_the_manifest_that_was_given_is_a_warning(
    make_scheduler: MakeScheduler, kubectl: Kubectl, namespace: str
) -> None:
    """Nothing is made from it, whatever becomes of the job."""
    job, good = await started(kubectl, namespace), job_manifest(namespace, "train", "healthy")
    bad = job_manifest(namespace, "train", "healthy", restart="Always")
    for manifest, said in ((good, ""), (bad, "spec.template.spec.restartPolicy")):
        access = await make_scheduler(manifests={job.ref.id: manifest}).validate(job)
        assert [said in warning for warning in access.warnings] == ([True] if said else [])


@pytest.mark.parametrize("step", sorted(WRITES))
@pytest.mark.parametrize(
    ("status", "reason"), [(409, "Conflict"), (429, ""), (500, ""), (422, "Invalid"), (403, "Forbidden")]
)
async def test_whatever_a_step_is_answered_the_job_is_made_again_at_most_once(
    scheduler: KubernetesScheduler,
    proxy: Proxy,
    kubectl: Kubectl,
    hollow: Hollow,
    namespace: str,
    step: str,
    status: int,
    reason: str,
) -> None:
    job = await started(kubectl, namespace, "crash")
    told = await until_seen(scheduler, job, Liveness.FAILED)
    body = json.dumps({"kind": "Status", "message": "not now", "reason": reason, "code": status})
    fault = proxy.refuse(status, body, WRITES[step], times=1)
    mark, restart = fence(), action(ActionKind.RESTART, told.incarnation)
    try:
        outcome = await scheduler.perform(job, restart, mark)
    except (RefusedError, UnreachableError, AccessRefusedError):
        await asyncio.sleep(0.5)
        assert (await hollow.count(namespace, "train"))["starts"] == 1
        assert await scheduler.find(job, mark) is None
    else:
        assert outcome.status in (OutcomeStatus.DONE, OutcomeStatus.UNKNOWN)
    fault.times = 0
    assert (await scheduler.perform(job, restart, mark)).status is OutcomeStatus.DONE

    async def twice() -> bool | None:
        return True if (await hollow.count(namespace, "train"))["starts"] == 2 else None

    await until(twice)
