"""Making a job again: whatever dies, is refused or is changed on the way, one training comes of it."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.labs.kubernetes.acting import (
    Operator,
    Peak,
    action,
    cron_job,
    custom,
    fence,
    started_by_cron,
    until_new,
)
from tests.labs.kubernetes.conftest import (
    LIMITS,
    Hollow,
    Kubectl,
    MakeScheduler,
    job_of,
)
from tests.labs.kubernetes.proxy import Proxy
from tests.labs.kubernetes.test_watch import pod_of, seen, started, until, until_seen
from trainguard.core.action import ActionKind, Outcome, OutcomeStatus
from trainguard.core.errors import AccessRefusedError, RefusedError, UnreachableError
from trainguard.core.job import Job
from trainguard.core.observation import Liveness
from trainguard.schedulers.base import Scheduler
from trainguard.schedulers.kubernetes import KubernetesScheduler

pytestmark = pytest.mark.lab("kubernetes")
Object = dict[str, Any]


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
