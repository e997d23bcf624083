"""One door to all readers: `read_job(kind, object, scene)`, and the incarnation's token. Pure."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace

from trainguard.core.job import Incarnation, JobRef
from trainguard.core.observation import Liveness
from trainguard.schedulers.kubernetes import reading
from trainguard.schedulers.kubernetes.batch import read_batch_job, read_cron_job
from trainguard.schedulers.kubernetes.node_view import read_node
from trainguard.schedulers.kubernetes.operators import read_operator_job, read_ray_job
from trainguard.schedulers.kubernetes.pod_group import read_pod_job
from trainguard.schedulers.kubernetes.pods import NODE_LOST
from trainguard.schedulers.kubernetes.reading import Reading, Scene
from trainguard.schedulers.kubernetes.workloads import read_daemon_set, read_deployment, read_stateful_set
from trainguard.transports.kube import Object

RECREATE_SECONDS = 120.0
"""For how long a job that a guard deleted counts as being made again."""
READERS: dict[str, Callable[[Object, Scene], Reading]] = {
    "Pod": read_pod_job,
    "Job": read_batch_job,
    "CronJob": lambda obj, scene: read_cron_job(obj),
    "Deployment": read_deployment,
    "StatefulSet": read_stateful_set,
    "DaemonSet": read_daemon_set,
    "PyTorchJob": read_operator_job,
    "TFJob": read_operator_job,
    "MPIJob": read_operator_job,
    "JobSet": read_operator_job,
    "TrainJob": read_operator_job,
    "RayJob": read_ray_job,
}


def read_job(obj: Object, scene: Scene) -> Reading:
    """Read any guarded object. `obj["kind"]` must be set: list items come without it."""
    told = READERS[str(obj.get("kind"))](obj, scene)
    # What its owner has resumed since is cancelled no more.
    cancelled = reading.notes(obj).get(reading.CANCELLED) and reading.suspended(obj)
    if cancelled and not told.liveness.terminal:
        return _with(told, Liveness.STOPPED, "Cancelled")
    if reading.deleting(obj) and _to_be_remade(obj):
        return Reading(Liveness.PENDING, "Recreating", nodes=told.nodes, restart_underway=True)
    return told


def read_removed(gone: Object, scene: Scene) -> Reading:
    """Read an object that is no more, by its last state: ended before, being made again, or stopped by somebody."""
    told = read_job(gone, scene)
    due = (reading.seconds(reading.meta(gone).get("deletionTimestamp")) or 0) + RECREATE_SECONDS
    if told.native == "Recreating" and scene.now < due:
        return told
    if _collected(gone, scene) and told.liveness in (Liveness.PENDING, Liveness.RUNNING, Liveness.STOPPED):
        why = f"removed with its node {reading.spec(gone)['nodeName']}"
        told = replace(told, liveness=Liveness.FAILED, native=NODE_LOST, reason=why)
    elif not told.liveness.terminal:
        told = replace(told, liveness=Liveness.STOPPED, native="Deleted")
    return replace(told, restart_underway=False, stuck="")


def _collected(gone: Object, scene: Scene) -> bool:
    """Tell a pod that the cluster removed because its node is no more: without grace, for no kubelet could give any."""
    node = str(reading.spec(gone).get("nodeName") or "")
    hasty = not reading.meta(gone).get("deletionGracePeriodSeconds")
    return gone.get("kind") == "Pod" and bool(node) and hasty and read_node(scene.nodes, node).fenced


def _to_be_remade(obj: Object) -> bool:
    """Tell an object that a guard deletes to make it again from one that somebody else deletes.

    What was made again bears the fence too; the action on record names the object that it was meant for.
    """
    try:
        meant = json.loads(reading.notes(obj).get(reading.INTENT, ""))["action"]["incarnation"]["token"]
    except (ValueError, KeyError, TypeError):
        return False
    return str(meant).partition("/")[0] == reading.uid(obj)


def _with(told: Reading, liveness: Liveness, native: str) -> Reading:
    return Reading(liveness, native, told.reason, nodes=told.nodes, bad_nodes=told.bad_nodes)


def token_of(obj: Object, told: Reading) -> str:
    """Give the incarnation's token: the uid, and what changes where a restart keeps the uid."""
    return "/".join(part for part in (reading.uid(obj), told.generation) if part)


def incarnation(ref: JobRef, obj: Object, told: Reading, native_id: str) -> Incarnation:
    """Name the incarnation that an object is."""
    marked = reading.notes(obj).get(reading.ATTEMPT, "1")
    attempt = int(marked) if marked.isdigit() else 1
    return Incarnation(
        job=ref,
        token=token_of(obj, told),
        attempt=max(1, attempt + told.restarts),
        native_id=native_id,
        started_at=reading.created(obj) or None,
    )
