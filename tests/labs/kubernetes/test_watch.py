"""Seeing: by watch, through disconnects, expired marks, refusals and a killed API server."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import ClassVar, TypeVar

import pytest
from aiohttp import web

from tests.labs.kubernetes.conftest import (
    CLUSTER,
    LIMITS,
    Hollow,
    Kubectl,
    MakeScheduler,
    job_manifest,
    job_of,
)
from tests.labs.kubernetes.proxy import Proxy
from trainguard.core.errors import AccessRefusedError, NotFoundError, UnreachableError
from trainguard.core.job import Job
from trainguard.core.observation import Liveness, Observation
from trainguard.schedulers.base import Scheduler
from trainguard.schedulers.kubernetes import KubernetesScheduler
from trainguard.schedulers.kubernetes.informer import Informer, Sight
from trainguard.schedulers.kubernetes.kinds import KINDS
from trainguard.transports.kube_access import KubeAccess
from trainguard.transports.kube_errors import ExpiredError

pytestmark = pytest.mark.lab("kubernetes")
T = TypeVar("T")
FORBIDDEN = '{"kind": "Status", "message": "jobs.batch is forbidden: User \\"u\\" cannot %s resource \\"jobs\\"", "code": 403}'


async def until(look: Callable[[], Awaitable[T | None]], seconds: float = 30) -> T:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found = await look()
        if found is not None:
            return found
        await asyncio.sleep(0.1)
    raise AssertionError(f"not within {seconds} s")


async def seen(scheduler: Scheduler, job: Job) -> Observation:
    return (await scheduler.observe([job]))[job.ref]


async def until_seen(scheduler: Scheduler, job: Job, *wanted: Liveness, seconds: float = 30) -> Observation:
    last: list[Observation] = []

    async def look() -> Observation | None:
        last[:] = [await seen(scheduler, job)]
        return last[0] if last[0].liveness in wanted else None

    try:
        return await until(look, seconds)
    except AssertionError as error:
        raise AssertionError(f"{error}; last: {last}") from None


async def started(
    kubectl: Kubectl, namespace: str, does: str = "healthy", name: str = "train", backoff: int = 0
) -> Job:
    await kubectl.apply(job_manifest(namespace, name, does, backoff))
    return job_of(namespace, "Job", name)


async def pod_of(kubectl: Kubectl, namespace: str, name: str = "train") -> str:
    async def look() -> str | None:
        pods = (await kubectl.get("pods", "-n", namespace, "-l", f"app={name}"))["items"]
        return str(pods[-1]["metadata"]["name"]) if pods else None

    return await until(look)


def asks_for(*words: str) -> Callable[[web.Request], bool]:
    return lambda request: all(word in request.path_qs for word in words)


async def test_a_failure_wakes_the_guard_at_once(
    scheduler: KubernetesScheduler, kubectl: Kubectl, hollow: Hollow, namespace: str
) -> None:
    job = await started(kubectl, namespace)
    await until_seen(scheduler, job, Liveness.RUNNING)
    pod = await pod_of(kubectl, namespace)
    sequence = await scheduler.wait(-1, 5)
    await hollow.exit(namespace, pod, 3)
    woken = 0
    while (await seen(scheduler, job)).liveness is not Liveness.FAILED:
        sequence, before = await scheduler.wait(sequence, 20), sequence
        assert sequence > before
        woken += 1
    assert woken < 20


async def test_waiting_for_nothing_ends_in_time(scheduler: KubernetesScheduler) -> None:
    began = time.monotonic()
    assert await scheduler.wait(10_000, 0.2) == 10_000
    assert time.monotonic() - began < 5


async def test_fifty_jobs_cost_as_many_requests_as_one(
    scheduler: KubernetesScheduler, proxy: Proxy, kubectl: Kubectl, namespace: str
) -> None:
    jobs = [job_of(namespace, "Job", f"j-{n}") for n in range(50)]
    await started(kubectl, namespace, name="j-0")
    await until_seen(scheduler, jobs[0], Liveness.RUNNING)
    before = scheduler.requests
    for _ in range(20):
        await scheduler.observe(jobs)
    assert scheduler.requests == before
    # a discovery, a list and a watch for jobs; a list and a watch each for pods and nodes
    assert before == 7


async def test_nothing_is_lost_between_many_disconnects(
    scheduler: KubernetesScheduler, proxy: Proxy, kubectl: Kubectl, namespace: str
) -> None:
    job = await started(kubectl, namespace)
    await until_seen(scheduler, job, Liveness.RUNNING)
    told = set()
    for n in range(12):
        other = await started(kubectl, namespace, "finish", f"other-{n}")
        await proxy.cut()
        told.add((await seen(scheduler, job)).liveness)
        del other
    for n in range(12):
        await until_seen(scheduler, job_of(namespace, "Job", f"other-{n}"), Liveness.SUCCEEDED)
    assert told <= {Liveness.RUNNING, Liveness.UNKNOWN}


async def test_an_expired_mark_as_an_error_event_means_listing_again(
    scheduler: KubernetesScheduler, proxy: Proxy, kubectl: Kubectl, namespace: str
) -> None:
    job = await started(kubectl, namespace)
    await until_seen(scheduler, job, Liveness.RUNNING)
    informer = scheduler._sight.informer(KINDS["Job"], namespace)
    lists = informer.relists
    gone = '{"type": "ERROR", "object": {"kind": "Status", "code": 410, "message": "too old resource version"}}\n'
    proxy.refuse(200, gone, asks_for("/jobs", "watch=1"), times=1)
    await proxy.cut()
    await kubectl("-n", namespace, "delete", "job", "train", "--wait=true")
    await until_seen(scheduler, job, Liveness.STOPPED, Liveness.GONE)
    assert informer.relists > lists


async def test_an_expired_mark_in_the_middle_of_a_list_starts_the_list_again(
    scheduler: KubernetesScheduler, proxy: Proxy, kubectl: Kubectl, namespace: str
) -> None:
    proxy.refuse(
        410,
        '{"kind": "Status", "code": 410, "message": "expired"}',
        asks_for(f"{namespace}/jobs", "limit="),
        times=2,
    )
    job = await started(kubectl, namespace)
    await until_seen(scheduler, job, Liveness.RUNNING)


async def test_the_api_server_is_killed_and_comes_back(
    make_scheduler: MakeScheduler, kubectl: Kubectl, hollow: Hollow, namespace: str
) -> None:
    """Real refused connections, then a real 410: the server that comes back has none of the older events.

    No wrong verdict before, in between or after.
    """
    # no node could send a heartbeat meanwhile: its controller may call one not ready for a moment
    scheduler = make_scheduler(limits=replace(LIMITS, node=30.0))
    stays, ends = await started(kubectl, namespace), await started(kubectl, namespace, name="ends")
    for job in (stays, ends):
        await until_seen(scheduler, job, Liveness.RUNNING)
    pod = await pod_of(kubectl, namespace, "ends")
    mark = (await kubectl.get("namespace", namespace))["metadata"]["resourceVersion"]
    run = Path(os.environ["TG_KUBE_RUN"])
    told: list[Liveness] = []
    watching = asyncio.create_task(_note(scheduler, stays, told))
    os.kill(int((run / "kube-apiserver.pid").read_text()), signal.SIGKILL)
    try:
        await until_seen(scheduler, stays, Liveness.UNKNOWN)
        with pytest.raises(UnreachableError):
            await scheduler.validate(stays)
        await hollow.exit(namespace, pod, 3)
    finally:
        process = await asyncio.create_subprocess_exec(str(run / "start-kube-apiserver"))
        await process.wait()
    await until_seen(scheduler, stays, Liveness.RUNNING, seconds=90)
    await until_seen(scheduler, ends, Liveness.FAILED, seconds=60)
    watching.cancel()
    assert set(told) <= {Liveness.RUNNING, Liveness.UNKNOWN}
    await _too_old(scheduler, namespace, mark)


async def _too_old(scheduler: KubernetesScheduler, namespace: str, mark: str) -> None:
    """The server refuses a mark; a watch that would go on from it lists again."""
    with pytest.raises(ExpiredError):
        async for _ in scheduler._api.watch(KINDS["Job"], namespace, mark, 10, lambda: None):
            pass
    heard = asyncio.Event()
    late = Informer(scheduler._api, KINDS["Job"], namespace, heard.set)
    late._version, late._listed_at = mark, asyncio.get_running_loop().time()
    late.start()
    async with asyncio.timeout(20):
        while late.get(namespace, "train") is None:
            await heard.wait()
            heard.clear()
    assert (late.relists, late.sight) == (1, Sight.WATCHING)
    await late.stop()


async def _note(scheduler: Scheduler, job: Job, told: list[Liveness]) -> None:
    while True:
        told.append((await seen(scheduler, job)).liveness)
        await asyncio.sleep(0.02)


class Quick(KubernetesScheduler):
    poll_seconds: ClassVar[float] = 0.5


@pytest.fixture
async def quick(proxy: Proxy) -> AsyncIterator[Quick]:
    scheduler = Quick(CLUSTER, KubeAccess(text=proxy.kubeconfig()), limits=LIMITS)
    yield scheduler
    await scheduler.close()


async def test_where_watching_is_forbidden_it_polls(
    quick: Quick, proxy: Proxy, kubectl: Kubectl, hollow: Hollow, namespace: str
) -> None:
    proxy.refuse(403, FORBIDDEN % "watch", asks_for("watch=1"))
    job = await started(kubectl, namespace)
    await until_seen(quick, job, Liveness.RUNNING)

    async def polls() -> bool | None:
        return (await seen(quick, job)).source == "polling" or None

    await until(polls, 20)  # the first list comes before the first watch is refused
    await hollow.exit(namespace, await pod_of(kubectl, namespace), 3)
    await until_seen(quick, job, Liveness.FAILED)

    async def told() -> bool | None:
        return (await seen(quick, job)).exit_code == 3 or None

    await until(told)  # the Job's list may come before the pods'


async def test_where_listing_is_forbidden_it_reads_each_job(
    quick: Quick, proxy: Proxy, kubectl: Kubectl, hollow: Hollow, namespace: str
) -> None:
    proxy.refuse(403, FORBIDDEN % "list", asks_for(f"{namespace}/jobs", "limit="))
    job = await started(kubectl, namespace)
    assert (await until_seen(quick, job, Liveness.RUNNING)).source == "get"
    await hollow.exit(namespace, await pod_of(kubectl, namespace), 3)
    await until_seen(quick, job, Liveness.FAILED)
    assert (await seen(quick, job_of(namespace, "Job", "nobody"))).liveness is Liveness.GONE


async def test_where_pods_can_not_be_read_the_job_is_told_by_its_own_words(
    scheduler: KubernetesScheduler, proxy: Proxy, kubectl: Kubectl, hollow: Hollow, namespace: str
) -> None:
    proxy.refuse(403, FORBIDDEN % "list", asks_for(f"{namespace}/pods"))
    job = await started(kubectl, namespace)
    assert "pods can't be read" in (await until_seen(scheduler, job, Liveness.RUNNING)).warning
    await hollow.exit(namespace, await pod_of(kubectl, namespace), 3)
    assert (await until_seen(scheduler, job, Liveness.FAILED)).native == "BackoffLimitExceeded"


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (401, "Unauthorized"),
        (403, "no"),
        (500, "no"),
        (503, "no"),
        (429, "later"),
        (200, "<html>a proxy's login page</html>"),
    ],
)
async def test_whatever_the_server_refuses_with_says_nothing_about_the_job(
    make_scheduler: MakeScheduler, proxy: Proxy, kubectl: Kubectl, namespace: str, status: int, body: str
) -> None:
    job = await started(kubectl, namespace)
    fault = proxy.refuse(status, body, lambda request: True)
    scheduler = make_scheduler()
    told = await seen(scheduler, job)
    assert (told.liveness, bool(told.reason)) == (Liveness.UNKNOWN, True)
    with pytest.raises((AccessRefusedError, UnreachableError)):
        await scheduler.validate(job)
    fault.times = 0
    await until_seen(scheduler, job, Liveness.RUNNING, seconds=60)


async def test_too_many_requests_are_asked_again_after_the_pause_that_was_named(
    make_scheduler: MakeScheduler, proxy: Proxy, kubectl: Kubectl, namespace: str
) -> None:
    job = await started(kubectl, namespace)
    proxy.refuse(429, "{}", asks_for("/jobs/train"), times=2, **{"Retry-After": "1"})
    began = time.monotonic()
    assert (await make_scheduler().validate(job)).job_seen
    assert time.monotonic() - began >= 2


async def test_expired_credentials_are_read_again(
    make_scheduler: MakeScheduler, proxy: Proxy, kubectl: Kubectl, namespace: str
) -> None:
    job = await started(kubectl, namespace)
    proxy.refuse(401, "{}", asks_for("/jobs/train"), times=1)
    scheduler = make_scheduler()
    assert (await scheduler.validate(job)).job_seen


async def test_a_kind_that_the_cluster_does_not_have_is_no_crash(
    make_scheduler: MakeScheduler, proxy: Proxy, namespace: str
) -> None:
    proxy.refuse(404, "404 page not found", asks_for("/apis/kubeflow.org"))
    scheduler, job = make_scheduler(), job_of(namespace, "PyTorchJob", "train")
    told = await seen(scheduler, job)
    assert told.liveness is Liveness.UNKNOWN
    assert "not installed" in told.reason
    with pytest.raises(NotFoundError, match="not installed"):
        await scheduler.validate(job)
    await scheduler.discover(f"namespace={namespace}")


async def test_a_finished_job_that_is_removed_keeps_its_end(
    scheduler: KubernetesScheduler, kubectl: Kubectl, namespace: str
) -> None:
    done, failed = (
        await started(kubectl, namespace, "finish"),
        await started(kubectl, namespace, "crash", "bad"),
    )
    await until_seen(scheduler, done, Liveness.SUCCEEDED)
    await until_seen(scheduler, failed, Liveness.FAILED)
    await kubectl("-n", namespace, "delete", "job", "--all", "--wait=true")
    await asyncio.sleep(0.5)
    assert (await seen(scheduler, done)).liveness is Liveness.SUCCEEDED
    told = await seen(scheduler, failed)
    assert (told.liveness, told.exit_code) == (Liveness.FAILED, 3)
