"""What each state of each kind means, beside its healthy neighbour."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest

from trainguard.core.job import JobRef
from trainguard.core.observation import Liveness
from trainguard.schedulers.kubernetes.operators import RAY_STATES
from trainguard.schedulers.kubernetes.pods import PHASES, WAITING_STUCK
from trainguard.schedulers.kubernetes.reading import Limits, Reading, Scene, seconds
from trainguard.schedulers.kubernetes.state import READERS, incarnation, read_job, token_of

NOW = 1_800_000_000.0
Object = dict[str, Any]


def stamp(ago: float) -> str:
    return datetime.fromtimestamp(NOW - ago, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def ended(code: int, reason: str = "Error", ago: float = 5) -> Object:
    return {"terminated": {"exitCode": code, "reason": reason, "finishedAt": stamp(ago)}}


def waiting(reason: str) -> Object:
    return {"waiting": {"reason": reason, "message": f"about {reason}"}}


def running(ago: float = 600) -> Object:
    return {"running": {"startedAt": stamp(ago)}}


def pod(
    phase: str = "Running",
    state: Object | None = None,
    age: float = 900,
    node: str = "n1",
    restarts: int = 0,
    last: Object | None = None,
    policy: str = "Never",
    ready: bool | None = None,
    conditions: list[Object] | None = None,
    deleting: bool = False,
    **status: Any,
) -> Object:
    up = phase == "Running" if ready is None else ready
    found = {"type": "Ready", "status": "True" if up else "False", "lastTransitionTime": stamp(60)}
    containers = (
        []
        if state is None
        else [{"name": "main", "restartCount": restarts, "state": state, "lastState": last or {}}]
    )
    made: Object = {
        "kind": "Pod",
        "metadata": {"name": "p", "namespace": "ml", "uid": "pod-uid", "creationTimestamp": stamp(age)},
        "spec": {"nodeName": node, "restartPolicy": policy, "containers": [{"name": "main"}]},
        "status": {
            "phase": phase,
            "containerStatuses": containers,
            "conditions": [found, *(conditions or [])],
            **status,
        },
    }
    if deleting:
        made["metadata"]["deletionTimestamp"] = stamp(-30)
    return made


def node(ready: str = "True", since: float = 300, taints: tuple[str, ...] = ()) -> Object:
    return {
        "metadata": {"name": "n1"},
        "spec": {"taints": [{"key": key, "effect": "NoExecute"} for key in taints]},
        "status": {"conditions": [{"type": "Ready", "status": ready, "lastTransitionTime": stamp(since)}]},
    }


def thing(kind: str, spec: Object | None = None, age: float = 900, **status: Any) -> Object:
    return {
        "kind": kind,
        "metadata": {
            "name": "t",
            "namespace": "ml",
            "uid": "u1",
            "generation": 1,
            "creationTimestamp": stamp(age),
            "annotations": {},
        },
        "spec": spec or {},
        "status": status,
    }


def true(kind: str, reason: str = "", ago: float = 60) -> Object:
    return {
        "type": kind,
        "status": "True",
        "reason": reason,
        "lastTransitionTime": stamp(ago),
        "lastUpdateTime": stamp(ago),
    }


def read(obj: Object, *pods: Object, nodes: dict[str, Object] | None = None) -> Reading:
    return read_job(obj, Scene(NOW, pods, nodes))


UNSCHEDULABLE = {
    "type": "PodScheduled",
    "status": "False",
    "reason": "Unschedulable",
    "lastTransitionTime": stamp(100),
}
OOM = ended(137, "OOMKilled")

PODS = [
    ("runs", pod(state=running()), Liveness.RUNNING, "Running"),
    ("is being made", pod("Pending", waiting("ContainerCreating")), Liveness.PENDING, "ContainerCreating"),
    ("is done", pod("Succeeded", ended(0, "Completed")), Liveness.SUCCEEDED, "Succeeded"),
    ("failed", pod("Failed", ended(2)), Liveness.FAILED, "Error"),
    ("was killed for memory", pod("Failed", OOM), Liveness.FAILED, "OOMKilled"),
    ("was evicted", pod("Failed", ended(137), reason="Evicted"), Liveness.FAILED, "Evicted"),
    ("was preempted", pod("Failed", ended(143), conditions=[true("DisruptionTarget", "PreemptionByScheduler")]), Liveness.FAILED, "PreemptionByScheduler"),
    ("loops", pod(state=waiting("CrashLoopBackOff"), restarts=4, policy="Always"), Liveness.FAILED, "CrashLoopBackOff"),
    ("loops and has just begun again", pod(state=running(3), restarts=4, last=OOM, policy="Always"), Liveness.FAILED, "CrashLoopBackOff"),
    ("restarted long ago", pod(state=running(600), restarts=4, last=OOM, policy="Always"), Liveness.RUNNING, "Running"),
    ("restarted once", pod(state=running(3), restarts=1, last=OOM, policy="Always"), Liveness.RUNNING, "Running"),
    ("is in a phase nobody has heard of", pod("Melting"), Liveness.UNKNOWN, "Melting"),
    ("was deleted", pod(state=running(), deleting=True), Liveness.STOPPED, "Deleting"),
    ("was deleted and ended by that", pod("Failed", ended(143), deleting=True), Liveness.STOPPED, "Deleting"),
    ("had failed and is cleaned away", pod("Failed", ended(1), deleting=True), Liveness.FAILED, "Error"),
]  # fmt: skip


@pytest.mark.parametrize(("case", "obj", "liveness", "native"), PODS, ids=[row[0] for row in PODS])
def test_a_pod_that(case: str, obj: Object, liveness: Liveness, native: str) -> None:
    told = read(obj)
    assert (told.liveness, told.native) == (liveness, native)


@pytest.mark.parametrize("word", sorted(WAITING_STUCK))
def test_a_container_that_only_its_owner_can_mend_is_stuck(word: str) -> None:
    told = read(thing("Job"), pod("Pending", waiting(word)))
    assert told.liveness is Liveness.PENDING
    assert word in told.stuck


@pytest.mark.parametrize(("phase", "liveness"), PHASES.items())
def test_every_phase_has_a_meaning(phase: str, liveness: Liveness) -> None:
    assert read(pod(phase)).liveness is liveness


def test_a_pull_that_has_just_failed_is_not_stuck_yet() -> None:
    assert not read(thing("Job"), pod("Pending", waiting("ErrImagePull"), age=5)).stuck
    assert read(thing("Job"), pod("Pending", waiting("ErrImagePull"), age=120)).stuck


@pytest.mark.parametrize(
    ("message", "stuck"),
    [
        ("0/3 nodes are available: 3 Insufficient nvidia.com/gpu.", False),
        ("0/3 nodes are available: 3 node(s) didn't match node selector.", True),
    ],
)
def test_waiting_for_resources_is_patience_waiting_for_no_node_is_stuck(message: str, stuck: bool) -> None:
    told = read(thing("Job"), pod("Pending", conditions=[{**UNSCHEDULABLE, "message": message}]))
    assert told.native == "Unschedulable"
    assert bool(told.stuck) is stuck


def test_137_alone_does_not_mean_out_of_memory() -> None:
    assert read(pod("Failed", ended(137))).oom_killed is None
    assert read(pod("Failed", OOM)).oom_killed is True
    assert read(pod("Failed", ended(1))).oom_killed is False
    assert read(pod("Failed", ended(137))).exit_signal == 9


def test_the_first_container_to_fail_gives_the_exit_code() -> None:
    obj = pod("Failed")
    obj["status"]["containerStatuses"] = [
        {"name": "sidecar", "restartCount": 0, "state": ended(143, ago=1)},
        {"name": "main", "restartCount": 0, "state": ended(7, ago=9)},
    ]
    assert read(obj).exit_code == 7


def test_a_failed_init_container_gives_the_exit_code() -> None:
    obj = pod("Failed", initContainerStatuses=[{"name": "fetch", "restartCount": 0, "state": ended(4)}])
    assert read(obj).exit_code == 4


NODES = [
    ("ready", node(), True, Liveness.RUNNING),
    ("silent for a moment", node("Unknown", 10), False, Liveness.UNKNOWN),
    ("silent for long", node("Unknown", 300), False, Liveness.FAILED),
    ("not ready though the pod says that it is", node("False", 300), True, Liveness.RUNNING),
    (
        "vouched for as off",
        node("Unknown", 5, ("node.kubernetes.io/out-of-service",)),
        False,
        Liveness.FAILED,
    ),
    ("gone", None, False, Liveness.FAILED),
]


@pytest.mark.parametrize(("case", "found", "ready", "liveness"), NODES, ids=[row[0] for row in NODES])
def test_a_pod_on_a_node_that_is(case: str, found: Object | None, ready: bool, liveness: Liveness) -> None:
    told = read(pod(state=running(), ready=ready), nodes={} if found is None else {"n1": found})
    assert told.liveness is liveness
    if liveness is not Liveness.RUNNING:
        assert (told.native, told.bad_nodes) == ("NodeLost", ("n1",))


def test_nodes_that_can_not_be_read_are_held_against_nobody() -> None:
    assert read(pod(state=running(), ready=False), nodes=None).liveness is Liveness.RUNNING


JOBS = [
    ("is new", thing("Job"), (), Liveness.PENDING, "NoPods", False),
    ("runs", thing("Job", active=1), (pod(state=running()),), Liveness.RUNNING, "Running", False),
    ("is complete", thing("Job", conditions=[true("Complete")]), (), Liveness.SUCCEEDED, "Complete", False),
    ("failed", thing("Job", conditions=[true("Failed", "BackoffLimitExceeded")]), (), Liveness.FAILED, "BackoffLimitExceeded", False),
    ("is failing", thing("Job", conditions=[true("FailureTarget", "PodFailurePolicy")]), (), Liveness.FAILED, "FailureTarget", False),
    ("has a condition that is false", thing("Job", conditions=[{**true("Failed"), "status": "False"}]), (pod(state=running()),), Liveness.RUNNING, "Running", False),
    ("has a condition nobody has heard of", thing("Job", conditions=[true("Novel")]), (pod(state=running()),), Liveness.RUNNING, "Running", False),
    ("failed once with retries left", thing("Job", {"backoffLimit": 3}, failed=1), (pod("Failed", ended(1)),), Liveness.PENDING, "NoPods", True),
    ("failed once and runs again", thing("Job", {"backoffLimit": 3}, failed=1), (pod("Failed", ended(1)), pod(state=running())), Liveness.RUNNING, "Running", False),
    ("is suspended", thing("Job", {"suspend": True}), (), Liveness.PENDING, "Suspended", False),
    ("is suspended in the old way", thing("Job", {"parallelism": 0}), (), Liveness.PENDING, "Suspended", False),
    ("loops with OnFailure", thing("Job"), (pod(state=waiting("CrashLoopBackOff"), restarts=2, policy="OnFailure"),), Liveness.PENDING, "CrashLoopBackOff", True),
    ("has ended and is not judged yet", thing("Job", startTime=stamp(50)), (pod("Succeeded", ended(0)),), Liveness.RUNNING, "Finishing", False),
]  # fmt: skip


@pytest.mark.parametrize(
    ("case", "obj", "pods", "liveness", "native", "underway"), JOBS, ids=[row[0] for row in JOBS]
)
def test_a_job_that(
    case: str, obj: Object, pods: tuple[Object, ...], liveness: Liveness, native: str, underway: bool
) -> None:
    told = read(obj, *pods)
    assert (told.liveness, told.native, told.restart_underway) == (liveness, native, underway)


def test_a_failed_counter_with_retries_left_is_told_as_a_warning() -> None:
    told = read(thing("Job", {"backoffLimit": 3}, failed=1), pod("Failed", ended(1)), pod(state=running()))
    assert "1 of 3 retries used" in told.warning


def test_a_failed_counter_is_a_failure_where_the_owner_says_so() -> None:
    limits = Limits(failed_pod_is_failure=True)
    job = thing("Job", {"backoffLimit": 3}, failed=1)
    for pods in ((pod("Failed", ended(3)),), (pod("Failed", ended(3)), pod(state=running())), None):
        told = read_job(job, Scene(NOW, pods, limits=limits))
        assert (told.liveness, told.native, told.restart_underway) == (Liveness.FAILED, "failed=1", False)
        assert told.exit_code == (None if pods is None else 3)
    done = thing("Job", {"backoffLimit": 3}, failed=1, conditions=[true("Complete")])
    assert read_job(done, Scene(NOW, limits=limits)).liveness is Liveness.SUCCEEDED
    fine = thing("Job", {"backoffLimit": 3}, active=1)
    assert read_job(fine, Scene(NOW, (pod(state=running()),), limits=limits)).liveness is Liveness.RUNNING


def test_a_job_for_which_no_pod_is_made_is_stuck() -> None:
    assert "quota" in read(thing("Job", startTime=stamp(200), age=200)).stuck


def test_a_job_whose_pods_can_not_be_read_is_told_by_its_counters() -> None:
    scene = Scene(NOW, None)
    assert read_job(thing("Job", active=1), scene).liveness is Liveness.RUNNING
    assert read_job(thing("Job", active=1, ready=0), scene).liveness is Liveness.PENDING
    assert (
        read_job(thing("Job", conditions=[true("Failed", "DeadlineExceeded")]), scene).native
        == "DeadlineExceeded"
    )


def deployment(available: int | None, wanted: int = 2, **status: Any) -> Object:
    if available is not None:
        status["availableReplicas"] = available
    made = thing("Deployment", {"replicas": wanted}, observedGeneration=1, **status)
    made["metadata"]["annotations"] = {"deployment.kubernetes.io/revision": "3"}
    return made


LATE = {
    "type": "Progressing",
    "status": "False",
    "reason": "ProgressDeadlineExceeded",
    "lastUpdateTime": stamp(30),
}
UP, BAD = pod(state=running()), pod("Pending", waiting("ImagePullBackOff"))
WORKLOADS = [
    ("serves", deployment(2), (UP,), Liveness.RUNNING, "Available"),
    ("serves in part", deployment(1), (UP,), Liveness.RUNNING, "Available"),
    ("serves none", deployment(None), (BAD,), Liveness.FAILED, "ImagePullBackOff"),
    ("was made a moment ago", deployment(None), (pod("Pending", waiting("ContainerCreating"), age=5),), Liveness.PENDING, "Starting"),
    ("is scaled to nothing", deployment(None, 0), (), Liveness.PENDING, "ScaledToZero"),
    ("was not looked at yet by its controller", {**deployment(None), "metadata": {**deployment(None)["metadata"], "generation": 2}}, (), Liveness.PENDING, "NotYetObserved"),
    ("is late and serves", deployment(1, conditions=[LATE]), (UP,), Liveness.RUNNING, "Available"),
    ("is late and serves none", deployment(None, conditions=[LATE]), (pod("Pending", waiting("ImagePullBackOff"), age=40),), Liveness.FAILED, "ProgressDeadlineExceeded"),
    ("loops", deployment(1, 1), (pod(state=running(3), restarts=5, last=OOM, policy="Always"),), Liveness.FAILED, "CrashLoopBackOff"),
    ("serves though one pod loops", deployment(1, 2), (UP, pod(state=waiting("CrashLoopBackOff"), restarts=5, policy="Always", ready=False)), Liveness.RUNNING, "Available"),
    ("is a StatefulSet that serves", thing("StatefulSet", {"replicas": 1}, observedGeneration=1, readyReplicas=1), (UP,), Liveness.RUNNING, "Available"),
    ("is a StatefulSet that serves none", thing("StatefulSet", {"replicas": 1}, observedGeneration=1), (BAD,), Liveness.FAILED, "ImagePullBackOff"),
    ("is a StatefulSet without a pod", thing("StatefulSet", {"replicas": 1}, observedGeneration=1), (), Liveness.PENDING, "NoPods"),
    ("is a StatefulSet of size 0", thing("StatefulSet", {"replicas": 0}, observedGeneration=1), (), Liveness.PENDING, "ScaledToZero"),
    ("is a DaemonSet that serves", thing("DaemonSet", observedGeneration=1, desiredNumberScheduled=2, numberReady=1), (UP,), Liveness.RUNNING, "Available"),
    ("is a DaemonSet that serves none", thing("DaemonSet", observedGeneration=1, desiredNumberScheduled=2, numberReady=0), (BAD,), Liveness.FAILED, "ImagePullBackOff"),
    ("is a DaemonSet that no node wants", thing("DaemonSet", observedGeneration=1, desiredNumberScheduled=0, numberReady=0), (), Liveness.PENDING, "NothingToRun"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("case", "obj", "pods", "liveness", "native"), WORKLOADS, ids=[row[0] for row in WORKLOADS]
)
def test_a_workload_that(
    case: str, obj: Object, pods: tuple[Object, ...], liveness: Liveness, native: str
) -> None:
    told = read(obj, *pods)
    assert (told.liveness, told.native) == (liveness, native)


def counting(kind: str) -> Object:
    """Two pods are wanted and none is ready."""
    return thing(kind, {"replicas": 2}, observedGeneration=1, desiredNumberScheduled=2)


@pytest.mark.parametrize("kind", ["StatefulSet", "DaemonSet"])
@pytest.mark.parametrize(
    ("pods", "ago", "liveness", "stuck"),
    [
        ((), None, Liveness.PENDING, False),
        ((), 5, Liveness.PENDING, False),
        ((), 100, Liveness.PENDING, True),
        ((pod(state=running(), deleting=True),), 100, Liveness.PENDING, False),
        (None, None, Liveness.PENDING, False),
        (None, 5, Liveness.PENDING, False),
        (None, 100, Liveness.FAILED, False),
    ],
    ids=[
        "no look before",
        "just now",
        "for long",
        "the last one leaves",
        "unread",
        "unread now",
        "unread long",
    ],
)
def test_a_workload_without_a_pod_to_look_at_is_judged_by_how_long_it_stays_so(
    kind: str, pods: tuple[Object, ...] | None, ago: float | None, liveness: Liveness, stuck: bool
) -> None:
    """These kinds do not say when they were rolled or scaled: what is old may be as it is since a moment ago."""
    told = read_job(counting(kind), Scene(NOW, pods, since=None if ago is None else NOW - ago))
    assert (told.liveness, "quota" in told.stuck) == (liveness, stuck)


def test_a_workload_whose_controller_says_nothing_while_it_may_make_no_pod_is_stuck() -> None:
    """1.20's StatefulSet controller writes no status when a pod is refused."""
    obj = counting("StatefulSet")
    obj["metadata"]["generation"] = 2
    for ago, stuck in ((5, False), (100, True)):
        told = read_job(obj, Scene(NOW, (), since=NOW - ago))
        assert (told.native, "quota" in told.stuck) == ("NotYetObserved", stuck)
    assert not read_job(obj, Scene(NOW, (UP,), since=NOW - 100)).stuck


HISTORY = [true("Created", "JobCreated"), {**true("Running", "JobRunning"), "status": "False"}]
OPERATORS = [
    ("is created", [true("Created")], {}, (), Liveness.PENDING, "Created", False),
    ("runs", [true("Created"), true("Running")], {"Worker": {"active": 2}}, (UP,), Liveness.RUNNING, "Running", False),
    ("runs with workers that are done", [true("Running", ago=300)], {"Worker": {"succeeded": 1}}, (), Liveness.RUNNING, "Running", False),
    ("restarts", [*HISTORY, true("Restarting")], {}, (), Liveness.PENDING, "Restarting", True),
    ("failed", [*HISTORY, true("Failed", "JobFailed")], {}, (), Liveness.FAILED, "JobFailed", False),
    ("succeeded", [*HISTORY, true("Succeeded", "JobSucceeded")], {}, (), Liveness.SUCCEEDED, "JobSucceeded", False),
    ("is suspended", [true("Suspended")], {}, (), Liveness.PENDING, "Suspended", False),
    ("has no active and no succeeded replicas", [true("Running", ago=300)], {"Worker": {"failed": 1}}, (), Liveness.FAILED, "NoActiveReplicas", False),
    ("has lost its replicas a moment ago", [true("Running", ago=5)], {"Worker": {"failed": 1}}, (), Liveness.RUNNING, "Running", False),
    ("tells no replicas", [true("Running", ago=300)], {}, (), Liveness.RUNNING, "Running", False),
]  # fmt: skip


@pytest.mark.parametrize("kind", ["PyTorchJob", "TFJob", "MPIJob"])
@pytest.mark.parametrize(
    ("case", "conditions", "replicas", "pods", "liveness", "native", "underway"),
    OPERATORS,
    ids=[row[0] for row in OPERATORS],
)
def test_an_operators_job_that(
    kind: str,
    case: str,
    conditions: list[Object],
    replicas: Object,
    pods: tuple[Object, ...],
    liveness: Liveness,
    native: str,
    underway: bool,
) -> None:
    status: Object = {"conditions": conditions, **({"replicaStatuses": replicas} if replicas else {})}
    told = read(thing(kind, **status), *pods)
    assert (told.liveness, told.native, told.restart_underway) == (liveness, native, underway)


def made_by(maker: str, made: Object) -> Object:
    owner = {"kind": maker, "name": "t-0", "uid": "m1", "controller": True}
    made["metadata"]["ownerReferences"] = [owner]
    return made


def looping(maker: str) -> Object:
    state = waiting("CrashLoopBackOff")
    return made_by(maker, pod(state=state, restarts=3, policy="OnFailure", ready=False))


RETRIES = [
    ("a launcher's Job counts", "MPIJob", {}, looping("Job"), True),
    ("a JobSet's Job counts", "JobSet", {}, looping("Job"), True),
    ("a TrainJob's Job counts", "TrainJob", {}, looping("Job"), True),
    ("the operator counts to more", "PyTorchJob", {"runPolicy": {"backoffLimit": 4}}, looping("PyTorchJob"), True),
    ("the operator has counted up", "PyTorchJob", {"runPolicy": {"backoffLimit": 3}}, looping("PyTorchJob"), False),
    ("nobody counts", "PyTorchJob", {}, looping("PyTorchJob"), False),
    ("nobody counts a worker's", "MPIJob", {}, looping("MPIJob"), False),
]  # fmt: skip


@pytest.mark.parametrize(("case", "kind", "spec", "one", "left"), RETRIES, ids=[row[0] for row in RETRIES])
def test_a_crash_loop_of_an_operators_job_is_left_to_it_where(
    case: str, kind: str, spec: Object, one: Object, left: bool
) -> None:
    told = read(thing(kind, spec), one)
    assert told.native == "CrashLoopBackOff"
    assert (told.liveness, told.restart_underway) == (
        (Liveness.PENDING, True) if left else (Liveness.FAILED, False)
    )
    assert "restarted 3 time(s)" in told.warning


def test_a_node_that_is_lost_under_an_operators_job_is_not_left_to_its_retries() -> None:
    told = read(
        thing("JobSet"), made_by("Job", pod(state=running(), ready=False)), nodes={"n1": node("Unknown", 300)}
    )
    assert (told.liveness, told.native) == (Liveness.FAILED, "NodeLost")


UNSAID = [
    ("failed", (pod("Failed", ended(3, ago=100), policy="OnFailure"),), Liveness.FAILED, 3),
    ("failed a moment ago", (pod("Failed", ended(3, ago=5)),), Liveness.RUNNING, None),
    ("failed in a Job", (made_by("Job", pod("Failed", ended(3, ago=100))),), Liveness.UNKNOWN, None),
    ("succeeded", (pod("Succeeded", ended(0, ago=100)),), Liveness.UNKNOWN, None),
    ("partly succeeded", (pod("Failed", ended(3, ago=100)), pod("Succeeded")), Liveness.UNKNOWN, None),
    ("failed and one still runs", (pod("Failed", ended(3, ago=100)), UP), Liveness.RUNNING, None),
]


@pytest.mark.parametrize(("case", "pods", "liveness", "code"), UNSAID, ids=[row[0] for row in UNSAID])
def test_where_the_operator_is_down_pods_that(
    case: str, pods: tuple[Object, ...], liveness: Liveness, code: int | None
) -> None:
    """It still counts active replicas, though nobody is left who would count."""
    told = read(
        thing("PyTorchJob", conditions=[true("Running")], replicaStatuses={"Worker": {"active": 1}}), *pods
    )
    assert (told.liveness, told.exit_code) == (liveness, code)


@pytest.mark.parametrize("word", ["PENDING", "RUNNING"])
def test_a_ray_job_on_a_node_that_is_lost_is_lost(word: str) -> None:
    job, one = thing("RayJob", jobStatus=word, jobId="s1"), pod(state=running(), ready=False)
    for since, liveness in ((10, Liveness.UNKNOWN), (300, Liveness.FAILED)):
        told = read(job, one, nodes={"n1": node("Unknown", since)})
        assert (told.liveness, told.native, told.bad_nodes) == (liveness, "NodeLost", ("n1",))
        assert token_of(job, told) == "u1/s1"
    assert read(job, UP, nodes={"n1": node()}).liveness.value == word.lower()


def test_a_ray_worker_that_loops_is_rays_to_replace_and_told_as_a_warning() -> None:
    told = read(thing("RayJob", jobStatus="RUNNING"), UP, looping("RayCluster"))
    assert (told.liveness, told.native) == (Liveness.RUNNING, "RUNNING")
    assert "CrashLoopBackOff" in told.warning


@pytest.mark.parametrize(("word", "liveness"), [*RAY_STATES.items(), ("MELTING", Liveness.UNKNOWN)])
def test_every_state_of_a_ray_job_has_a_meaning(word: str, liveness: Liveness) -> None:
    assert read(thing("RayJob", jobStatus=word)).liveness is liveness


def test_a_ray_job_with_retries_left_is_brought_back() -> None:
    told = read(thing("RayJob", {"backoffLimit": 2}, jobStatus="FAILED", failed=1))
    assert told.restart_underway
    assert (
        read(thing("RayJob", {"backoffLimit": 2}, jobStatus="FAILED", failed=2)).liveness is Liveness.FAILED
    )


@pytest.mark.parametrize("kind", sorted(READERS))
def test_an_object_without_status_is_pending_not_failed(kind: str) -> None:
    assert read(thing(kind, age=1)).liveness is Liveness.PENDING


@pytest.mark.parametrize("kind", sorted(set(READERS) - {"Pod", "RayJob"}))
def test_an_object_that_somebody_deletes_is_stopped_and_one_that_a_guard_deletes_is_coming_back(
    kind: str,
) -> None:
    obj = thing(kind)
    obj["metadata"]["deletionTimestamp"] = stamp(1)
    assert read(obj).liveness is Liveness.STOPPED
    intent = {"fence": "tg-1", "action": {"kind": "restart", "incarnation": {"token": "u1"}}}
    obj["metadata"]["annotations"] = {
        "trainguard.dev/fence": "tg-1",
        "trainguard.dev/intent": json.dumps(intent),
    }
    told = read(obj)
    assert (told.liveness, told.restart_underway) == (Liveness.PENDING, True)
    # what a guard made earlier, and its owner deletes now
    obj["metadata"]["uid"] = "u2"
    assert read(obj).liveness is Liveness.STOPPED


def test_a_cancelled_job_is_stopped_until_its_owner_resumes_it() -> None:
    obj = thing("Job", {"parallelism": 0})
    obj["metadata"]["annotations"] = {"trainguard.dev/cancelled": "tg-1"}
    assert read(obj).liveness is Liveness.STOPPED
    obj["spec"]["parallelism"] = 1
    assert read(obj, pod(state=running())).liveness is Liveness.RUNNING
    obj["metadata"]["annotations"]["trainguard.dev/hold"] = "true"
    assert read(obj, pod(state=running())).liveness is Liveness.RUNNING


@pytest.mark.parametrize("hold", ["true", "false"])
@pytest.mark.parametrize("kind", ["Job", "JobSet"])
def test_a_job_that_is_held_and_suspended_waits_for_nothing(kind: str, hold: str) -> None:
    obj = thing(kind, {"suspend": True})
    obj["metadata"]["annotations"] = {"trainguard.dev/hold": hold}
    told = read(obj)
    assert (told.native, told.stuck, told.restart_underway) == ("Suspended", "", False)


def test_a_rollout_is_another_incarnation_and_scaling_a_deployment_is_not() -> None:
    before, scaled, rolled = deployment(1), deployment(2), deployment(1)
    scaled["metadata"]["generation"] = 2
    rolled["metadata"]["annotations"] = {"deployment.kubernetes.io/revision": "4"}
    tokens = [token_of(obj, read(obj)) for obj in (before, scaled, rolled)]
    assert tokens[0] == tokens[1] != tokens[2]
    ref = JobRef(scheduler="kubernetes", cluster="c", id="ml/Deployment/t")
    attempts = [incarnation(ref, obj, read(obj), "").attempt for obj in (before, rolled)]
    assert attempts == [3, 4]


def test_a_jobset_that_its_operator_restarted_is_another_incarnation() -> None:
    one, two = thing("JobSet"), thing("JobSet", restarts=1)
    assert token_of(one, read(one)) != token_of(two, read(two))


@pytest.mark.parametrize("text", ["", None, 3, "yesterday", "2026-13-01T00:00:00Z"])
def test_a_time_that_is_none_is_none(text: object) -> None:
    assert seconds(text) is None


@pytest.mark.parametrize("before", [0, 470, 490, 498])
def test_a_secret_in_a_containers_last_words_is_masked_before_they_are_cut(before: int) -> None:
    secret = "ghp_x7Qabcdefghijklmnopqrstuvwxyz0123456789"
    state = ended(1)
    state["terminated"]["message"] = "x" * before + f" {secret} was refused"
    told = read(pod("Failed", state=state))
    assert "x" * before in told.reason and "ghp_" not in told.reason
