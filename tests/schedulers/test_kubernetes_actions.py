"""Acting against a small API server: whatever is refused on the way, a job that was deleted is made again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from tests.schedulers.kubernetes_fake import Asked, FakeKube
from trainguard.core.action import Action, ActionKind, Fence, OutcomeStatus
from trainguard.core.errors import AccessRefusedError, RefusedError, UnreachableError
from trainguard.core.job import Incarnation, Job, JobRef
from trainguard.core.observation import Liveness
from trainguard.schedulers.kubernetes.actions import Actions
from trainguard.schedulers.kubernetes.api import ClusterApi
from trainguard.schedulers.kubernetes.evidence import Collector
from trainguard.schedulers.kubernetes.kinds import KINDS, parse_job_id
from trainguard.schedulers.kubernetes.logs import PodLogs
from trainguard.schedulers.kubernetes.ownership import labels_of, own_pods
from trainguard.schedulers.kubernetes.reading import Limits
from trainguard.schedulers.kubernetes.rights import Right, needed
from trainguard.schedulers.kubernetes.sight import ClusterSight
from trainguard.schedulers.kubernetes.store import ManifestStore

Object = dict[str, Any]
JOBS, PODS, NODES = "/apis/batch/v1/namespaces/ml/jobs", "/api/v1/namespaces/ml/pods", "/api/v1/nodes"
JOB = Job(ref=JobRef(scheduler="kubernetes", cluster="c", id="ml/Job/train"), name="train")
FENCE = Fence(token="tg-1-0-0", incident="1", lease=1)
FAILED = {"type": "Failed", "status": "True", "reason": "BackoffLimitExceeded"}


class Process:
    """One process with guards: the adapter's parts over the fake server."""

    def __init__(self, kube: FakeKube, folder: Path | None, deadline: float = 0.5) -> None:
        self.store = ManifestStore(folder)
        self.api = ClusterApi(kube)
        self.sight = ClusterSight(self.api, "c", Limits(), 10.0, self.store)
        self.actions = Actions(self.api, self.sight, self.store, Limits(), deadline)


@pytest.fixture
def kube() -> FakeKube:
    one = FakeKube()
    one.add(JOBS, failed_job())
    return one


@pytest.fixture
async def process(kube: FakeKube, tmp_path: Path) -> AsyncIterator[Process]:
    one = Process(kube, tmp_path)
    yield one
    await one.sight.close()


@pytest.fixture
async def patient(kube: FakeKube, tmp_path: Path) -> AsyncIterator[Process]:
    one = Process(kube, tmp_path, deadline=60.0)
    yield one
    await one.sight.close()


def failed_job(**metadata: Any) -> Object:
    template = {"spec": {"containers": [{"name": "main", "image": "i", "command": ["train"]}]}}
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": "train", "namespace": "ml", "uid": "old", **metadata},
        "spec": {"template": template},
        "status": {"failed": 1, "conditions": [FAILED]},
    }


def pod_of_old(name: str = "train-1", **metadata: Any) -> Object:
    owner = {"kind": "Job", "name": "train", "uid": "old", "controller": True}
    return {
        "metadata": {"name": name, "namespace": "ml", "ownerReferences": [owner], **metadata},
        "spec": {"nodeName": "n1"},
        "status": {"phase": "Running"},
    }


def restart(token: str = "old", kind: ActionKind = ActionKind.RESTART, **more: Any) -> Action:
    return Action(kind=kind, incarnation=Incarnation(job=JOB.ref, token=token), **more)


def refuse(
    kube: FakeKube, status: int, text: str, when: Callable[[Asked], bool], times: int = 1_000
) -> list[int]:
    """Answer with a refusal so many times; the list's only number is how many are left."""
    left = [times]

    def rule(asked: Asked) -> tuple[int, str] | None:
        if left[0] <= 0 or not when(asked):
            return None
        left[0] -= 1
        return status, text

    kube.rules.append(rule)
    return left


REFUSALS = [
    (403, 'jobs.batch "train" is forbidden: exceeded quota: small, requested: count/jobs.batch=1'),
    (403, 'admission webhook "budget.example" denied the request: not now'),
    (422, "the webhook finds it invalid"),
    (400, "bad"),
    (404, "no such webhook"),
    (429, "later"),
]


@pytest.mark.parametrize(("status", "text"), REFUSALS)
async def test_a_creation_that_is_refused_after_the_deletion_is_tried_again(
    kube: FakeKube, patient: Process, status: int, text: str
) -> None:
    refuse(kube, status, text, lambda asked: asked.creates, times=2)
    outcome = await patient.actions.perform(JOB, restart(), FENCE)
    assert outcome.status is OutcomeStatus.DONE
    assert kube.objects[f"{JOBS}/train"]["metadata"]["uid"] != "old"


@pytest.mark.parametrize(("status", "text"), REFUSALS[:3])
async def test_a_creation_that_goes_on_being_refused_is_not_known_and_found_later(
    kube: FakeKube, process: Process, status: int, text: str
) -> None:
    left = refuse(kube, status, text, lambda asked: asked.creates)
    outcome = await process.actions.perform(JOB, restart(), FENCE)
    assert (outcome.status, text in outcome.detail) == (OutcomeStatus.UNKNOWN, True)
    with pytest.raises(UnreachableError, match="goes on from here"):
        await process.actions.find(JOB, FENCE)
    assert (await process.actions.perform(JOB, restart(), FENCE)).status is OutcomeStatus.UNKNOWN
    left[0] = 0
    found = await process.actions.find(JOB, FENCE)
    assert found is not None
    assert found.status is OutcomeStatus.DONE


async def test_rights_that_are_taken_away_in_the_middle_lose_nothing(
    kube: FakeKube, patient: Process
) -> None:
    refuse(kube, 403, "forbidden", lambda asked: f"{JOBS}/train" not in kube.objects, times=3)
    assert (await patient.actions.perform(JOB, restart(), FENCE)).status is OutcomeStatus.DONE


async def test_a_job_that_somebody_else_made_meanwhile_is_left_alone(
    kube: FakeKube, process: Process
) -> None:
    def rule(asked: Asked) -> tuple[int, str] | None:
        if asked.creates and f"{JOBS}/train" not in kube.objects:
            kube.add(JOBS, failed_job(uid="theirs"))
        return None

    kube.rules.append(rule)
    outcome = await process.actions.perform(JOB, restart(), FENCE)
    assert (outcome.status, "somebody else" in outcome.detail) == (OutcomeStatus.REFUSED, True)
    assert await process.actions.find(JOB, FENCE) is None
    assert kube.objects[f"{JOBS}/train"]["metadata"]["uid"] == "theirs"


@pytest.mark.parametrize(
    ("status", "text"),
    [
        (403, "unable to create new content in namespace ml because it is being terminated"),
        (404, 'namespaces "ml" not found'),
    ],
)
async def test_a_namespace_that_is_deleted_meanwhile_ends_it(
    kube: FakeKube, process: Process, status: int, text: str
) -> None:
    refuse(kube, status, text, lambda asked: asked.creates)
    outcome = await process.actions.perform(JOB, restart(), FENCE)
    assert (outcome.status, "namespace ml" in outcome.detail) == (OutcomeStatus.REFUSED, True)
    assert process.store.load("ml/Job/train") is None


async def test_old_pods_that_take_long_to_go_lose_nothing(
    kube: FakeKube, process: Process, tmp_path: Path
) -> None:
    kube.add(PODS, pod_of_old(finalizers=["slow"]))
    begun = await process.actions.perform(JOB, restart(), FENCE)
    assert (begun.status, "train-1" in begun.detail) == (OutcomeStatus.UNKNOWN, True)
    other = Process(kube, tmp_path, deadline=1.5)
    for one in (process, other):
        with pytest.raises(UnreachableError, match="train-1"):
            await one.actions.find(JOB, FENCE)
        assert one.sight.being_remade("ml/Job/train")
    finding = asyncio.create_task(other.actions.find(JOB, FENCE))
    await asyncio.sleep(0.2)
    del kube.objects[f"{PODS}/train-1"]
    found = await finding
    assert found is not None
    assert found.status is OutcomeStatus.DONE
    for one in (process, other):
        assert not one.sight.being_remade("ml/Job/train")
        again = await one.actions.find(JOB, FENCE)
        assert again is not None
        assert again.status is OutcomeStatus.DONE
    await other.sight.close()


async def test_what_was_kept_before_a_deletion_that_never_came_is_forgotten(
    kube: FakeKube, process: Process
) -> None:
    """A guard killed between the two: its job is not being made again, whoever deletes it later."""
    refuse(kube, 500, "killed here", lambda asked: asked.method != "GET" and not asked.dry)
    process.actions._remaker._store = Killed(process.store)
    with pytest.raises(KeyboardInterrupt):
        await process.actions.perform(JOB, restart(), FENCE)
    assert process.sight.being_remade("ml/Job/train")
    assert await process.actions.find(JOB, FENCE) is None
    assert not process.sight.being_remade("ml/Job/train")


class Killed(ManifestStore):
    """A store after whose write the process is killed."""

    def __init__(self, store: ManifestStore) -> None:
        super().__init__(None)
        self._kept = store

    def save(self, saved: Any) -> None:
        self._kept.save(saved)
        raise KeyboardInterrupt


async def test_a_job_whose_pods_are_not_gone_yet_is_being_made_again_not_deleted(
    kube: FakeKube, process: Process
) -> None:
    kube.add(PODS, pod_of_old(finalizers=["slow"]))
    await process.actions.perform(JOB, restart(), FENCE)
    name = parse_job_id(JOB.ref.id)
    told = process.sight._missing(JOB.ref, name, process.sight.informer(name.kind, "ml"))
    assert (told.liveness, told.native, told.restart_underway) == (Liveness.PENDING, "Recreating", True)


async def test_a_list_whose_mark_expires_in_the_middle_is_begun_again(
    kube: FakeKube, process: Process
) -> None:
    for n in range(3):
        kube.add(PODS, pod_of_old(f"train-{n}"))
    kube.page = 2
    left = refuse(kube, 410, "expired", lambda asked: "continue" in asked.query, times=2)
    assert len(await process.api.list(KINDS["Pod"], "ml")) == 3
    left[0] = 3
    with pytest.raises(UnreachableError, match="expired"):
        await process.api.list(KINDS["Pod"], "ml")


def dead_node(*taints: str) -> Object:
    ready = {"type": "Ready", "status": "Unknown", "lastTransitionTime": "2026-01-01T00:00:00Z"}
    spec = {"taints": [{"key": key, "effect": "NoExecute"} for key in taints]}
    return {"metadata": {"name": "n1"}, "spec": spec, "status": {"conditions": [ready]}}


async def test_pods_of_a_fenced_node_are_let_go_and_a_right_that_is_missing_for_it_is_named(
    kube: FakeKube, process: Process
) -> None:
    kube.add(NODES, dead_node("node.kubernetes.io/out-of-service"))
    kube.add(PODS, pod_of_old())
    text = 'pods "train-1" is forbidden: User "tg" cannot delete resource "pods"'
    left = refuse(kube, 403, text, lambda asked: asked.method == "DELETE" and asked.path.startswith(PODS))
    begun = await process.actions.perform(JOB, restart(), FENCE)
    assert begun.status is OutcomeStatus.UNKNOWN
    assert "train-1 on n1" in begun.detail
    assert 'cannot delete resource "pods"' in begun.detail
    left[0] = 0
    found = await process.actions.find(JOB, FENCE)
    assert found is not None
    assert found.status is OutcomeStatus.DONE
    assert f"{PODS}/train-1" not in kube.objects


@pytest.mark.parametrize("kind", sorted(set(KINDS) - {"Pod"}))
def test_a_restart_takes_the_right_to_delete_pods(kind: str) -> None:
    wanted = needed(ActionKind.RESTART, KINDS[kind], "ml")
    assert Right("delete", "", "pods", namespace="ml") in wanted


DEPLOYMENTS = "/apis/apps/v1/namespaces/ml/deployments"
DEPLOYED = Job(ref=JobRef(scheduler="kubernetes", cluster="c", id="ml/Deployment/train"), name="train")


def deployment() -> Object:
    template = {"metadata": {"annotations": {}}, "spec": {"containers": [{"name": "main", "image": "v1"}]}}
    return {
        "metadata": {"name": "train", "namespace": "ml", "uid": "d", "generation": 1},
        "spec": {"replicas": 1, "strategy": {"type": "RollingUpdate"}, "template": template},
        "status": {"observedGeneration": 1, "availableReplicas": 1},
    }


async def test_what_its_owner_changes_during_a_rollout_restart_is_not_undone(
    kube: FakeKube, process: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainguard.schedulers.kubernetes.change.REVISION_SECONDS", 0.1)
    kube.add(DEPLOYMENTS, deployment())
    path = f"{DEPLOYMENTS}/train"

    def rule(asked: Asked) -> tuple[int, str] | None:
        if asked.method != "PATCH" or asked.dry or kube.objects[path]["spec"].get("paused"):
            return None
        edited = kube.objects[path]
        edited["spec"]["paused"] = True
        edited["spec"]["template"]["spec"]["containers"][0]["image"] = "v2"
        edited["metadata"]["annotations"] = {"trainguard.dev/fence": "tg-other"}
        edited["metadata"]["resourceVersion"] = "later"
        return None

    kube.rules.append(rule)
    action = Action(kind=ActionKind.RESTART, incarnation=Incarnation(job=DEPLOYED.ref, token="d/r0"))
    outcome = await process.actions.perform(DEPLOYED, action, FENCE)
    assert outcome.status is OutcomeStatus.DONE
    made = kube.objects[path]
    assert made["spec"]["template"]["spec"]["containers"][0]["image"] == "v2"
    assert made["spec"]["strategy"]["type"] == "Recreate"
    assert made["metadata"]["annotations"]["trainguard.dev/fence"] == f"tg-other,{FENCE.token}"


async def test_a_drain_is_gone_on_with_and_given_up_in_the_end(
    kube: FakeKube, process: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    kube.add(NODES, {"metadata": {"name": "n1"}, "spec": {}, "status": {}})
    kube.add("/api/v1/pods", pod_of_old("other", uid="o"))
    budget = '{"message": "Cannot evict pod as it would violate the pod\'s disruption budget."}'
    refuse(kube, 429, budget, lambda asked: asked.path.endswith("/eviction"))
    drain = restart(kind=ActionKind.DRAIN_NODE, nodes=("n1",))
    monkeypatch.setattr("trainguard.schedulers.kubernetes.nodes.BUDGET_PAUSE", 0.1)
    assert (await process.actions.perform(JOB, drain, FENCE)).status is OutcomeStatus.UNKNOWN
    with pytest.raises(UnreachableError, match="budget"):
        await process.actions.find(JOB, FENCE)
    monkeypatch.setattr("trainguard.schedulers.kubernetes.nodes.DRAIN_SECONDS", 0.1)
    found = await process.actions.find(JOB, FENCE)
    assert found is not None
    assert (found.status, "budget" in found.detail) == (OutcomeStatus.REFUSED, True)
    del kube.objects["/api/v1/pods/other"]
    found = await process.actions.find(JOB, FENCE)
    assert found is not None
    assert found.status is OutcomeStatus.DONE


async def test_pods_of_a_job_with_a_selector_of_its_own_are_found(kube: FakeKube, process: Process) -> None:
    """They bear no label job-name, and may be older than the Job that adopted them."""
    obj = failed_job(creationTimestamp="2026-01-02T00:00:00Z")
    obj["spec"] |= {"manualSelector": True, "selector": {"matchLabels": {"app": "train"}}}
    assert labels_of(obj) == "app=train"
    pod = pod_of_old(creationTimestamp="2026-01-01T00:00:00Z")
    assert own_pods(obj, [pod]) == (pod,)
    assert labels_of(failed_job()) == "job-name=train"


async def test_events_are_asked_for_by_object_and_not_without_end(kube: FakeKube, process: Process) -> None:
    collector = Collector(process.api, PodLogs(kube))
    running = [pod_of_old(f"train-{n}", uid=f"p-{n}") for n in range(150)]
    failed = {**pod_of_old("bad", uid="bad"), "status": {"phase": "Failed"}}
    await collector.collect(failed_job(), [*running, failed])
    asked = [one for one in kube.asked if one.path.endswith("/ml/events")]
    assert len(asked) == 100
    assert all(one.query["limit"] == 200 for one in asked)
    fields = [one.query["fieldSelector"] for one in asked]
    assert fields[:2] == ["involvedObject.uid=old", "involvedObject.uid=bad"]


async def test_what_has_come_back_since_the_guard_last_saw_it_is_not_restarted(
    kube: FakeKube, process: Process
) -> None:
    """A pod of a Deployment that crash-looped runs again under the same name and incarnation."""
    obj = deployment()
    obj["status"] = {"observedGeneration": 1}
    kube.add(DEPLOYMENTS, obj)
    kube.add(NODES, {"metadata": {"name": "n1"}, "spec": {}, "status": {}})
    kube.add(PODS, replica(crash_looping()))
    seen = (await process.sight.observe([DEPLOYED]))[DEPLOYED.ref]
    assert (seen.liveness, seen.native) == (Liveness.FAILED, "CrashLoopBackOff")
    assert seen.incarnation is not None
    action = Action(kind=ActionKind.RESTART, incarnation=seen.incarnation)
    kube.objects[f"{DEPLOYMENTS}/train"]["status"]["availableReplicas"] = 1
    kube.objects[f"{PODS}/train-1-a"]["status"] = replica({"running": {"startedAt": "2026-01-01T00:00:00Z"}})[
        "status"
    ]
    with pytest.raises(RefusedError, match="came back by itself"):
        await process.actions.perform(DEPLOYED, action, FENCE)
    assert await process.actions.find(DEPLOYED, FENCE) is None


async def test_what_runs_and_is_seen_to_run_can_be_restarted_for_a_stall(
    kube: FakeKube, process: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainguard.schedulers.kubernetes.change.REVISION_SECONDS", 0.1)
    kube.add(DEPLOYMENTS, deployment())
    kube.add(NODES, {"metadata": {"name": "n1"}, "spec": {}, "status": {}})
    kube.add(PODS, replica({"running": {"startedAt": "2026-01-01T00:00:00Z"}}))
    seen = (await process.sight.observe([DEPLOYED]))[DEPLOYED.ref]
    assert seen.liveness is Liveness.RUNNING
    assert seen.incarnation is not None
    action = Action(kind=ActionKind.RESTART, incarnation=seen.incarnation)
    assert (await process.actions.perform(DEPLOYED, action, FENCE)).status is OutcomeStatus.DONE


def crash_looping() -> Object:
    return {"waiting": {"reason": "CrashLoopBackOff"}}


def replica(state: Object) -> Object:
    owner = {"kind": "ReplicaSet", "name": "train-1", "uid": "rs", "controller": True}
    up = {"type": "Ready", "status": "True" if "running" in state else "False"}
    container = {"name": "main", "restartCount": 5, "state": state}
    return {
        "metadata": {
            "name": "train-1-a",
            "namespace": "ml",
            "labels": {"pod-template-hash": "1"},
            "ownerReferences": [owner],
        },
        "spec": {"nodeName": "n1", "restartPolicy": "Always"},
        "status": {"phase": "Running", "conditions": [up], "containerStatuses": [container]},
    }


CRON_JOBS = "/apis/batch/v1/namespaces/ml/cronjobs"
CRON = Job(ref=JobRef(scheduler="kubernetes", cluster="c", id="ml/CronJob/nightly"), name="nightly")


@pytest.mark.parametrize("older", [False, True])
async def test_the_job_of_a_cron_job_is_not_lost_between_deletion_and_creation(
    kube: FakeKube, process: Process, tmp_path: Path, older: bool
) -> None:
    owner = {"kind": "CronJob", "name": "nightly", "uid": "cron", "controller": True}
    kube.add(CRON_JOBS, {"metadata": {"name": "nightly", "namespace": "ml", "uid": "cron"}, "spec": {}})
    del kube.objects[f"{JOBS}/train"]
    kube.add(JOBS, failed_job(name="nightly-2", ownerReferences=[owner]))
    if older:
        before = failed_job(name="nightly-1", uid="older", creationTimestamp="2026-01-01T00:00:00Z")
        before["metadata"]["ownerReferences"] = [owner]
        kube.add(JOBS, before)
    left = refuse(kube, 403, "exceeded quota", lambda asked: asked.creates)
    action = Action(kind=ActionKind.RESTART, incarnation=Incarnation(job=CRON.ref, token="old"))
    assert (await process.actions.perform(CRON, action, FENCE)).status is OutcomeStatus.UNKNOWN
    other = Process(kube, tmp_path)
    told = (await other.sight.observe([CRON]))[CRON.ref]
    assert (told.native, told.restart_underway) == ("Recreating", True)
    left[0] = 0
    found = await other.actions.find(CRON, FENCE)
    assert found is not None
    assert found.status is OutcomeStatus.DONE
    assert kube.objects[f"{JOBS}/nightly-2"]["metadata"]["uid"] != "old"
    again = await process.actions.find(CRON, FENCE)
    assert again is not None
    assert again.status is OutcomeStatus.DONE
    await other.sight.close()


async def test_what_was_kept_of_an_earlier_object_says_nothing_of_a_later_one(
    kube: FakeKube, process: Process
) -> None:
    refuse(kube, 403, "exceeded quota", lambda asked: asked.creates)
    await process.actions.perform(JOB, restart(), FENCE)
    assert process.sight.being_remade("ml/Job/train")
    assert process.sight.being_remade("ml/Job/train", "old")
    assert not process.sight.being_remade("ml/Job/train", "made by hand since")


def cron_with_job(kube: FakeKube, **spec: Any) -> Object:
    """A CronJob whose one Job has failed; gives the ownerReference of its Jobs."""
    owner = {"kind": "CronJob", "name": "nightly", "uid": "cron", "controller": True}
    own = {"name": "nightly", "namespace": "ml", "uid": "cron"}
    kube.add(CRON_JOBS, {"kind": "CronJob", "metadata": own, "spec": spec})
    del kube.objects[f"{JOBS}/train"]
    kube.add(
        JOBS,
        failed_job(name="nightly-2", ownerReferences=[owner], creationTimestamp="2026-01-02T00:00:00Z"),
    )
    return owner


REMAKE_CRON = Action(kind=ActionKind.RESTART, incarnation=Incarnation(job=CRON.ref, token="old"))


@pytest.mark.parametrize("policy", ["Forbid", "Replace"])
@pytest.mark.parametrize("directly", [False, True])
async def test_a_cron_jobs_job_is_not_made_again_where_its_schedule_would_not_count_it(
    kube: FakeKube, process: Process, policy: str, directly: bool
) -> None:
    cron_with_job(kube, concurrencyPolicy=policy)
    job = CRON
    if directly:
        job = Job(ref=JobRef(scheduler="kubernetes", cluster="c", id="ml/Job/nightly-2"), name="nightly-2")
    action = Action(kind=ActionKind.RESTART, incarnation=Incarnation(job=job.ref, token="old"))
    with pytest.raises(RefusedError, match=f"concurrencyPolicy {policy}.*wait for that schedule"):
        await process.actions.perform(job, action, FENCE)
    assert kube.objects[f"{JOBS}/nightly-2"]["metadata"]["uid"] == "old"


@pytest.mark.parametrize("over", [False, True])
async def test_a_schedule_between_deletion_and_creation_ends_the_remake(
    kube: FakeKube, process: Process, over: bool
) -> None:
    owner = cron_with_job(kube, concurrencyPolicy="Allow")

    def rule(asked: Asked) -> tuple[int, str] | None:
        if f"{JOBS}/nightly-2" not in kube.objects and f"{JOBS}/nightly-3" not in kube.objects:
            newer = failed_job(name="nightly-3", uid="newer", ownerReferences=[owner])
            if not over:
                newer["status"] = {"active": 1}
            kube.add(JOBS, newer)
        return None

    kube.rules.append(rule)
    outcome = await process.actions.perform(CRON, REMAKE_CRON, FENCE)
    if over:
        assert outcome.status is OutcomeStatus.DONE
        return
    assert (outcome.status, "has started Job/nightly-3" in outcome.detail) == (OutcomeStatus.REFUSED, True)
    assert f"{JOBS}/nightly-2" not in kube.objects
    assert not process.sight.being_remade("ml/CronJob/nightly")


def running_job() -> Object:
    return {**failed_job(), "status": {"active": 1}}


async def test_suspended_is_done_only_once_nothing_can_run_any_more(kube: FakeKube, process: Process) -> None:
    kube.add(JOBS, running_job())
    kube.add(PODS, pod_of_old(deletionTimestamp="2026-01-01T00:00:00Z"))
    kube.add(NODES, {"metadata": {"name": "n1"}, "spec": {}, "status": {}})
    suspend = restart(kind=ActionKind.SUSPEND)
    begun = await process.actions.perform(JOB, suspend, FENCE)
    assert (begun.status, "train-1 on n1" in begun.detail) == (OutcomeStatus.UNKNOWN, True)
    with pytest.raises(UnreachableError, match="train-1 on n1"):
        await process.actions.find(JOB, FENCE)
    resume, later = restart(kind=ActionKind.RESUME), Fence(token="tg-1-0-1", incident="1", lease=1)
    with pytest.raises(RefusedError, match="may still run from before: train-1 on n1"):
        await process.actions.perform(JOB, resume, later)
    assert kube.objects[f"{JOBS}/train"]["spec"]["suspend"] is True
    kube.objects[f"{NODES}/n1"] |= dead_node("node.kubernetes.io/out-of-service")
    found = await process.actions.find(JOB, FENCE)
    assert found is not None
    assert found.status is OutcomeStatus.DONE
    assert (await process.actions.perform(JOB, resume, later)).status is OutcomeStatus.DONE
    assert kube.objects[f"{JOBS}/train"]["spec"]["suspend"] is False


async def test_what_its_owner_resumed_since_is_not_waited_for(kube: FakeKube, process: Process) -> None:
    kube.add(JOBS, running_job())
    kube.add(PODS, pod_of_old())
    two_nodes(kube)
    suspend = restart(kind=ActionKind.SUSPEND)
    assert (await process.actions.perform(JOB, suspend, FENCE)).status is OutcomeStatus.UNKNOWN
    kube.objects[f"{JOBS}/train"]["spec"]["suspend"] = False
    found = await process.actions.find(JOB, FENCE)
    assert found is not None
    assert found.status is OutcomeStatus.DONE


def kill(kube: FakeKube, when: Callable[[Asked], bool]) -> None:
    """Kill the process as it is about to ask this, the first time."""
    left = [1]

    def rule(asked: Asked) -> tuple[int, str] | None:
        if left[0] and when(asked):
            left[0] = 0
            raise KeyboardInterrupt
        return None

    kube.rules.append(rule)


def two_nodes(kube: FakeKube) -> None:
    for name in ("n1", "n2"):
        kube.add(NODES, {"metadata": {"name": name}, "spec": {}, "status": {}})


@pytest.mark.parametrize("kind", [ActionKind.CORDON_NODE, ActionKind.DRAIN_NODE])
async def test_what_was_done_to_one_of_two_nodes_is_done_to_the_other_before_it_counts(
    kube: FakeKube, process: Process, kind: ActionKind
) -> None:
    two_nodes(kube)
    kill(kube, lambda asked: asked.method == "PATCH" and not asked.dry and asked.path.endswith("n2"))
    with pytest.raises(KeyboardInterrupt):
        await process.actions.perform(JOB, restart(kind=kind, nodes=("n1", "n2")), FENCE)
    assert "unschedulable" not in kube.objects[f"{NODES}/n2"]["spec"]
    found = await process.actions.find(JOB, FENCE)
    assert found is not None
    assert found.status is OutcomeStatus.DONE
    assert kube.objects[f"{NODES}/n1"]["spec"]["unschedulable"] is True
    assert kube.objects[f"{NODES}/n2"]["spec"]["unschedulable"] is True


BUDGET = '{"message": "Cannot evict pod as it would violate the pod\'s disruption budget."}'


async def test_another_guards_cordon_does_not_end_a_drain_and_an_uncordon_does(
    kube: FakeKube, process: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainguard.schedulers.kubernetes.nodes.BUDGET_PAUSE", 0.1)
    two_nodes(kube)
    kube.add("/api/v1/pods", pod_of_old("other", uid="o"))
    refuse(kube, 429, BUDGET, lambda asked: asked.path.endswith("/eviction"))
    drain = restart(kind=ActionKind.DRAIN_NODE, nodes=("n1",))
    assert (await process.actions.perform(JOB, drain, FENCE)).status is OutcomeStatus.UNKNOWN
    for number, kind in enumerate((ActionKind.CORDON_NODE, ActionKind.UNCORDON_NODE)):
        theirs = Fence(token=f"tg-2-0-{number}", incident="2", lease=1)
        other = await process.actions.perform(JOB, restart(kind=kind, nodes=("n1", "n2")), theirs)
        assert other.status is OutcomeStatus.DONE
        if kind is ActionKind.CORDON_NODE:
            with pytest.raises(UnreachableError, match="budget"):
                await process.actions.find(JOB, FENCE)
    found = await process.actions.find(JOB, FENCE)
    assert found is not None
    assert (found.status, "uncordoned since" in found.detail) == (OutcomeStatus.REFUSED, True)


@pytest.mark.parametrize(
    ("lost", "named"),
    [
        ({"metadata": {"name": "bare", "namespace": "theirs", "uid": "b"}}, "theirs/bare"),
        (
            {**pod_of_old("full", uid="f"), "spec": {"volumes": [{"name": "scratch", "emptyDir": {}}]}},
            "emptyDir: ml/full",
        ),
    ],
)
async def test_a_drain_does_not_destroy_what_nobody_makes_again(
    kube: FakeKube, process: Process, lost: Object, named: str
) -> None:
    two_nodes(kube)
    kube.add("/api/v1/pods", lost)
    drain = restart(kind=ActionKind.DRAIN_NODE, nodes=("n1",))
    with pytest.raises(RefusedError, match=named):
        await process.actions.perform(JOB, drain, FENCE)
    assert "unschedulable" not in kube.objects[f"{NODES}/n1"]["spec"]
    assert not [one for one in kube.asked if one.path.endswith("/eviction")]


async def test_a_drain_may_take_the_jobs_own_pods_whatever_they_hold(
    kube: FakeKube, process: Process
) -> None:
    two_nodes(kube)
    mine = pod_of_old(uid="p")
    mine["spec"]["volumes"] = [{"name": "shm", "emptyDir": {"medium": "Memory"}}]
    kube.add(PODS, mine)
    kube.add("/api/v1/pods", mine)

    def rule(asked: Asked) -> tuple[int, str] | None:
        if asked.path.endswith("/eviction") and not asked.dry:
            kube.objects.pop("/api/v1/pods/train-1", None)
        return None

    kube.rules.append(rule)
    drain = restart(kind=ActionKind.DRAIN_NODE, nodes=("n1",))
    assert (await process.actions.perform(JOB, drain, FENCE)).status is OutcomeStatus.DONE


async def test_a_drain_without_the_right_to_evict_leaves_the_node_alone(
    kube: FakeKube, process: Process
) -> None:
    two_nodes(kube)
    kube.add("/api/v1/pods", pod_of_old("other", uid="o"))
    refuse(kube, 403, "forbidden", lambda asked: asked.path.endswith("/eviction"))
    with pytest.raises(AccessRefusedError):
        await process.actions.perform(JOB, restart(kind=ActionKind.DRAIN_NODE, nodes=("n1",)), FENCE)
    assert "unschedulable" not in kube.objects[f"{NODES}/n1"]["spec"]


STATEFUL_SETS = "/apis/apps/v1/namespaces/ml/statefulsets"
STATEFUL = Job(ref=JobRef(scheduler="kubernetes", cluster="c", id="ml/StatefulSet/train"), name="train")


async def test_a_stateful_set_does_not_roll_without_the_right_to_delete_its_pods(
    kube: FakeKube, process: Process
) -> None:
    obj = deployment()
    obj["status"] = {"observedGeneration": 1, "readyReplicas": 1}
    kube.add(STATEFUL_SETS, obj)
    two_nodes(kube)
    owner = {"kind": "StatefulSet", "name": "train", "uid": "d", "controller": True}
    kube.add(PODS, pod_of_old(uid="p", ownerReferences=[owner]))
    refuse(kube, 403, "forbidden", lambda asked: asked.method == "DELETE")
    action = Action(kind=ActionKind.RESTART, incarnation=Incarnation(job=STATEFUL.ref, token="d/g1"))
    with pytest.raises(AccessRefusedError):
        await process.actions.perform(STATEFUL, action, FENCE)
    assert not [one for one in kube.asked if one.method == "PATCH" and not one.dry]


async def test_what_is_gone_is_tried_before_it_counts_as_being_made_again(
    kube: FakeKube, process: Process
) -> None:
    gone = kube.objects.pop(f"{JOBS}/train")
    refuse(kube, 403, "no right to create", lambda asked: asked.method == "POST" and asked.dry)
    name = parse_job_id(JOB.ref.id)
    with pytest.raises(AccessRefusedError):
        await process.actions._remaker.from_saved(JOB, name, gone, restart(), FENCE)
    assert not process.sight.being_remade("ml/Job/train")


def stateful_set(kube: FakeKube, **spec: Any) -> None:
    obj = deployment()
    obj["status"] = {"observedGeneration": 1, "readyReplicas": 1}
    obj["spec"] |= {"replicas": 3, **spec}
    kube.add(STATEFUL_SETS, obj)


ROLL = Action(kind=ActionKind.RESTART, incarnation=Incarnation(job=STATEFUL.ref, token="d/g1"))


async def test_a_stateful_set_that_was_held_back_is_let_go_whatever_is_refused_on_the_way(
    kube: FakeKube, process: Process, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainguard.schedulers.kubernetes.change.REVISION_SECONDS", 0.1)
    stateful_set(kube)
    path = f"{STATEFUL_SETS}/train"
    left = refuse(
        kube,
        403,
        "forbidden",
        lambda asked: asked.method == "PATCH" and kube.objects[path]["spec"]["replicas"] == 0,
    )
    begun = await process.actions.perform(STATEFUL, ROLL, FENCE)
    assert (begun.status, "forbidden" in begun.detail) == (OutcomeStatus.UNKNOWN, True)
    assert kube.objects[path]["spec"]["replicas"] == 0
    left[0] = 0
    other = Process(kube, tmp_path)
    found = await other.actions.find(STATEFUL, FENCE)
    assert found is not None
    assert found.status is OutcomeStatus.DONE
    assert kube.objects[path]["spec"]["replicas"] == 3
    assert "trainguard.dev/size-before-suspend" not in kube.objects[path]["metadata"]["annotations"]
    await other.sight.close()


@pytest.mark.parametrize("kind", [ActionKind.RESTART, ActionKind.SUSPEND])
async def test_a_stateful_set_is_not_scaled_to_nothing_where_its_volumes_would_go_with_it(
    kube: FakeKube, process: Process, kind: ActionKind
) -> None:
    stateful_set(kube, persistentVolumeClaimRetentionPolicy={"whenScaled": "Delete"})
    with pytest.raises(RefusedError, match="delete its volume claims"):
        await process.actions.perform(STATEFUL, ROLL.model_copy(update={"kind": kind}), FENCE)
    assert kube.objects[f"{STATEFUL_SETS}/train"]["spec"]["replicas"] == 3


def stuck_pod(name: str = "train-1") -> Object:
    pod = pod_of_old(name, uid=name)
    waiting = {"name": "main", "state": {"waiting": {"reason": "ImagePullBackOff"}}}
    pod["status"] = {"phase": "Pending", "containerStatuses": [waiting]}
    return pod


@pytest.mark.parametrize(("backoff", "refused"), [({"backoffLimit": 1}, True), ({"backoffLimit": 2}, False)])
async def test_pods_are_not_deleted_where_that_would_end_their_job(
    kube: FakeKube, process: Process, backoff: Object, refused: bool
) -> None:
    job = running_job()
    job["spec"] |= backoff
    kube.add(JOBS, job)
    for name in ("train-1", "train-2"):
        kube.add(PODS, stuck_pod(name))
    delete = restart(kind=ActionKind.DELETE_POD)
    if refused:
        with pytest.raises(RefusedError, match="1 retries are left"):
            await process.actions.perform(JOB, delete, FENCE)
        assert f"{PODS}/train-1" in kube.objects
    else:
        assert (await process.actions.perform(JOB, delete, FENCE)).status is OutcomeStatus.DONE
        assert f"{PODS}/train-1" not in kube.objects


async def test_a_pod_that_is_well_again_is_not_deleted_by_what_was_decided_before(
    kube: FakeKube, process: Process
) -> None:
    kube.add(JOBS, running_job())
    for name in ("train-1", "train-2"):
        kube.add(PODS, stuck_pod(name))
    kill(kube, lambda asked: asked.method == "DELETE" and not asked.dry)
    with pytest.raises(KeyboardInterrupt):
        await process.actions.perform(JOB, restart(kind=ActionKind.DELETE_POD), FENCE)
    kube.objects[f"{PODS}/train-2"]["status"] = {"phase": "Running"}
    found = await process.actions.find(JOB, FENCE)
    assert found is not None
    assert found.status is OutcomeStatus.DONE
    assert f"{PODS}/train-1" not in kube.objects
    assert f"{PODS}/train-2" in kube.objects


async def test_a_pod_whose_deletion_was_not_answered_is_not_called_deleted(
    kube: FakeKube, process: Process
) -> None:
    kube.add(JOBS, running_job())
    kube.add(PODS, stuck_pod("train-1"))
    lost = [500]

    def rule(asked: Asked) -> tuple[int, str] | None:
        return (lost.pop(), "") if lost and asked.method == "DELETE" and not asked.dry else None

    kube.rules.append(rule)
    outcome = await process.actions.perform(JOB, restart(kind=ActionKind.DELETE_POD), FENCE)
    assert outcome.status is OutcomeStatus.UNKNOWN
    assert f"{PODS}/train-1" in kube.objects
    found = await process.actions.find(JOB, FENCE)
    assert found is not None
    assert found.status is OutcomeStatus.DONE
    assert f"{PODS}/train-1" not in kube.objects


async def test_what_comes_back_in_the_middle_of_a_rollout_restart_is_left_alone(
    kube: FakeKube, process: Process
) -> None:
    """The very write that says so is what the restart's own runs into."""
    obj = deployment()
    obj["status"] = {"observedGeneration": 1}
    kube.add(DEPLOYMENTS, obj)
    kube.add(NODES, {"metadata": {"name": "n1"}, "spec": {}, "status": {}})
    kube.add(PODS, replica(crash_looping()))
    seen = (await process.sight.observe([DEPLOYED]))[DEPLOYED.ref]
    assert (seen.liveness, seen.incarnation is None) == (Liveness.FAILED, False)
    path = f"{DEPLOYMENTS}/train"

    def rule(asked: Asked) -> tuple[int, str] | None:
        if (
            asked.method == "PATCH"
            and not asked.dry
            and not kube.objects[path]["status"].get("availableReplicas")
        ):
            kube.objects[path]["status"]["availableReplicas"] = 1
            kube.objects[path]["metadata"]["resourceVersion"] = "later"
            up = replica({"running": {"startedAt": "2026-01-01T00:00:00Z"}})
            kube.objects[f"{PODS}/train-1-a"]["status"] = up["status"]
        return None

    kube.rules.append(rule)
    assert seen.incarnation is not None
    action = Action(kind=ActionKind.RESTART, incarnation=seen.incarnation)
    with pytest.raises(RefusedError, match="came back by itself"):
        await process.actions.perform(DEPLOYED, action, FENCE)
    assert "strategy" in kube.objects[path]["spec"]
    assert kube.objects[path]["spec"]["strategy"]["type"] == "RollingUpdate"


async def test_a_pod_that_comes_back_before_its_deletion_is_left_alone(
    kube: FakeKube, process: Process
) -> None:
    own = replica(crash_looping())
    del own["metadata"]["ownerReferences"]
    own["metadata"] |= {"name": "bare", "uid": "bare"}
    own["spec"]["containers"] = [{"name": "main", "image": "i"}]
    kube.add(PODS, own)
    two_nodes(kube)
    bare = Job(ref=JobRef(scheduler="kubernetes", cluster="c", id="ml/Pod/bare"), name="bare")
    seen = (await process.sight.observe([bare]))[bare.ref]
    assert seen.liveness is Liveness.FAILED

    def rule(asked: Asked) -> tuple[int, str] | None:
        found = kube.objects[f"{PODS}/bare"]
        if asked.method == "DELETE" and not asked.dry and found["metadata"]["resourceVersion"] != "later":
            found["status"] = replica({"running": {"startedAt": "2026-01-01T00:00:00Z"}})["status"]
            found["metadata"]["resourceVersion"] = "later"
        return None

    kube.rules.append(rule)
    assert seen.incarnation is not None
    action = Action(kind=ActionKind.RESTART, incarnation=seen.incarnation)
    with pytest.raises(RefusedError, match="came back by itself"):
        await process.actions.perform(bare, action, FENCE)
    assert kube.objects[f"{PODS}/bare"]["metadata"]["uid"] == "bare"
    assert process.store.load("ml/Pod/bare") is None


async def test_a_deletion_whose_answer_was_lost_keeps_the_manifest_until_it_can_land_no_more(
    kube: FakeKube, process: Process
) -> None:
    sent = list[Asked]()

    def rule(asked: Asked) -> tuple[int, str] | None:
        if asked.method != "DELETE" or asked.dry:
            return None
        if not sent:
            kube.add(NODES, dead_node())
            kube.add(PODS, pod_of_old())
            sent.append(asked)
            return 500, "the answer was lost; the deletion is still on its way"
        return None

    kube.rules.append(rule)
    with pytest.raises(UnreachableError, match=r"not ready.*answer lost"):
        await process.actions.perform(JOB, restart(), FENCE)
    assert process.sight.being_remade("ml/Job/train")
    assert await process.actions.find(JOB, FENCE) is None
    assert not process.sight.being_remade("ml/Job/train")
    with pytest.raises(RefusedError):
        await process.api.kube.delete(f"{JOBS}/train", sent[0].body)
    assert f"{JOBS}/train" in kube.objects
