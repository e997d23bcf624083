"""What the pods of one job say together. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from trainguard.core.observation import Liveness
from trainguard.schedulers.kubernetes import reading
from trainguard.schedulers.kubernetes.node_view import read_node
from trainguard.schedulers.kubernetes.pods import NODE_LOST, PodView, nodes_of, read_pods
from trainguard.schedulers.kubernetes.reading import Reading, Scene
from trainguard.transports.kube import Object

DELETED_CODES = frozenset({130, 137, 143})
"""Exit codes of a container that was told to stop, then killed."""
SIGNAL_BASE = 128
"""A container ended by a signal has exit code 128 + its number."""


def read_group(views: Sequence[PodView], scene: Scene) -> Reading:
    """Read the pods that have not ended. The worst of them speaks: a training needs all its ranks."""
    alive = [view for view in views if view.alive]
    base = Reading(
        Liveness.PENDING,
        "NoPods",
        nodes=nodes_of(view for view in views if not view.ended),
        bad_nodes=bad_nodes(views, scene),
        warning=warning(alive),
    )
    for judge in (_strange, _lost, _looping):
        verdict = judge(alive, base, scene)
        if verdict is not None:
            return verdict
    running = [view for view in alive if view.liveness is Liveness.RUNNING]
    waiting = [view for view in alive if view.liveness is Liveness.PENDING]
    stuck = next((view for view in waiting if view.stuck), None)
    told = replace(
        base,
        stuck="" if stuck is None else f"pod {stuck.name}: {stuck.stuck}",
        restart_underway=any(view.restarting for view in running),
    )
    if running:
        return replace(told, liveness=Liveness.RUNNING, native="Running")
    if waiting:
        speaker = stuck or waiting[0]
        return replace(told, native=speaker.native, reason=speaker.reason)
    return told


def _strange(alive: Sequence[PodView], base: Reading, scene: Scene) -> Reading | None:
    del scene
    strange = next((view for view in alive if view.liveness is Liveness.UNKNOWN), None)
    if strange is None:
        return None
    why = f"pod {strange.name} is in a phase nobody has heard of"
    return replace(base, liveness=Liveness.UNKNOWN, native=strange.native, reason=why)


def _lost(alive: Sequence[PodView], base: Reading, scene: Scene) -> Reading | None:
    """A silent node: first nothing is known, then the run counts as lost, though it may still go on there."""
    lost = [view for view in alive if view.lost]
    if not lost:
        return None
    longest = max(lost, key=lambda view: view.lost_for)
    told = replace(
        base,
        native=NODE_LOST,
        reason=f"pod {longest.name} on {longest.node}: {read_node(scene.nodes, longest.node).why or 'silent'}",
        bad_nodes=reading.distinct((*base.bad_nodes, *(view.node for view in lost))),
    )
    past = longest.lost_for > scene.limits.node
    return replace(told, liveness=Liveness.FAILED if past else Liveness.UNKNOWN)


def _looping(alive: Sequence[PodView], base: Reading, scene: Scene) -> Reading | None:
    del scene
    looping = next((view for view in alive if view.looping), None)
    if looping is None:
        return None
    return with_exit(
        replace(
            base,
            liveness=Liveness.FAILED,
            native=looping.native,
            reason=f"pod {looping.name}: {looping.reason}",
        ),
        looping,
    )


def warning(views: Sequence[PodView]) -> str:
    """Say what went wrong before without ending the job."""
    parts = []
    for view in views:
        if view.restarts:
            why = "OOMKilled" if view.oom_killed else view.reason
            parts.append(f"pod {view.name} restarted {view.restarts} time(s): {why}".rstrip(": "))
    return "; ".join(parts[:5])


def bad_nodes(views: Sequence[PodView], scene: Scene) -> tuple[str, ...]:
    """Name the nodes of these pods that the cluster holds for down."""
    return tuple(node for node in nodes_of(views) if not read_node(scene.nodes, node).ready)


def with_exit(told: Reading, view: PodView | None) -> Reading:
    """Add how a pod ended."""
    if view is None or view.exit_code is None:
        return told
    code = view.exit_code
    return replace(
        told,
        exit_code=code,
        exit_signal=code - SIGNAL_BASE if SIGNAL_BASE < code < SIGNAL_BASE + 65 else None,
        oom_killed=view.oom_killed,
    )


def failed_first(views: Sequence[PodView]) -> PodView | None:
    """Give the pod whose failure began the newest round: the others were mostly pulled along by it."""
    failed = [view for view in views if view.liveness is Liveness.FAILED and (view.ended or view.disruption)]
    return failed[-1] if failed else None


def read_pod_job(pod: Object, scene: Scene) -> Reading:
    """Read a pod that is a job of its own."""
    view = read_pods(replace(scene, pods=(pod,)))[0]
    told = Reading(
        view.liveness,
        view.native,
        view.reason,
        nodes=nodes_of([view]),
        bad_nodes=bad_nodes([view], scene),
        stuck=view.stuck,
        warning=warning([view]),
    )
    if view.liveness is Liveness.SUCCEEDED:
        return told
    if reading.deleting(pod) and not _failed_before_deletion(pod, view):
        return _leaving(told, view)
    if view.liveness is Liveness.FAILED and not view.lost:
        return with_exit(told, view)
    return read_group([view], replace(scene, pods=(pod,)))


def _failed_before_deletion(pod: Object, view: PodView) -> bool:
    """Tell a failed pod that is cleaned away from one that failed because it was deleted."""
    due = reading.seconds(reading.meta(pod).get("deletionTimestamp")) or 0.0
    if view.liveness is not Liveness.FAILED or view.lost or view.exit_code is None or view.at >= due:
        return False
    return view.exit_code not in DELETED_CODES or bool(view.oom_killed)


def _leaving(told: Reading, view: PodView) -> Reading:
    """A pod on its way out: taken away by the cluster, or deleted by somebody."""
    if view.disruption:
        return replace(told, liveness=Liveness.FAILED, native=view.disruption)
    if view.lost:
        return replace(told, liveness=Liveness.FAILED, native=NODE_LOST)
    return replace(told, liveness=Liveness.STOPPED, native="Deleting", reason="deleted by somebody")
