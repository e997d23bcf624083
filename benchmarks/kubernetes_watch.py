"""How soon a failure is seen by watch, and what watching costs, against a `kubectl get` poll a job.

Needs the Kubernetes lab: `set -a; . "$(tests/labs/kubernetes/up.sh | tail -n 1)"`. Latency is from the moment
before a status that means failure is sent to the API server to the moment `observe` says FAILED: at most what it was.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import ssl
import statistics
import time
import tracemalloc
import uuid
from pathlib import Path
from typing import Any

import aiohttp

from trainguard.core.job import Job, JobRef
from trainguard.core.observation import Liveness
from trainguard.schedulers.kubernetes import KubernetesScheduler
from trainguard.transports.kube_access import KubeAccess

FAILURES = 60
SIZES = (1, 100, 1000)
WINDOW = 330.0
"""Seconds: each watch is renewed once in it."""
Object = dict[str, Any]


class Cluster:
    """The lab's API server, as its admin, not through the adapter."""

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self._session, self._server = session, os.environ["TG_KUBE_SERVER"]

    async def call(self, method: str, path: str, body: Object | None = None) -> Object:
        kind = "application/merge-patch+json" if method == "PATCH" else "application/json"
        data = None if body is None else json.dumps(body)
        headers = {"Content-Type": kind}
        async with self._session.request(
            method, f"{self._server}{path}", data=data, headers=headers
        ) as answer:
            if answer.status >= 400:
                raise RuntimeError(f"{method} {path}: {answer.status} {await answer.text()}")
            found: Object = await answer.json()
            return found


def pytorch_job(namespace: str, name: str) -> Object:
    return {
        "apiVersion": "kubeflow.org/v1",
        "kind": "PyTorchJob",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "pytorchReplicaSpecs": {"Worker": {"replicas": 1, "template": {"spec": {"containers": []}}}}
        },
    }


def jobs_of(namespace: str, count: int) -> list[Job]:
    return [
        Job(
            ref=JobRef(scheduler="kubernetes", cluster="bench", id=f"{namespace}/PyTorchJob/j-{n}"),
            name=f"j-{n}",
        )
        for n in range(count)
    ]


async def latency(
    cluster: Cluster, scheduler: KubernetesScheduler, namespace: str, jobs: list[Job]
) -> list[float]:
    """Milliseconds from the status change to the verdict, one failure at a time among all guarded jobs."""
    took = []
    path = f"/apis/kubeflow.org/v1/namespaces/{namespace}/pytorchjobs"
    stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    condition = {"type": "Failed", "status": "True", "reason": "Bench", "lastTransitionTime": stamp}
    for job in jobs[:FAILURES]:
        sequence = await scheduler.wait(-1, 1)
        seen = asyncio.create_task(_until_failed(scheduler, job, sequence))
        began = time.perf_counter()
        await cluster.call("PATCH", f"{path}/{job.name}/status", {"status": {"conditions": [condition]}})
        took.append((await seen - began) * 1000)
    return took


async def _until_failed(scheduler: KubernetesScheduler, job: Job, sequence: int) -> float:
    while (await scheduler.observe([job]))[job.ref].liveness is not Liveness.FAILED:
        sequence = await scheduler.wait(sequence, 10)
    return time.perf_counter()


async def costs(namespace: str) -> list[Object]:
    """Requests and memory of watching few and many jobs, each from its own start, in one window."""
    watching = [await _watching(namespace, size) for size in SIZES]
    asked = [scheduler.requests for scheduler, _, _ in watching]
    await asyncio.gather(*(_look(scheduler, jobs) for scheduler, jobs, _ in watching))
    found = []
    for (scheduler, jobs, kib), before in zip(watching, asked, strict=True):
        again = scheduler.requests - before
        began = time.perf_counter()
        await scheduler.observe(jobs)
        one_look = (time.perf_counter() - began) * 1000
        await scheduler.close()
        found.append(
            {
                "jobs": len(jobs),
                "requests_to_begin": before,
                "requests_per_minute": round(again * 60 / WINDOW, 1),
                "memory_kib": kib,
                "observe_all_ms": round(one_look, 2),
            }
        )
    return found


async def _watching(namespace: str, count: int) -> tuple[KubernetesScheduler, list[Job], int]:
    """Begin to watch so many jobs; KiB that it takes."""
    gc.collect()
    tracemalloc.start()
    scheduler = KubernetesScheduler("bench", KubeAccess(path=os.environ["TG_KUBE_CONFIG"]))
    jobs = jobs_of(namespace, count)
    await scheduler.observe(jobs)
    gc.collect()
    memory = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    return scheduler, jobs, round(memory / 1024)


async def _look(scheduler: KubernetesScheduler, jobs: list[Job]) -> None:
    sequence, until = 0, time.monotonic() + WINDOW
    while time.monotonic() < until:
        sequence = await scheduler.wait(sequence, 1)
        await scheduler.observe(jobs)


async def kubectl_poll(namespace: str, runs: int = 5) -> Object:
    """The baseline: one `kubectl get` for each job and poll."""
    took = []
    for n in range(runs):
        began = time.perf_counter()
        process = await asyncio.create_subprocess_exec(
            os.environ["TG_KUBECTL"], "--kubeconfig", os.environ["TG_KUBE_CONFIG"],
            "-n", namespace, "get", "pytorchjobs", f"j-{n}", "-o", "json",
            stdout=asyncio.subprocess.DEVNULL,
        )  # fmt: skip
        await process.wait()
        took.append(time.perf_counter() - began)
    one = statistics.median(took)
    return {
        "seconds_a_poll": round(one, 3),
        "requests_per_minute_for_1000_jobs_every_10_s": 6000,
        "cpu_seconds_needed_a_minute_for_1000_jobs_every_10_s": round(one * 6000, 1),
        "latency_ms_median_at_10_s": 5000 + round(one * 1000),
    }


async def measure() -> Object:
    pki = Path(os.environ["TG_KUBE_PKI"])
    context = ssl.create_default_context(cafile=str(pki / "ca.crt"))
    context.load_cert_chain(str(pki / "admin.crt"), str(pki / "admin.key"))
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=context)) as session:
        cluster, namespace = Cluster(session), f"bench-{uuid.uuid4().hex[:6]}"
        await cluster.call("POST", "/api/v1/namespaces", {"metadata": {"name": namespace}})
        path = f"/apis/kubeflow.org/v1/namespaces/{namespace}/pytorchjobs"
        gate = asyncio.Semaphore(8)

        async def make(n: int) -> None:
            async with gate:
                await cluster.call("POST", path, pytorch_job(namespace, f"j-{n}"))

        try:
            await asyncio.gather(*(make(n) for n in range(max(SIZES))))
            cost = await costs(namespace)
            baseline = await kubectl_poll(namespace)
            scheduler = KubernetesScheduler("bench", KubeAccess(path=os.environ["TG_KUBE_CONFIG"]))
            jobs = jobs_of(namespace, max(SIZES))
            await scheduler.observe(jobs)
            took = sorted(await latency(cluster, scheduler, namespace, jobs))
            await scheduler.close()
        finally:
            await cluster.call("DELETE", f"/api/v1/namespaces/{namespace}")
    return {
        "failures": len(took),
        "latency_ms_p50": round(took[len(took) // 2], 1),
        "latency_ms_p99": round(took[min(len(took) - 1, int(len(took) * 0.99))], 1),
        "latency_ms_max": round(took[-1], 1),
        "cost": cost,
        "baseline_kubectl_get": baseline,
    }


def run() -> dict[str, Any]:
    """Measure; where there is no lab, say how to get one."""
    if "TG_KUBE_SERVER" not in os.environ:
        return {"skipped": 'needs the lab: set -a; . "$(tests/labs/kubernetes/up.sh | tail -n 1)"'}
    return asyncio.run(measure())


if __name__ == "__main__":
    print(json.dumps(run(), indent=1))
