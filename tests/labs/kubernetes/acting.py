"""What the tests that act on jobs share."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
import uuid
from collections.abc import AsyncIterator
from typing import Any

import aiohttp

from tests.labs.kubernetes.conftest import Hollow, Kubectl, job_manifest, job_of, pod_template
from tests.labs.kubernetes.proxy import Proxy
from tests.labs.kubernetes.test_watch import seen, until, until_seen
from trainguard.core.action import Action, ActionKind, Fence
from trainguard.core.job import Incarnation, Job
from trainguard.core.observation import Liveness
from trainguard.schedulers.base import Scheduler

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
