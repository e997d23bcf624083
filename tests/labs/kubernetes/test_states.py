"""What is read of states that a real control plane makes: each failure beside its healthy neighbour."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import aiohttp
import pytest

from tests.labs.kubernetes.acting import workload
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
from tests.labs.kubernetes.test_watch import pod_of, seen, until, until_seen
from trainguard.core.job import Job
from trainguard.core.observation import Liveness, Observation
from trainguard.schedulers.base import Scheduler
from trainguard.schedulers.kubernetes import KubernetesScheduler
from trainguard.schedulers.kubernetes.kinds import KINDS

pytestmark = pytest.mark.lab("kubernetes")
Object = dict[str, Any]
QUICK = replace(LIMITS, ready=1.0)


async def until_told(
    scheduler: Scheduler, job: Job, right: Callable[[Observation], bool], seconds: float = 30
) -> Observation:
    last: list[Observation] = []

    async def look() -> Observation | None:
        last[:] = [await seen(scheduler, job)]
        return last[0] if right(last[0]) else None

    try:
        return await until(look, seconds)
    except AssertionError as error:
        raise AssertionError(f"{error}; last: {last}") from None


@asynccontextmanager
async def noted(scheduler: KubernetesScheduler, job: Job) -> AsyncIterator[list[Observation]]:
    """Everything that is told of a job meanwhile."""
    told = [await seen(scheduler, job)]

    async def note() -> None:
        sequence = -1
        while True:
            sequence = await scheduler.wait(sequence, 0.2)
            told.append(await seen(scheduler, job))

    task = asyncio.create_task(note())
    try:
        yield told
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def merge(proxy: Proxy, path: str, body: Object) -> None:
    """Merge-patch, where kubectl of this age can't: a status."""
    headers = {"Content-Type": "application/merge-patch+json"}
    async with (
        aiohttp.ClientSession() as session,
        session.patch(f"{proxy.url}{path}", data=json.dumps(body), headers=headers) as answer,
    ):
        assert answer.status == 200, await answer.text()


def bare_pod(namespace: str, name: str, does: str = "healthy", **spec: Any) -> Object:
    made = {"apiVersion": "v1", "kind": "Pod", **pod_template(does, "Never", name)}
    made["metadata"] |= {"name": name, "namespace": namespace}
    made["spec"] |= spec
    return made


async def test_a_pod_that_is_released_and_then_deleted_blinds_nobody(
    scheduler: KubernetesScheduler, kubectl: Kubectl, namespace: str
) -> None:
    await kubectl.apply(workload("Deployment", namespace, "healthy"))
    job = job_of(namespace, "Deployment", "train")
    await until_seen(scheduler, job, Liveness.RUNNING)
    released = await pod_of(kubectl, namespace)
    await kubectl("-n", namespace, "label", "pod", released, "app=debug", "--overwrite")
    other = await until(lambda: _another(kubectl, namespace, released))
    await kubectl("-n", namespace, "wait", "pod", other, "--for=condition=Ready", "--timeout=30s")
    await kubectl("-n", namespace, "delete", "pod", released, "--wait=true")
    pods = scheduler._sight.informer(KINDS["Pod"], namespace)

    async def heard() -> bool | None:
        return pods.deleted(namespace, released) is not None or None

    await until(heard)
    told = await until_seen(scheduler, job, Liveness.RUNNING)
    assert told.native == "Available"


async def _another(kubectl: Kubectl, namespace: str, than: str) -> str | None:
    name = await pod_of(kubectl, namespace)
    return name if name != than else None


async def test_pods_that_were_orphaned_and_adopted_are_the_new_statefulsets(
    scheduler: KubernetesScheduler, kubectl: Kubectl, hollow: Hollow, namespace: str
) -> None:
    manifest = workload("StatefulSet", namespace, "healthy")
    await kubectl.apply(manifest)
    job = job_of(namespace, "StatefulSet", "train")
    first = await until_seen(scheduler, job, Liveness.RUNNING)
    await kubectl("-n", namespace, "delete", "sts", "train", "--cascade=orphan", "--wait=true")
    await kubectl.apply(manifest)
    told = await until_told(scheduler, job, lambda told: told.incarnation != first.incarnation)
    told = await until_told(scheduler, job, lambda told: bool(told.nodes))
    assert (told.liveness, told.nodes) == (Liveness.RUNNING, first.nodes)

    async def crash() -> Observation | None:
        await hollow.exit(namespace, "train-0", 3)
        told = await seen(scheduler, job)
        return told if told.liveness is Liveness.FAILED else None

    assert (await until(crash)).native == "CrashLoopBackOff"


async def test_a_job_that_no_node_matches_is_stuck_and_says_so(
    scheduler: KubernetesScheduler, kubectl: Kubectl, namespace: str
) -> None:
    for name, label in (("nowhere", "none-has-it"), ("train", "lab/hollow")):
        manifest = job_manifest(namespace, name, "healthy")
        manifest["spec"]["template"]["spec"]["nodeSelector"] = {label: "true"}
        await kubectl.apply(manifest)
    told = await until_told(scheduler, job_of(namespace, "Job", "nowhere"), lambda told: bool(told.stuck))
    assert (told.liveness, told.native) == (Liveness.PENDING, "Unschedulable")
    assert "Unschedulable" in told.stuck
    pod = await pod_of(kubectl, namespace, "nowhere")
    path = "jsonpath={.status.conditions[?(@.type=='PodScheduled')].reason}"
    assert await kubectl("-n", namespace, "get", "pod", pod, "-o", path) == "Unschedulable"
    told = await until_seen(scheduler, job_of(namespace, "Job", "train"), Liveness.RUNNING)
    assert not told.stuck


async def test_a_deployment_that_is_late_has_failed_by_kubernetes_own_word(
    make_scheduler: MakeScheduler, kubectl: Kubectl, namespace: str
) -> None:
    scheduler = make_scheduler(limits=replace(LIMITS, ready=60.0))
    job = job_of(namespace, "Deployment", "train")
    manifest = workload("Deployment", namespace, "imagepull")
    manifest["spec"]["progressDeadlineSeconds"] = 3
    await kubectl.apply(manifest)
    told = await until_seen(scheduler, job, Liveness.FAILED)
    assert told.native == "ProgressDeadlineExceeded"
    path = "jsonpath={.status.conditions[?(@.type=='Progressing')].reason}"
    assert await kubectl("-n", namespace, "get", "deployment", "train", "-o", path) == told.native


async def test_a_rollout_that_is_late_leaves_what_serves_running(
    scheduler: KubernetesScheduler, kubectl: Kubectl, namespace: str
) -> None:
    job = job_of(namespace, "Deployment", "train")
    manifest = workload("Deployment", namespace, "healthy")
    manifest["spec"]["progressDeadlineSeconds"] = 3
    await kubectl.apply(manifest)
    await until_seen(scheduler, job, Liveness.RUNNING)
    change = {"spec": {"template": {"metadata": {"annotations": {"lab/does": "imagepull"}}}}}
    async with noted(scheduler, job) as told:
        await kubectl("-n", namespace, "patch", "deployment", "train", "-p", json.dumps(change))
        await until_told(scheduler, job, lambda told: "ProgressDeadlineExceeded" in told.warning)
    assert {one.liveness for one in told} <= {Liveness.RUNNING, Liveness.PENDING}
    assert told[-1].liveness is Liveness.RUNNING


@pytest.fixture
async def priorities(kubectl: Kubectl) -> AsyncIterator[tuple[str, str]]:
    """A lower and a higher class, both below everybody else's pods."""
    names = (f"low-{uuid.uuid4().hex[:6]}", f"high-{uuid.uuid4().hex[:6]}")
    for name, value in zip(names, (-20, -10), strict=True):
        await kubectl("create", "priorityclass", name, f"--value={value}")
    yield names
    await kubectl("delete", "priorityclass", *names)


async def test_a_job_that_is_preempted_waits_and_comes_back_and_has_never_failed(
    scheduler: KubernetesScheduler, kubectl: Kubectl, namespace: str, priorities: tuple[str, str]
) -> None:
    low, high = priorities
    place = {"kubernetes.io/hostname": "hollow-c"}
    size = {"requests": {"cpu": "900"}}
    manifest = job_manifest(namespace, "train", "healthy")
    manifest["spec"]["template"]["spec"] |= {"priorityClassName": low, "nodeSelector": place}
    manifest["spec"]["template"]["spec"]["containers"][0]["resources"] = size
    await kubectl.apply(manifest)
    job = job_of(namespace, "Job", "train")
    await until_seen(scheduler, job, Liveness.RUNNING)
    first = await pod_of(kubectl, namespace)
    stronger = bare_pod(namespace, "stronger", priorityClassName=high, nodeSelector=place)
    stronger["spec"]["containers"][0]["resources"] = size
    async with noted(scheduler, job) as told:
        await kubectl.apply(stronger)
        waiting = await until_told(scheduler, job, lambda told: told.native == "Unschedulable")
        await until_seen(scheduler, job_of(namespace, "Pod", "stronger"), Liveness.RUNNING)
        events = await kubectl("-n", namespace, "get", "events", "--field-selector=reason=Preempted")
        assert first in events
        await kubectl("-n", namespace, "delete", "pod", "stronger", "--wait=true")
        await until_seen(scheduler, job, Liveness.RUNNING)
    assert "Insufficient cpu" in waiting.reason
    assert {one.liveness for one in told} <= {Liveness.RUNNING, Liveness.PENDING}
    assert len({one.incarnation for one in told}) == 1


@pytest.fixture
async def lone_node(kubectl: Kubectl, proxy: Proxy) -> AsyncIterator[str]:
    """A node that is an object and nothing else; no other test's pods go there."""
    name = f"lone-{uuid.uuid4().hex[:6]}"
    await kubectl.apply({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}})
    now = stamp()
    ready = {"type": "Ready", "status": "True", "lastHeartbeatTime": now, "lastTransitionTime": now}
    await merge(proxy, f"/api/v1/nodes/{name}/status", {"status": {"conditions": [ready]}})
    yield name
    await kubectl("delete", "node", name, "--ignore-not-found")


def stamp(ago: float = 0) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() - ago))


async def placed(
    kubectl: Kubectl, proxy: Proxy, scheduler: Scheduler, namespace: str, node: str
) -> tuple[Job, Job]:
    """Two running pods: one on the node that is nobody's, one on a living node."""
    lone = bare_pod(namespace, "lone", nodeName=node)
    lone["spec"].pop("nodeSelector")
    await kubectl.apply(lone)
    ready = {"type": "Ready", "status": "True", "lastTransitionTime": stamp()}
    path = f"/api/v1/namespaces/{namespace}/pods/lone/status"
    await merge(proxy, path, {"status": {"phase": "Running", "conditions": [ready]}})
    await kubectl.apply(bare_pod(namespace, "train"))
    jobs = job_of(namespace, "Pod", "lone"), job_of(namespace, "Pod", "train")
    for job in jobs:
        await until_seen(scheduler, job, Liveness.RUNNING)
    return jobs


async def test_a_pod_whose_dead_node_is_deleted_is_lost_and_stays_so(
    scheduler: KubernetesScheduler, kubectl: Kubectl, proxy: Proxy, namespace: str, lone_node: str
) -> None:
    lone, train = await placed(kubectl, proxy, scheduler, namespace, lone_node)
    # it has sent no heartbeat since it was made: after 20 s its controller calls it not ready, then its pods
    told = await until_seen(scheduler, lone, Liveness.FAILED, seconds=60)
    assert (told.native, told.bad_nodes) == ("NodeLost", (lone_node,))
    await kubectl("delete", "node", lone_node)
    # since when it is gone is not on record: for a moment that is not known
    told = await until_told(
        scheduler,
        lone,
        lambda told: "the node is gone" in told.reason and told.liveness is not Liveness.UNKNOWN,
    )
    assert (told.liveness, told.native) == (Liveness.FAILED, "NodeLost")
    assert (await seen(scheduler, train)).liveness is Liveness.RUNNING
    await kubectl("-n", namespace, "delete", "pod", "lone", "--grace-period=0", "--force")
    told = await until_told(scheduler, lone, lambda told: "removed" in told.reason)
    assert (told.liveness, told.native) == (Liveness.FAILED, "NodeLost")


@pytest.mark.timeout(200)
async def test_a_pod_whose_node_is_deleted_under_it_was_stopped_by_nobody(
    scheduler: KubernetesScheduler, kubectl: Kubectl, proxy: Proxy, namespace: str, lone_node: str
) -> None:
    """The cluster collects such pods within a minute, without a word on the pod."""
    lone, train = await placed(kubectl, proxy, scheduler, namespace, lone_node)
    await kubectl("delete", "node", lone_node)
    told = await until_seen(scheduler, lone, *set(Liveness) - {Liveness.RUNNING}, seconds=90)
    assert (told.liveness, told.native, told.bad_nodes) == (Liveness.FAILED, "NodeLost", (lone_node,))
    assert (await seen(scheduler, train)).liveness is Liveness.RUNNING


@pytest.mark.parametrize(
    ("kind", "change", "native", "path"),
    [
        ("StatefulSet", {"spec": {"replicas": 0}}, "ScaledToZero", "{.spec.replicas}"),
        (
            "DaemonSet",
            {"spec": {"template": {"spec": {"nodeSelector": {"none-has-it": "true"}}}}},
            "NothingToRun",
            "{.status.desiredNumberScheduled}",
        ),
    ],
)
async def test_a_workload_of_which_nothing_is_wanted_never_fails(
    make_scheduler: MakeScheduler,
    kubectl: Kubectl,
    namespace: str,
    kind: str,
    change: Object,
    native: str,
    path: str,
) -> None:
    scheduler, job = make_scheduler(limits=QUICK), job_of(namespace, kind, "train")
    await kubectl.apply(workload(kind, namespace, "healthy"))
    await until_seen(scheduler, job, Liveness.RUNNING)
    async with noted(scheduler, job) as told:
        await kubectl("-n", namespace, "patch", kind, "train", "-p", json.dumps(change))
        await until_told(scheduler, job, lambda told: told.native == native)
        assert await kubectl("-n", namespace, "get", kind, "train", "-o", f"jsonpath={path}") == "0"
        await asyncio.sleep(QUICK.ready + 2)  # longer than anything wanted may be missing
    assert {one.liveness for one in told} <= {Liveness.RUNNING, Liveness.PENDING}
    assert (told[-1].liveness, told[-1].native, told[-1].stuck) == (Liveness.PENDING, native, "")


async def test_a_statefulset_whose_pods_a_quota_forbids_is_stuck_and_runs_once_they_may_be_made(
    make_scheduler: MakeScheduler, kubectl: Kubectl, namespace: str
) -> None:
    scheduler, job = make_scheduler(limits=QUICK), job_of(namespace, "StatefulSet", "train")
    await kubectl("-n", namespace, "create", "quota", "none", "--hard=pods=0")
    await kubectl.apply(workload("StatefulSet", namespace, "healthy", 0))
    await until_told(scheduler, job, lambda told: told.native == "ScaledToZero")
    await asyncio.sleep(QUICK.ready + 0.5)  # what is old may have been scaled just now
    async with noted(scheduler, job) as told:
        await kubectl("-n", namespace, "scale", "sts", "train", "--replicas=1")
        stuck = await until_told(scheduler, job, lambda told: bool(told.stuck))
    assert (stuck.liveness, "quota" in stuck.stuck) == (Liveness.PENDING, True)
    scaled = [one.at for one in told if one.native != "ScaledToZero"]
    assert stuck.at - scaled[0] > QUICK.ready
    await kubectl("-n", namespace, "delete", "quota", "none")
    assert not (await until_seen(scheduler, job, Liveness.RUNNING)).stuck


OPERATORS = [
    ("PyTorchJob", "pytorchjobs", "kubeflow.org/v1"),
    ("TFJob", "tfjobs", "kubeflow.org/v1"),
    ("MPIJob", "mpijobs", "kubeflow.org/v1"),
]


@pytest.mark.parametrize(("kind", "plural", "version"), OPERATORS)
async def test_an_operators_job_without_active_and_succeeded_replicas_has_failed(
    scheduler: KubernetesScheduler,
    kubectl: Kubectl,
    proxy: Proxy,
    namespace: str,
    kind: str,
    plural: str,
    version: str,
) -> None:
    """Tests write the status as the operator would. `kubectl` sees the same counters."""
    await kubectl.apply(
        {
            "apiVersion": version,
            "kind": kind,
            "metadata": {"name": "train", "namespace": namespace},
            "spec": {},
        }
    )
    job = job_of(namespace, kind, "train")
    assert (await until_seen(scheduler, job, Liveness.PENDING)).native
    running = {
        "type": "Running",
        "status": "True",
        "lastUpdateTime": stamp(60),
        "lastTransitionTime": stamp(60),
    }
    path = f"/apis/{version}/namespaces/{namespace}/{plural}/train/status"

    async def count(**workers: int) -> None:
        counters = {"active": 0, "succeeded": 0, "failed": 0, **workers}
        status = {"conditions": [running], "replicaStatuses": {"Worker": counters}}
        await merge(proxy, path, {"status": status})

    for healthy in ({"active": 1}, {"succeeded": 1}):
        await count(**healthy)
        assert (await until_seen(scheduler, job, Liveness.RUNNING)).native == "Running"
    await count(failed=1)
    told = await until_seen(scheduler, job, Liveness.FAILED)
    assert told.native == "NoActiveReplicas"
    worker = "jsonpath={.status.replicaStatuses.Worker.active}{.status.replicaStatuses.Worker.succeeded}"
    assert await kubectl("-n", namespace, "get", plural, "train", "-o", worker) == "00"
    done = {
        "type": "Succeeded",
        "status": "True",
        "reason": f"{kind}Succeeded",
        "lastTransitionTime": stamp(),
    }
    await merge(proxy, path, {"status": {"conditions": [done]}})
    told = await until_seen(scheduler, job, Liveness.SUCCEEDED)
    held = "jsonpath={.status.conditions[?(@.status=='True')].reason}"
    assert await kubectl("-n", namespace, "get", plural, "train", "-o", held) == told.native


async def test_a_launcher_that_its_job_starts_again_is_left_to_it_until_it_runs(
    scheduler: KubernetesScheduler, kubectl: Kubectl, namespace: str
) -> None:
    """As the MPI operator makes it: a Job whose pod fails while no worker listens yet."""
    mine = {"name": "train", "namespace": namespace}
    await kubectl.apply({"apiVersion": "kubeflow.org/v1", "kind": "MPIJob", "metadata": mine, "spec": {}})
    uid = (await kubectl.get("mpijob", "train", "-n", namespace))["metadata"]["uid"]
    owner = {
        "apiVersion": "kubeflow.org/v1",
        "kind": "MPIJob",
        "name": "train",
        "uid": uid,
        "controller": True,
    }
    launcher = job_manifest(namespace, "train-launcher", "crashloop", 6, "OnFailure")
    launcher["metadata"]["ownerReferences"] = [owner]
    launcher["spec"]["template"]["metadata"]["labels"]["training.kubeflow.org/job-name"] = "train"
    job = job_of(namespace, "MPIJob", "train")
    async with noted(scheduler, job) as told:
        await kubectl.apply(launcher)
        looping = await until_told(scheduler, job, lambda told: told.native == "CrashLoopBackOff")
    assert (looping.liveness, looping.restart_underway) == (Liveness.PENDING, True)
    assert "restarted" in looping.warning
    assert Liveness.FAILED not in {one.liveness for one in told}
    path = "jsonpath={.status.conditions}"
    assert await kubectl("-n", namespace, "get", "job", "train-launcher", "-o", path) == ""
    tops = await scheduler.discover(f"namespace={namespace}")
    assert [ref.id for ref in tops] == [f"{namespace}/MPIJob/train"]
