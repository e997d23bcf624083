"""Acting: every kind its way, once, never two of the same training at once."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.labs.kubernetes.acting import (
    OPERATORS,
    Operator,
    Peak,
    action,
    custom,
    fence,
    incarnation_of,
    started_by_cron,
    until_new,
    workload,
)
from tests.labs.kubernetes.conftest import (
    Hollow,
    Kubectl,
    MakeScheduler,
    job_manifest,
    job_of,
    pod_template,
)
from tests.labs.kubernetes.proxy import Proxy
from tests.labs.kubernetes.test_watch import pod_of, seen, started, until, until_seen
from trainguard.core.action import ActionKind, OutcomeStatus
from trainguard.core.errors import RefusedError
from trainguard.core.job import CheckpointSpec, Incarnation, Resume, ResumeBy
from trainguard.core.observation import Liveness
from trainguard.schedulers.kubernetes import KubernetesScheduler

pytestmark = pytest.mark.lab("kubernetes")
Object = dict[str, Any]


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
