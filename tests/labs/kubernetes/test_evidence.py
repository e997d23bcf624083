"""What is collected: every run of every container, events, nodes, quota, owners; and kubectl's opinion."""

from __future__ import annotations

import json
import time

import pytest

from tests.labs.kubernetes.acting import workload
from tests.labs.kubernetes.conftest import Kubectl, job_manifest, job_of, pod_template
from tests.labs.kubernetes.test_watch import seen, started, until, until_seen
from trainguard.core.evidence import EvidenceKind
from trainguard.core.observation import Liveness
from trainguard.schedulers.kubernetes import KubernetesScheduler

pytestmark = pytest.mark.lab("kubernetes")


async def test_the_run_before_the_crash_loop_is_collected_too(
    scheduler: KubernetesScheduler, kubectl: Kubectl, namespace: str
) -> None:
    await kubectl.apply(workload("Deployment", namespace, "oomloop"))
    job = job_of(namespace, "Deployment", "train")
    told = await until_seen(scheduler, job, Liveness.FAILED)
    assert (told.native, told.oom_killed) == ("CrashLoopBackOff", True)
    await kubectl("-n", namespace, "create", "quota", "small", "--hard=pods=7")
    evidence = await scheduler.collect(job, told)
    logs = [item.source.name for item in evidence if item.kind is EvidenceKind.LOG]
    assert any(name.endswith("(previous)") for name in logs)
    text = {item.source.name: item.text for item in evidence}
    assert any(
        "Scheduled" in one or "SuccessfulCreate" in one
        for name, one in text.items()
        if name.startswith("events")
    )
    assert "condition Ready=True" in text[f"node/{told.nodes[0]}"]
    assert '"pods": "7"' in text["resourcequotas"] or "small" in text["resourcequotas"]
    assert text["owners"] == "Deployment/train"


async def test_kernel_lines_of_node_events_are_kernel_evidence(
    scheduler: KubernetesScheduler, kubectl: Kubectl, namespace: str
) -> None:
    job = await started(kubectl, namespace)
    told = await until_seen(scheduler, job, Liveness.RUNNING)
    stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    event = {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"generateName": "xid.", "namespace": "default"},
        "involvedObject": {"kind": "Node", "name": told.nodes[0], "uid": told.nodes[0]},
        "reason": "XidError",
        "message": "NVRM: Xid (PCI:0000:3b:00): 79, GPU has fallen off the bus.",
        "type": "Warning",
        "source": {"component": "kernel-monitor"},
        "firstTimestamp": stamp,
        "lastTimestamp": stamp,
    }
    await kubectl("create", "-f", "-", stdin=json.dumps(event))
    kernel = [item for item in await scheduler.collect(job, told) if item.kind is EvidenceKind.KERNEL]
    assert kernel
    assert "Xid (PCI:0000:3b:00): 79" in kernel[0].text
    assert kernel[0].source.node == told.nodes[0]


async def test_every_rank_of_an_indexed_training_has_its_own_stream(
    scheduler: KubernetesScheduler, kubectl: Kubectl, namespace: str
) -> None:
    """1.20 knows no indexed Jobs; a StatefulSet's pods are ranks by what the operators' labels say."""
    for rank in (0, 1):
        pod = {"apiVersion": "v1", "kind": "Pod", **pod_template("healthy", "Never", "train")}
        pod["metadata"] |= {"name": f"r{rank}", "namespace": namespace}
        pod["metadata"]["labels"] |= {
            "training.kubeflow.org/replica-index": str(rank),
            "training.kubeflow.org/replica-type": "master",
        }
        await kubectl.apply(pod)
        job = job_of(namespace, "Pod", f"r{rank}")
        await until_seen(scheduler, job, Liveness.RUNNING)
        chunks = (await scheduler.logs(job)).chunks
        assert {chunk.source.rank for chunk in chunks} <= {rank}


AGREE = [
    ("Job", "finish", Liveness.SUCCEEDED, "{.status.conditions[?(@.status=='True')].type}", "Complete"),
    ("Job", "crash", Liveness.FAILED, "{.status.conditions[?(@.status=='True')].type}", "Failed"),
    ("Job", "healthy", Liveness.RUNNING, "{.status.active}", "1"),
    ("Job", "imagepull", Liveness.PENDING, "{.status.active}", "1"),
    ("Pod", "finish", Liveness.SUCCEEDED, "{.status.phase}", "Succeeded"),
    ("Pod", "crash", Liveness.FAILED, "{.status.phase}", "Failed"),
    ("Pod", "oom", Liveness.FAILED, "{.status.containerStatuses[0].state.terminated.reason}", "OOMKilled"),
    ("Pod", "healthy", Liveness.RUNNING, "{.status.phase}", "Running"),
    (
        "Pod",
        "configerror",
        Liveness.PENDING,
        "{.status.containerStatuses[0].state.waiting.reason}",
        "CreateContainerConfigError",
    ),
    ("Deployment", "healthy", Liveness.RUNNING, "{.status.availableReplicas}", "1"),
    ("Deployment", "imagepull", Liveness.FAILED, "{.status.availableReplicas}", ""),
    ("Deployment", "crashloop", Liveness.FAILED, "{.status.replicas}", "1"),
    ("StatefulSet", "healthy", Liveness.RUNNING, "{.status.readyReplicas}", "1"),
    ("StatefulSet", "configerror", Liveness.FAILED, "{.status.readyReplicas}", ""),
    ("DaemonSet", "healthy", Liveness.RUNNING, "{.status.desiredNumberScheduled}", "3"),
    ("DaemonSet", "imagepull", Liveness.FAILED, "{.status.numberReady}", "0"),
]


@pytest.mark.parametrize(("kind", "does", "liveness", "path", "opinion"), AGREE)
async def test_kubectl_agrees(
    scheduler: KubernetesScheduler,
    kubectl: Kubectl,
    namespace: str,
    kind: str,
    does: str,
    liveness: Liveness,
    path: str,
    opinion: str,
) -> None:
    if kind == "Job":
        await kubectl.apply(job_manifest(namespace, "train", does))
    elif kind == "Pod":
        pod = {"apiVersion": "v1", "kind": "Pod", **pod_template(does, "Never", "train")}
        pod["metadata"] |= {"name": "train", "namespace": namespace}
        await kubectl.apply(pod)
    else:
        await kubectl.apply(workload(kind, namespace, does))
    job = job_of(namespace, kind, "train")
    told = await until_seen(scheduler, job, liveness)
    if does in ("imagepull", "configerror") and liveness is Liveness.PENDING:

        async def stuck() -> bool | None:
            return True if (await seen(scheduler, job)).stuck else None

        await until(stuck)
    assert await kubectl("-n", namespace, "get", kind, "train", "-o", f"jsonpath={path}") == opinion
    assert told.native
    assert (await seen(scheduler, job)).incarnation is not None


async def test_a_cron_job_is_what_its_newest_job_is(
    scheduler: KubernetesScheduler, kubectl: Kubectl, namespace: str
) -> None:
    cron = {
        "apiVersion": "batch/v1beta1",
        "kind": "CronJob",
        "metadata": {"name": "nightly", "namespace": namespace},
        "spec": {
            "schedule": "0 0 1 1 *",
            "jobTemplate": {"spec": {"backoffLimit": 0, "template": pod_template("crash", "Never", "train")}},
        },
    }
    await kubectl.apply(cron)
    job = job_of(namespace, "CronJob", "nightly")
    assert (await until_seen(scheduler, job, Liveness.PENDING)).native == "NotYetScheduled"
    owner = (await kubectl.get("cronjob", "nightly", "-n", namespace))["metadata"]["uid"]
    child = job_manifest(namespace, "nightly-1", "crash")
    child["metadata"]["ownerReferences"] = [
        {
            "apiVersion": "batch/v1beta1",
            "kind": "CronJob",
            "name": "nightly",
            "uid": owner,
            "controller": True,
        }
    ]
    await kubectl.apply(child)
    told = await until_seen(scheduler, job, Liveness.FAILED)
    assert told.exit_code == 3
    assert [ref.id for ref in await scheduler.discover(f"namespace={namespace}")] == [
        f"{namespace}/CronJob/nightly"
    ]
