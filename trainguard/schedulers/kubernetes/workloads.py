"""Deployments, StatefulSets and DaemonSets: available replicas against wanted ones. Pure.

An absent counter is 0. 0 wanted is never a failure. A verdict needs a controller that has seen the newest
spec (`observedGeneration`) and a grace period after the last rollout, scaling or new pod.
https://kubernetes.io/docs/concepts/workloads/controllers/deployment/#deployment-status
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from trainguard.core.observation import Liveness
from trainguard.schedulers.kubernetes import reading
from trainguard.schedulers.kubernetes.pod_group import read_group, with_exit
from trainguard.schedulers.kubernetes.pods import PodView, nodes_of, read_pods
from trainguard.schedulers.kubernetes.reading import Reading, Scene
from trainguard.transports.kube import Object

REVISION = "deployment.kubernetes.io/revision"


@dataclass(frozen=True)
class _Counters:
    wanted: int
    up: int
    native: str
    """What it is called when none is up."""


def read_deployment(obj: Object, scene: Scene) -> Reading:
    """Read a Deployment. Its revision tells incarnations apart: it grows with every rollout, undo included."""
    state = reading.status(obj)
    counters = _Counters(
        reading.count(reading.spec(obj), "replicas", 1),
        reading.count(state, "availableReplicas"),
        "availableReplicas=0",
    )
    revision = reading.notes(obj).get(REVISION, "0")
    told = replace(_read(obj, scene, counters), generation=f"r{revision}", restarts=_number(revision) - 1)
    progressing = reading.condition(obj, "Progressing")
    if progressing is not None and progressing.get("reason") == "ProgressDeadlineExceeded":
        if told.native == "Starting" or (told.liveness is Liveness.PENDING and told.stuck):
            return replace(
                told,
                liveness=Liveness.FAILED,
                native="ProgressDeadlineExceeded",
                reason=reading.said(progressing),
            )
        return replace(told, warning="; ".join(reading.distinct((reading.said(progressing), told.warning))))
    return told


def read_stateful_set(obj: Object, scene: Scene) -> Reading:
    """Read a StatefulSet. Its generation tells incarnations apart; scaling counts as a new one."""
    state = reading.status(obj)
    counters = _Counters(
        reading.count(reading.spec(obj), "replicas", 1),
        reading.count(state, "readyReplicas"),
        "readyReplicas=0",
    )
    return _with_generation(_read(obj, scene, counters), obj)


def read_daemon_set(obj: Object, scene: Scene) -> Reading:
    """Read a DaemonSet."""
    state = reading.status(obj)
    counters = _Counters(
        reading.count(state, "desiredNumberScheduled"), reading.count(state, "numberReady"), "numberReady=0"
    )
    return _with_generation(_read(obj, scene, counters), obj)


def _with_generation(told: Reading, obj: Object) -> Reading:
    generation = reading.count(reading.meta(obj), "generation", 1)
    return replace(told, generation=f"g{generation}", restarts=generation - 1)


def _number(text: str) -> int:
    return int(text) if text.isdigit() else 1


def _read(obj: Object, scene: Scene, counters: _Counters) -> Reading:
    views = read_pods(scene)
    group = read_group(views, scene)
    if reading.deleting(obj):
        return Reading(Liveness.STOPPED, "Deleting", "deleted by somebody", nodes=nodes_of(views))
    if counters.wanted == 0:
        return _none_wanted(obj, group)
    observed = reading.count(reading.status(obj), "observedGeneration", -1)
    if observed < reading.count(reading.meta(obj), "generation"):
        # some controllers write nothing at all while they fail to make a pod
        stuck = "" if views or scene.pods is None else _none_made(scene)
        return replace(group, liveness=Liveness.PENDING, native="NotYetObserved", stuck=stuck)
    if counters.up > 0:
        return _up(group, views, counters)
    return _down(obj, group, views, scene, counters)


def _none_wanted(obj: Object, group: Reading) -> Reading:
    kind = obj.get("kind")
    native = "NothingToRun" if kind == "DaemonSet" else "ScaledToZero"
    return replace(group, liveness=Liveness.PENDING, native=native, reason="no replicas wanted", stuck="")


def _up(group: Reading, views: tuple[PodView, ...], counters: _Counters) -> Reading:
    """Some replicas serve; others may be in trouble, which is worth telling."""
    note = "" if counters.up >= counters.wanted else f"{counters.up} of {counters.wanted} replicas up"
    trouble = group.reason if group.liveness in (Liveness.FAILED, Liveness.UNKNOWN) else group.stuck
    note = "; ".join(reading.distinct((note, trouble, group.warning)))
    sound = [view for view in views if view.ready and view.alive and not view.looping and not view.lost]
    if views and not sound and group.liveness in (Liveness.FAILED, Liveness.UNKNOWN):
        return replace(group, warning=note)  # what counts as up is between two crashes, or on a silent node
    if views and not any(view.alive and view.liveness is Liveness.RUNNING for view in views):
        # what counts as up is on its way out, to be replaced; or the counters are ahead of the pods
        leaving = any(view.deleting for view in views)
        native = "Restarting" if leaving else "Starting"
        return replace(group, liveness=Liveness.PENDING, native=native, restart_underway=leaving)
    return replace(group, liveness=Liveness.RUNNING, native="Available", warning=note, stuck="")


def _down(
    obj: Object, group: Reading, views: tuple[PodView, ...], scene: Scene, counters: _Counters
) -> Reading:
    if group.liveness in (Liveness.FAILED, Liveness.UNKNOWN):
        return group
    if any(view.ready and view.alive for view in views):
        # the pods are ahead of the counters, or not yet ready for long enough (minReadySeconds)
        return replace(group, liveness=Liveness.RUNNING, native="Ready")
    if obj.get("kind") != "Deployment" and not any(view.alive for view in views):
        told = _without_pods(group, views, scene, counters)
        if told is not None:
            return told
    if scene.now - _settled_at(obj, scene) <= scene.limits.ready:
        return replace(group, liveness=Liveness.PENDING, native=group.native if group.stuck else "Starting")
    if group.restart_underway:
        return replace(group, native="Restarting")
    native = (
        group.native if group.liveness is Liveness.PENDING and group.native != "NoPods" else counters.native
    )
    last = next((view for view in reversed(views) if view.exit_code is not None), None)
    reason = group.stuck or group.reason or f"none of {counters.wanted} replicas is up"
    return with_exit(replace(group, liveness=Liveness.FAILED, native=native, reason=reason, stuck=""), last)


def _without_pods(
    group: Reading, views: tuple[PodView, ...], scene: Scene, counters: _Counters
) -> Reading | None:
    """A StatefulSet or DaemonSet without a pod that can be seen: it does not say since when. None: for long."""
    stuck = _none_made(scene)
    if scene.pods is None:
        return None if stuck else replace(group, liveness=Liveness.PENDING, warning="pods can't be read")
    warning = f"no pod exists of {counters.wanted} wanted"
    return replace(group, liveness=Liveness.PENDING, warning=warning, stuck="" if views else stuck)


def _none_made(scene: Scene) -> str:
    """Say for how long nothing has changed and no pod was made; empty where that is not long."""
    waited = 0.0 if scene.since is None else scene.now - scene.since
    patient = waited <= scene.limits.ready
    return "" if patient else f"no pod was made for {waited:.0f} s: quota or admission may forbid it"


def _settled_at(obj: Object, scene: Scene) -> float:
    """Give when the newest rollout, scaling or pod began."""
    marks: list[Any] = [reading.created(obj)]
    progressing = reading.condition(obj, "Progressing")
    if progressing is not None:
        marks.append(reading.seconds(progressing.get("lastUpdateTime")))
    pods = [reading.created(pod) for pod in scene.pods or () if not reading.deleting(pod)]
    marks += pods or [reading.since(reading.condition(obj, "Available"))]
    return float(max(mark or 0.0 for mark in marks))
