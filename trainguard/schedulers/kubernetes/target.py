"""A job as an action finds it: read afresh from the server, and what forbids touching it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from trainguard.core.action import Action, ActionKind
from trainguard.core.errors import AccessRefusedError, NotFoundError, RefusedError
from trainguard.core.job import Incarnation, Job
from trainguard.core.observation import Liveness
from trainguard.schedulers.kubernetes import reading
from trainguard.schedulers.kubernetes.api import ClusterApi
from trainguard.schedulers.kubernetes.batch import newest_job
from trainguard.schedulers.kubernetes.kinds import KINDS, NODE, JobName, parse_job_id
from trainguard.schedulers.kubernetes.node_view import read_node
from trainguard.schedulers.kubernetes.ownership import controller, labels_of, own_pods
from trainguard.schedulers.kubernetes.pods import PodView, nodes_of, read_pods
from trainguard.schedulers.kubernetes.reading import Limits, Reading, Scene
from trainguard.schedulers.kubernetes.rights import REMAKES
from trainguard.schedulers.kubernetes.state import incarnation, read_job
from trainguard.transports.kube import Object


@dataclass(frozen=True)
class Target:
    """One object, its pods and their nodes, as they are now."""

    name: JobName
    """Of the object itself: a CronJob's is its newest Job's."""
    obj: Object
    scene: Scene
    told: Reading
    incarnation: Incarnation
    schedule: str = ""
    """Why a Job of a CronJob must not be made again; empty where it may be."""

    @property
    def views(self) -> tuple[PodView, ...]:
        """Its pods, read."""
        return read_pods(self.scene)


Judge = Callable[[Target], None]
"""Raises RefusedError where the action under way must not be done on what is there now."""


async def resolve(api: ClusterApi, name: JobName) -> JobName:
    """Give the name of the object to act on. Raises NotFoundError for a CronJob without a Job."""
    if name.kind.name != "CronJob":
        return name
    cron = await api.get(name.kind, name.namespace, name.name)
    jobs = await api.list(KINDS["Job"], name.namespace)
    mine = [job for job in jobs if (controller(job) or {}).get("uid") == reading.uid(cron)]
    newest = newest_job(mine)
    if newest is None:
        raise NotFoundError(f"{name.id} has no Job yet")
    return JobName(name.namespace, KINDS["Job"], reading.name(newest))


async def read_target(api: ClusterApi, job: Job, limits: Limits) -> Target:
    """Read a job afresh. Raises NotFoundError where it is gone."""
    name = await resolve(api, parse_job_id(job.ref.id))
    obj = await api.get(name.kind, name.namespace, name.name)
    scene = await read_scene(api, obj, limits)
    told = read_job(obj, scene)
    native_id = f"{name.kind.name.lower()}/{name.name} -n {name.namespace}"
    schedule = await beside_schedule(api, obj, reading.created(obj))
    return Target(name, obj, scene, told, incarnation(job.ref, obj, told, native_id), schedule)


async def read_scene(api: ClusterApi, obj: Object, limits: Limits) -> Scene:
    """Read an object's pods and their nodes afresh."""
    pods = await pods_of(api, obj)
    views = read_pods(Scene(time.time(), pods))
    return Scene(time.time(), pods, await nodes_by_name(api, nodes_of(views)), limits)


async def beside_schedule(api: ClusterApi, obj: Object, born: float) -> str:
    """Say why a Job that was born then must not be made again beside its CronJob's schedule; mostly nothing.

    A CronJob's controller counts the Jobs that it made itself, by uid, and never adopts another: the next
    schedule would start beside what was made again, whatever Forbid or Replace say.
    """
    owner = controller(obj) or {}
    if obj.get("kind") != "Job" or owner.get("kind") != "CronJob":
        return ""
    namespace = str(reading.meta(obj)["namespace"])
    try:
        cron = await api.get(KINDS["CronJob"], namespace, owner["name"])
    except NotFoundError:
        return ""  # nothing schedules any more
    policy = reading.spec(cron).get("concurrencyPolicy") or "Allow"
    if policy != "Allow":
        return (
            f"CronJob/{owner['name']} has concurrencyPolicy {policy} and would not count what is made again: its"
            " next schedule would start a second training beside it; wait for that schedule, or set"
            " concurrencyPolicy to Allow if its trainings may run side by side"
        )
    for other in await api.list(KINDS["Job"], namespace):
        if (controller(other) or {}).get("uid") != owner.get("uid") or reading.name(other) == reading.name(
            obj
        ):
            continue
        over = reading.holds(other, "Failed") or reading.holds(other, "Complete")
        if not over and reading.created(other) >= born:
            return f"CronJob/{owner['name']} has started Job/{reading.name(other)} since"
    return ""


async def pods_of(api: ClusterApi, obj: Object) -> tuple[Object, ...]:
    """List an object's pods afresh."""
    if obj.get("kind") == "Pod":
        return (obj,)
    namespace = str(reading.meta(obj).get("namespace"))
    return own_pods(obj, await api.list(KINDS["Pod"], namespace, labels_of(obj)))


async def nodes_by_name(api: ClusterApi, names: Sequence[str]) -> dict[str, Object] | None:
    """Read some nodes; None where this user may not."""
    nodes = {}
    for name in names:
        try:
            nodes[name] = await api.get(NODE, "", name)
        except NotFoundError:
            continue
        except AccessRefusedError:
            return None
    return nodes


def still_running(scene: Scene) -> list[str]:
    """Name the pods of which something may still run, and where: not ended, on a node that is not fenced."""
    left = [view for view in read_pods(scene) if not view.ended]
    return [
        f"{view.name} on {view.node or 'no node'}"
        for view in left
        if not read_node(scene.nodes, view.node).fenced
    ]


def forbid(target: Target, action: Action) -> None:
    """Raise RefusedError where the action must not be done on what is there now."""
    told = target.told
    if target.incarnation.token != action.incarnation.token:
        raise RefusedError(
            f"meant for {action.incarnation.token}, but {target.name.id} is now {target.incarnation.token}"
        )
    if action.kind in (ActionKind.CORDON_NODE, ActionKind.UNCORDON_NODE, ActionKind.DRAIN_NODE):
        return
    if told.liveness in (Liveness.SUCCEEDED, Liveness.STOPPED):
        raise RefusedError(f"{target.name.id} is {told.liveness}: {told.native} {told.reason}")
    owner = controller(target.obj)
    if owner is not None and owner["kind"] != "CronJob":
        raise RefusedError(f"{target.name.id} is made by {owner['kind']}/{owner['name']}: act on that")
    _forbid_held(target, action)
    if action.kind in REMAKES and target.schedule:
        raise RefusedError(f"{target.name.id} is not made again: {target.schedule}")
    if action.kind in REMAKES or action.kind is ActionKind.DELETE_POD:
        _forbid_restart(target)


def _forbid_held(target: Target, action: Action) -> None:
    notes, why = reading.notes(target.obj), reading.held(target.obj)
    if action.kind is ActionKind.RESUME:
        if not why:
            raise RefusedError(f"{target.name.id} is not suspended")
        if reading.SIZE not in notes or notes.get(reading.HOLD, "false") != "false":
            raise RefusedError(f"{target.name.id} was suspended by its owner ({why})")
        left = still_running(target.scene)
        if left:
            raise RefusedError(f"{target.name.id} may still run from before: {', '.join(left[:5])}")
    elif why:
        raise RefusedError(f"{target.name.id} is held by its owner ({why})")


def _forbid_restart(target: Target) -> None:
    told = target.told
    if told.restart_underway:
        raise RefusedError(
            f"Kubernetes is bringing {target.name.id} back by itself: {told.native} {told.warning}"
        )
    if told.liveness is Liveness.UNKNOWN:
        raise RefusedError(f"the state of {target.name.id} is not known: {told.native} {told.reason}")
    for view in target.views:
        node = read_node(target.scene.nodes, view.node)
        if not view.ended and not node.ready and not node.fenced:
            raise RefusedError(
                f"pod {view.name} may still run on node {view.node}, which is not ready: make sure that the node"
                " is off and give it the taint node.kubernetes.io/out-of-service, or delete the Node object"
            )
