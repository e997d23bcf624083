"""Jobs of training operators: PyTorchJob, TFJob, MPIJob, JobSet, TrainJob, RayJob. Pure.

Their conditions are a history: only those with status "True" count, and Restarting is not Failed.
https://github.com/kubeflow/trainer/blob/release-1.9/pkg/apis/kubeflow.org/v1/common_types.go
https://jobset.sigs.k8s.io/docs/concepts/ · https://docs.ray.io/en/latest/cluster/kubernetes/getting-started/rayjob-quick-start.html
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from trainguard.core.observation import Liveness
from trainguard.schedulers.kubernetes import reading
from trainguard.schedulers.kubernetes.ownership import controller
from trainguard.schedulers.kubernetes.pod_group import bad_nodes, failed_first, read_group, with_exit
from trainguard.schedulers.kubernetes.pods import CRASH_LOOP, NODE_LOST, PodView, nodes_of, read_pods
from trainguard.schedulers.kubernetes.reading import Reading, Scene
from trainguard.transports.kube import Object

ENDS: dict[str, Liveness] = {
    "Failed": Liveness.FAILED,
    "Succeeded": Liveness.SUCCEEDED,  # kubeflow.org
    "Completed": Liveness.SUCCEEDED,  # JobSet
    "Complete": Liveness.SUCCEEDED,  # TrainJob
}
RAY_STATES: dict[str, Liveness] = {
    "": Liveness.PENDING,
    "PENDING": Liveness.PENDING,
    "RUNNING": Liveness.RUNNING,
    "STOPPED": Liveness.STOPPED,
    "SUCCEEDED": Liveness.SUCCEEDED,
    "FAILED": Liveness.FAILED,
}
"""`status.jobStatus`; any other word is UNKNOWN."""
RAY_DEPLOYMENTS: dict[str, Liveness] = {
    "Failed": Liveness.FAILED,
    "ValidationFailed": Liveness.FAILED,
    "Suspended": Liveness.PENDING,
    "Suspending": Liveness.PENDING,
    "Retrying": Liveness.PENDING,
    "Waiting": Liveness.PENDING,
}
"""`status.jobDeploymentStatus`, where it says more than `jobStatus`."""


def read_operator_job(obj: Object, scene: Scene) -> Reading:
    """Read a job of the kubeflow.org, jobset.x-k8s.io and trainer.kubeflow.org groups."""
    views = read_pods(scene)
    restarts = reading.count(reading.status(obj), "restarts")
    told = replace(_ended(obj, views, scene) or _going(obj, views, scene), restarts=restarts)
    return replace(told, generation=f"r{restarts}") if obj.get("kind") == "JobSet" else told


def _ended(obj: Object, views: Sequence[PodView], scene: Scene) -> Reading | None:
    for word, liveness in ENDS.items():
        found = reading.holds(obj, word)
        if found is None:
            continue
        told = Reading(liveness, str(found.get("reason") or word), reading.said(found), nodes=nodes_of(views))
        told = replace(told, bad_nodes=bad_nodes(views, scene))
        if liveness is not Liveness.FAILED:
            return told
        culprit = failed_first(views)
        if culprit is not None:
            told = replace(
                told, reason=f"{told.reason}; pod {culprit.name}: {culprit.native}: {culprit.reason}"
            )
        return with_exit(told, culprit)
    return None


def _going(obj: Object, views: Sequence[PodView], scene: Scene) -> Reading:
    if reading.deleting(obj):
        return Reading(Liveness.STOPPED, "Deleting", "deleted by somebody", nodes=nodes_of(views))
    why = reading.suspended(obj)
    if why or reading.holds(obj, "Suspended"):
        return Reading(Liveness.PENDING, "Suspended", why or "condition Suspended", nodes=nodes_of(views))
    group = read_group(views, scene)
    if reading.holds(obj, "Restarting") is not None:
        return _left_to_operator(group, "Restarting")
    if scene.pods and group.liveness is Liveness.FAILED:
        return _left_to_operator(group, CRASH_LOOP) if _retried(obj, group, views, scene) else group
    idle = _idle(obj, scene)
    if idle:
        return with_exit(
            replace(group, liveness=Liveness.FAILED, native="NoActiveReplicas", reason=idle),
            failed_first(views),
        )
    if any(view.alive for view in views):
        return group
    if views and reading.count(reading.spec(obj).get("failurePolicy") or {}, "maxRestarts"):
        return _left_to_operator(group, "Restarting")  # a JobSet between two rounds
    return _unsaid(obj, group, views, scene) or _by_conditions(obj, group)


def _retried(obj: Object, group: Reading, views: Sequence[PodView], scene: Scene) -> bool:
    """Tell crash loops that somebody ends, by a condition, from those that would go on for ever.

    A Job below counts its pods' restarts against its backoffLimit, kubeflow.org's operator against its own.
    """
    if group.native != CRASH_LOOP:
        return False
    looping = {view.uid for view in views if view.looping and view.alive}
    makers = [controller(pod) or {} for pod in scene.pods or () if reading.uid(pod) in looping]
    limit = reading.count(reading.spec(obj).get("runPolicy") or {}, "backoffLimit")
    return (
        all(maker.get("kind") == "Job" for maker in makers)
        or sum(view.restarts for view in views if view.alive) < limit
    )


def _unsaid(obj: Object, group: Reading, views: Sequence[PodView], scene: Scene) -> Reading | None:
    """All pods ended a while ago, but active ones are still counted: the operator may be down."""
    if not _active(obj) or not views or any(view.deleting for view in views):
        return None
    ago = scene.now - max(view.at for view in views)
    if ago <= scene.limits.idle:
        return None
    reason = f"all pods ended {ago:.0f} s ago and the operator has not said so"
    told = replace(group, liveness=Liveness.UNKNOWN, native="NoActiveReplicas", reason=reason)
    retried = any((controller(pod) or {}).get("kind") == "Job" for pod in scene.pods or ())
    if retried or any(view.liveness is Liveness.SUCCEEDED for view in views):
        return told  # a Job may pause between retries; whether one success is enough is the operator's to say
    return with_exit(replace(told, liveness=Liveness.FAILED), failed_first(views))


def _left_to_operator(group: Reading, native: str) -> Reading:
    liveness = Liveness.RUNNING if group.liveness is Liveness.RUNNING else Liveness.PENDING
    return replace(group, liveness=liveness, native=native, restart_underway=True, stuck="")


def _by_conditions(obj: Object, group: Reading) -> Reading:
    """Without a pod to look at, the object's own words must do."""
    if reading.holds(obj, "Running") is not None or _active(obj):
        return replace(group, liveness=Liveness.RUNNING, native="Running")
    word = "Created" if reading.holds(obj, "Created") else group.native
    return replace(group, liveness=Liveness.PENDING, native=word)


def _replicas(obj: Object) -> list[dict[str, object]]:
    state = reading.status(obj)
    found = state.get("replicaStatuses") or state.get("replicatedJobsStatus") or state.get("jobsStatus") or []
    return [one for one in (found.values() if isinstance(found, dict) else found) if isinstance(one, dict)]


def _active(obj: Object) -> int:
    return sum(reading.count(one, "active") for one in _replicas(obj))


def _idle(obj: Object, scene: Scene) -> str:
    """Say that nothing of it runs or has succeeded though it was running; empty if that is not so.

    Absent replica counters say nothing, and an operator that restarts pods has none active for a moment.
    """
    running = reading.holds(obj, "Running")
    if running is None or not _replicas(obj):
        return ""
    if any(reading.count(one, "active") or reading.count(one, "succeeded") for one in _replicas(obj)):
        return ""
    if any(
        not reading.deleting(pod) and reading.status(pod).get("phase") in ("Pending", "Running")
        for pod in scene.pods or ()
    ):
        return ""
    began = reading.seconds(running.get("lastUpdateTime")) or reading.since(running)
    ended = [view.at for view in read_pods(scene)]
    if began is None or scene.now - max([began, *ended]) <= scene.limits.idle:
        return ""
    return "no active and no succeeded replicas"


def read_ray_job(obj: Object, scene: Scene) -> Reading:
    """Read a RayJob. Its submission id tells apart the incarnations that its backoff limit makes."""
    state = reading.status(obj)
    views = read_pods(scene)
    word, deployment = str(state.get("jobStatus") or ""), str(state.get("jobDeploymentStatus") or "")
    restarts = reading.count(state, "failed")
    base = Reading(
        RAY_STATES.get(word, Liveness.UNKNOWN),
        word or deployment or "New",
        str(state.get("message") or state.get("reason") or ""),
        nodes=nodes_of(views),
        bad_nodes=bad_nodes(views, scene),
        generation=str(state.get("jobId") or ""),
        restarts=restarts,
    )
    if reading.deleting(obj) and not base.liveness.terminal:
        return replace(base, liveness=Liveness.STOPPED, native="Deleting")
    if deployment in RAY_DEPLOYMENTS and base.liveness is not Liveness.SUCCEEDED:
        base = replace(base, liveness=RAY_DEPLOYMENTS[deployment], native=deployment)
        return replace(base, restart_underway=deployment == "Retrying")
    if base.liveness is Liveness.FAILED and restarts <= reading.count(reading.spec(obj), "backoffLimit") - 1:
        return replace(base, liveness=Liveness.PENDING, restart_underway=True)
    if base.liveness in (Liveness.PENDING, Liveness.RUNNING) and views:
        return _with_pods(base, read_group(views, scene))
    return base


def _with_pods(base: Reading, group: Reading) -> Reading:
    """Add what the pods of its cluster say: a node that is lost; a pod that crashes is Ray's to replace."""
    if group.native == NODE_LOST:
        return replace(group, generation=base.generation, restarts=base.restarts)
    trouble = group.reason if group.liveness is Liveness.FAILED else ""
    warning = "; ".join(reading.distinct((trouble, group.warning)))
    return replace(base, stuck=group.stuck if base.liveness is Liveness.PENDING else "", warning=warning)
