"""Jobs and CronJobs: conditions before counters. Pure.

https://kubernetes.io/docs/concepts/workloads/controllers/job/#terminal-job-conditions
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from trainguard.core.observation import Liveness
from trainguard.schedulers.kubernetes import reading
from trainguard.schedulers.kubernetes.pod_group import bad_nodes, failed_first, read_group, with_exit
from trainguard.schedulers.kubernetes.pods import PodView, nodes_of, read_pods
from trainguard.schedulers.kubernetes.reading import Reading, Scene
from trainguard.transports.kube import Object

CONDITIONS: dict[str, Liveness] = {
    "Failed": Liveness.FAILED,
    "FailureTarget": Liveness.FAILED,  # decided; its pods are still being ended
    "Complete": Liveness.SUCCEEDED,
    "SuccessCriteriaMet": Liveness.RUNNING,  # decided; not yet ended
}
"""In this order, where their status is "True". Others are informational: the set is open by API convention."""
DEFAULT_BACKOFF = 6


def read_batch_job(job: Object, scene: Scene) -> Reading:
    """Read a batch/v1 Job."""
    views = read_pods(scene)
    for word, liveness in CONDITIONS.items():
        found = reading.holds(job, word)
        if found is not None:
            return _decided(word, liveness, found, views, scene)
    if reading.deleting(job):
        return Reading(Liveness.STOPPED, "Deleting", "deleted by somebody", nodes=nodes_of(views))
    why = reading.suspended(job)
    if why:
        return Reading(Liveness.PENDING, "Suspended", why, nodes=nodes_of(views))
    failed = reading.count(reading.status(job), "failed")
    if failed and scene.limits.failed_pod_is_failure:
        said: dict[str, object] = {"reason": f"failed={failed}", "message": "a failed pod counts as failure"}
        return _decided("Failed", Liveness.FAILED, said, views, scene)
    if scene.pods is None:
        return _by_counters(job)
    return _undecided(job, views, scene)


def retries_left(job: Object, views: Sequence[PodView] = ()) -> int:
    """Count the pod failures that the Job still tolerates."""
    return max(0, _limit(job) - _failures(job, views))


def _decided(
    word: str, liveness: Liveness, found: dict[str, object], views: Sequence[PodView], scene: Scene
) -> Reading:
    native = str(found.get("reason") or word) if word == "Failed" else word
    told = Reading(
        liveness,
        native,
        reading.said(found),
        nodes=nodes_of(views),
        bad_nodes=bad_nodes(views, scene),
    )
    if liveness is not Liveness.FAILED:
        return told
    culprit = failed_first(views)
    if culprit is not None:
        cause = culprit.disruption or culprit.native
        told = replace(told, reason=f"{told.reason}; pod {culprit.name}: {cause}: {culprit.reason}")
    left = [view for view in views if not view.ended and (view.lost or view.node in told.bad_nodes)]
    if left:
        told = replace(told, stuck=f"pod {left[0].name} is still on {left[0].node}, which is not ready")
    return with_exit(told, culprit)


def _undecided(job: Object, views: Sequence[PodView], scene: Scene) -> Reading:
    failures, limit = _failures(job, views), _limit(job)
    told = read_group(views, scene)
    note = f"{failures} of {limit} retries used" if failures else ""
    culprit = failed_first(views)
    if note and culprit is not None:
        note += f"; pod {culprit.name}: {culprit.disruption or culprit.native}: {culprit.reason}"
    told = replace(told, warning="; ".join(reading.distinct((note, told.warning))))
    if told.liveness is Liveness.FAILED:
        if told.native == "NodeLost" and not retries_left(job, views) and not _replaces_lost(views):
            return told
        # the Job itself will replace the pod, or end with a condition: that is its word to say
        return replace(told, liveness=Liveness.PENDING, restart_underway=True)
    if any(view.alive for view in views):
        waiting = told.liveness is Liveness.PENDING and bool(failures)
        return replace(told, restart_underway=told.restart_underway or waiting)
    return _between(job, told, views, failures, scene)


def _between(job: Object, told: Reading, views: Sequence[PodView], failures: int, scene: Scene) -> Reading:
    """No pod is alive and no condition says what that means: the controller has yet to speak."""
    if failures > _limit(job):
        return replace(told, liveness=Liveness.RUNNING, native="Failing")
    if failures or any(view.deleting or view.liveness is Liveness.FAILED for view in views):
        return replace(told, restart_underway=True)
    if any(view.liveness is Liveness.SUCCEEDED for view in views):
        return replace(told, liveness=Liveness.RUNNING, native="Finishing")
    marks = (
        reading.seconds(reading.status(job).get("startTime")),
        reading.since(reading.condition(job, "Suspended")),
    )
    began = max(reading.created(job), *(mark or 0.0 for mark in marks))
    waited = scene.now - began
    if waited > scene.limits.ready:
        return replace(told, stuck=f"no pod was made for {waited:.0f} s: quota or admission may forbid it")
    return replace(told, restart_underway=bool(reading.status(job)))


def _replaces_lost(views: Sequence[PodView]) -> bool:
    """A pod that the cluster takes off a dead node is replaced whatever the backoff limit says (1.20)."""
    return any(view.deleting for view in views)


def _failures(job: Object, views: Sequence[PodView]) -> int:
    """Count failures: the counter lags behind the pods, and with OnFailure restarts count too."""
    state = reading.status(job)
    waiting = (state.get("uncountedTerminatedPods") or {}).get("failed") or []
    counted = reading.count(state, "failed") + len(waiting)
    forgiving = bool(reading.spec(job).get("podFailurePolicy"))  # it may not count disruptions
    seen = sum(
        1
        for view in views
        if view.liveness is Liveness.FAILED and view.ended and not (forgiving and view.disruption)
    )
    return max(counted, seen) + sum(view.restarts for view in views if view.alive)


def _limit(job: Object) -> int:
    wanted = reading.spec(job)
    per_index = wanted.get("backoffLimitPerIndex")
    if isinstance(per_index, int):
        return per_index * max(1, reading.count(wanted, "completions", 1))
    return reading.count(wanted, "backoffLimit", DEFAULT_BACKOFF)


def _by_counters(job: Object) -> Reading:
    """Read a Job whose pods can't be read. `active` counts pending pods too, `ready` came with 1.22."""
    state = reading.status(job)
    failed = reading.count(state, "failed")
    told = Reading(
        Liveness.PENDING,
        "NoPods",
        warning=f"pods can't be read; {failed} failed" if failed else "pods can't be read",
        restart_underway=bool(failed),
    )
    if reading.count(state, "ready") or ("ready" not in state and reading.count(state, "active")):
        return replace(told, liveness=Liveness.RUNNING, native="active", restart_underway=False)
    return told


def newest_job(jobs: Sequence[Object]) -> Object | None:
    """Give the Job that speaks for its CronJob: the one made last."""
    return max(jobs, key=lambda job: (reading.created(job), reading.name(job)), default=None)


def read_cron_job(cron: Object) -> Reading:
    """Read a CronJob that has no Job yet."""
    if reading.deleting(cron):
        return Reading(Liveness.STOPPED, "Deleting", "deleted by somebody")
    if reading.spec(cron).get("suspend") is True:
        return Reading(Liveness.PENDING, "Suspended", "spec.suspend")
    return Reading(Liveness.PENDING, "NotYetScheduled", f"schedule {reading.spec(cron).get('schedule')}")
