"""Actions that change an object in place: restart by rollout, suspend, resume, cancel, deletion of pods."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import Awaitable, Callable, Collection, Iterable
from datetime import UTC, datetime

from trainguard.core.action import Action, ActionKind, Fence, Outcome, OutcomeStatus
from trainguard.core.errors import NotFoundError, RefusedError, SchedulerError, UnreachableError
from trainguard.core.job import Job
from trainguard.schedulers.kubernetes import reading
from trainguard.schedulers.kubernetes.api import ClusterApi
from trainguard.schedulers.kubernetes.batch import retries_left
from trainguard.schedulers.kubernetes.kinds import KINDS, JobName, at, put
from trainguard.schedulers.kubernetes.manifest import changed, marked
from trainguard.schedulers.kubernetes.pods import PodView, read_pod
from trainguard.schedulers.kubernetes.reading import Limits, Scene
from trainguard.schedulers.kubernetes.remake import CONFLICTS
from trainguard.schedulers.kubernetes.rights import SCALED
from trainguard.schedulers.kubernetes.target import (
    Judge,
    Target,
    pods_of,
    read_scene,
    read_target,
    still_running,
)
from trainguard.transports.kube import Object
from trainguard.transports.kube_errors import ConflictError, LostAnswerError

ROLLED_AT = "kubectl.kubernetes.io/restartedAt"
WAITS = "trainguard.dev/waits-for-old-pods"
"""Node label that no node has: a DaemonSet that wants it runs nowhere."""
REVISION_SECONDS = 5.0


class Changer:
    """Changes objects by patch, and deletes pods. What is changed is what was judged."""

    def __init__(self, api: ClusterApi, limits: Limits, deadline: float) -> None:
        self._api, self._limits, self._deadline = api, limits, deadline

    async def roll(self, job: Job, target: Target, action: Action, fence: Fence, judge: Judge) -> Outcome:
        """Restart by rollout. All old pods must be gone before a new one starts.

        A Deployment sees to that itself (Recreate). The others are held back by a first change and let go by a
        second one: a StatefulSet is scaled to 0, a DaemonSet wants a node that is not there.
        """

        async def rolling(now: Target) -> Object:
            kind = now.name.kind
            template = changed(kind, now.obj, action, job, now.scene.pods or ())["spec"]["template"]
            notes = (template.setdefault("metadata", {}).get("annotations") or {}) | {
                ROLLED_AT: datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
            }
            template["metadata"]["annotations"] = notes
            spec: Object = {"template": template}
            before = reading.spec(now.obj).get("strategy") or {}
            if kind.name == "Deployment" and before.get("type") != "Recreate":
                spec["strategy"] = {"type": "Recreate", "rollingUpdate": None}
            pods = _pods_to_delete(now)
            await self._try_deletion(now, pods)
            marks = marked(now.obj, fence, action, pods=",".join(view.uid for view in pods))
            marks |= _hold_back(now.obj, spec)
            return {"metadata": {"annotations": marks}, "spec": spec}

        obj = await self._change(job, target, judge, rolling)
        return _lost(fence) if obj is None else await self.let_go(job, target.name, action, fence)

    async def let_go(self, job: Job, name: JobName, action: Action, fence: Fence) -> Outcome:
        """Delete the old pods of what was held back, and let the new ones start once none can run any more.

        Whatever is refused from here on is tried again, else nothing of the job would ever run.
        """
        until, why = time.monotonic() + self._deadline, "time ran out"
        while time.monotonic() < until:
            try:
                why = await self._left(name, fence)
            except NotFoundError:
                return _outcome(fence, OutcomeStatus.REFUSED, f"{name.id} was deleted meanwhile")
            except SchedulerError as error:
                why = str(error)
            if not why:
                return await self._rolled(job, name, action, fence)
            await asyncio.sleep(0.5)
        return _outcome(fence, OutcomeStatus.UNKNOWN, f"new pods are held back: {why}")

    async def _left(self, name: JobName, fence: Fence) -> str:
        """Say what new pods still wait for; nothing once they were let go."""
        obj = await self._api.get(name.kind, name.namespace, name.name)
        await self.delete_pods(obj, fence)
        if not held_back(obj):
            return ""
        left = still_running(await read_scene(self._api, obj, self._limits))
        if not left:
            await self._api.patch(name.kind, obj, _release(obj))
        return ", ".join(left[:5])

    async def _rolled(self, job: Job, name: JobName, action: Action, fence: Fence) -> Outcome:
        until = time.monotonic() + REVISION_SECONDS
        while time.monotonic() < until:
            try:
                now = await read_target(self._api, job, self._limits)
            except SchedulerError:
                break  # it is done; only its new name is not known
            if now.incarnation.token != action.incarnation.token:
                return done(fence, f"{name.id} rolls").model_copy(update={"incarnation": now.incarnation})
            await asyncio.sleep(0.2)
        return done(fence, f"{name.id} is to roll; its controller has not begun yet")

    async def resize(self, job: Job, target: Target, action: Action, fence: Fence, judge: Judge) -> Outcome:
        """Suspend, resume or cancel."""
        stop = action.kind is not ActionKind.RESUME

        async def resized(now: Target) -> Object:
            marks: dict[str, str | None] = dict(marked(now.obj, fence, action))
            if action.kind is ActionKind.CANCEL:
                marks[reading.CANCELLED] = fence.token
            change: Object = {"metadata": {"annotations": marks}}
            await self._fill(now, change, marks, stop)
            return change

        obj = await self._change(job, target, judge, resized)
        if obj is None:
            return _lost(fence)
        if stop:
            return await self.still(target.name, obj, fence, action.kind)
        return done(fence, f"{action.kind}: {target.name.id}")

    async def _fill(self, target: Target, change: Object, marks: dict[str, str | None], stop: bool) -> None:
        """Choose the field: `suspend` where the server knows it, else the size; remember how it was."""
        kind, obj = target.name.kind, target.obj
        size = "replicas" if kind.name in SCALED else "parallelism"
        before = reading.notes(obj).get(reading.SIZE, "")
        if kind.suspend and (before == "suspend" if not stop else await self._can_suspend(target)):
            put(change, kind.suspend, stop)
            marks[reading.SIZE] = "suspend" if stop else None
        elif kind.name in (*SCALED, "Job"):
            _forbid_loss_of_claims(obj)
            put(change, f"spec.{size}", 0 if stop else int(before) if before.isdigit() else 1)
            marks[reading.SIZE] = str(reading.spec(obj).get(size, 1)) if stop else None
        else:
            raise RefusedError(f"this cluster's {kind.name} can't be suspended")

    async def _can_suspend(self, target: Target) -> bool:
        """A server that does not know the field drops it without a word (Jobs before 1.21)."""
        change: Object = {}
        put(change, target.name.kind.suspend, True)
        answer = await self._api.patch(target.name.kind, target.obj, change, dry_run=True)
        return at(answer, target.name.kind.suspend) is True

    async def still(self, name: JobName, obj: Object, fence: Fence, what: str) -> Outcome:
        """Wait until nothing of a job that was stopped can run. Not known where that takes longer."""
        until, why = time.monotonic() + self._deadline, "time ran out"
        while time.monotonic() < until:
            try:
                left = still_running(await read_scene(self._api, obj, self._limits))
            except UnreachableError as error:
                left = [str(error)]
            if not left:
                return done(fence, f"{what}: {name.id}")
            why = ", ".join(left[:5])
            await asyncio.sleep(0.5)
        return _outcome(fence, OutcomeStatus.UNKNOWN, f"{what}: {name.id} may still run: {why}")

    async def pods(self, job: Job, target: Target, action: Action, fence: Fence, judge: Judge) -> Outcome:
        """Delete the stuck and crash-looping pods, or those on the nodes that were named."""

        async def without(now: Target) -> Object:
            chosen = [view for view in now.views if _unfit(view, action.nodes)]
            if not chosen:
                raise RefusedError(
                    f"{now.name.id} has no pod that is stuck, crash-looping or on a named node"
                )
            _forbid_last_retry(now, len(chosen))
            await self._try_deletion(now, chosen)
            uids = ",".join(view.uid for view in chosen)
            return {"metadata": {"annotations": marked(now.obj, fence, action, pods=uids)}}

        obj = await self._change(job, target, judge, without)
        if obj is None:
            return _lost(fence)
        try:
            names = await self.delete_pods(obj, fence)
        except LostAnswerError:
            return _lost(fence)
        return done(fence, f"deleted {', '.join(names) or 'nothing: all were gone or well by then'}")

    async def _try_deletion(self, target: Target, chosen: Iterable[PodView]) -> None:
        """Let the server judge the deletion of some pods without doing it."""
        by_uid = {reading.uid(pod): pod for pod in target.scene.pods or ()}
        for view in chosen:
            with contextlib.suppress(NotFoundError):
                await self._api.delete(KINDS["Pod"], by_uid[view.uid], dry_run=True)

    async def delete_pods(self, obj: Object, fence: Fence) -> list[str]:
        """Delete the pods that a fence names, by uid; those that are gone, going or well again are left alone.

        Raises LostAnswerError where a deletion may not have happened.
        """
        intent = intent_of(obj, fence) or {}
        wanted = set(intent.get("pods", "").split(",")) - {""}
        names = list[str]()
        for pod in await pods_of(self._api, obj) if wanted else ():
            if reading.uid(pod) not in wanted or reading.deleting(pod):
                continue
            action = Action.model_validate(intent["action"])
            view = read_pod(pod, Scene(time.time(), limits=self._limits))
            if action.kind is ActionKind.DELETE_POD and not _unfit(view, action.nodes):
                continue
            with contextlib.suppress(NotFoundError, ConflictError):
                await self._api.delete(KINDS["Pod"], pod)
            names.append(reading.name(pod))
        return names

    async def _change(
        self, job: Job, target: Target, judge: Judge, make: Callable[[Target], Awaitable[Object]]
    ) -> Object | None:
        """Try a change out, then make it. What somebody changed meanwhile is judged again, and the change
        made anew from it, so that nothing of theirs is undone. None: the answer was lost.
        """
        for _ in range(CONFLICTS):
            try:
                change = await make(target)
                await self._api.patch(target.name.kind, target.obj, change, dry_run=True)
                return await self._api.patch(target.name.kind, target.obj, change)
            except ConflictError:
                target = await read_target(self._api, job, self._limits)
                judge(target)
            except LostAnswerError:
                return None
        raise RefusedError(f"{target.name.id} changes faster than it can be judged")


def _forbid_last_retry(target: Target, chosen: int) -> None:
    """A pod of a Job that is deleted counts as failed since 1.22: with no retry left the Job would end by it."""
    if target.name.kind.name != "Job":
        return
    left = retries_left(target.obj, target.views)
    by_index = reading.spec(target.obj).get("backoffLimitPerIndex")
    if chosen > left or by_index == 0:
        raise RefusedError(
            f"deleting {chosen} pods of {target.name.id} would end it as failed: {0 if by_index == 0 else left}"
            " retries are left; restart it instead"
        )


def held_back(obj: Object) -> bool:
    """Whether a restart by rollout holds its new pods back until the old ones are gone."""
    if obj.get("kind") == "StatefulSet":
        return reading.SIZE in reading.notes(obj) and reading.spec(obj).get("replicas") == 0
    selector = at(obj, "spec.template.spec.nodeSelector") or {}
    return obj.get("kind") == "DaemonSet" and WAITS in selector


def _hold_back(obj: Object, spec: Object) -> dict[str, str]:
    """Let a rollout's change start nothing yet; gives the annotations that this takes."""
    if obj.get("kind") == "StatefulSet":
        _forbid_loss_of_claims(obj)
        spec["replicas"] = 0
        return {reading.SIZE: str(reading.spec(obj).get("replicas", 1))}
    if obj.get("kind") == "DaemonSet":
        inner = spec["template"]["spec"]
        inner["nodeSelector"] = (inner.get("nodeSelector") or {}) | {WAITS: "true"}
    return {}


def _release(obj: Object) -> Object:
    if obj.get("kind") == "StatefulSet":
        size = int(reading.notes(obj)[reading.SIZE])
        return {"metadata": {"annotations": {reading.SIZE: None}}, "spec": {"replicas": size}}
    return {"spec": {"template": {"spec": {"nodeSelector": {WAITS: None}}}}}


def _forbid_loss_of_claims(obj: Object) -> None:
    """https://kubernetes.io/docs/concepts/workloads/controllers/statefulset/#persistentvolumeclaim-retention."""
    if at(obj, "spec.persistentVolumeClaimRetentionPolicy.whenScaled") == "Delete":
        raise RefusedError(
            "scaling it to 0 would delete its volume claims (persistentVolumeClaimRetentionPolicy.whenScaled:"
            " Delete), and checkpoints with them; set Retain"
        )


def _unfit(view: PodView, nodes: Collection[str]) -> bool:
    return view.alive and bool(view.stuck or view.looping or view.node in nodes)


def _pods_to_delete(target: Target) -> list[PodView]:
    """A StatefulSet waits for ever behind a broken pod, and a training needs all its ranks at once."""
    if target.name.kind.name == "Deployment":
        return []
    return [view for view in target.views if view.alive]


def intent_of(obj: Object, fence: Fence) -> Object | None:
    """Give what the newest fence was for, if it is this one."""
    try:
        intent = json.loads(reading.notes(obj).get(reading.INTENT, ""))
    except ValueError:
        return None
    return intent if isinstance(intent, dict) and intent.get("fence") == fence.token else None


def done(fence: Fence, detail: str) -> Outcome:
    """Say that it is done."""
    return Outcome(fence=fence.token, status=OutcomeStatus.DONE, at=time.time(), detail=detail)


def _outcome(fence: Fence, status: OutcomeStatus, detail: str) -> Outcome:
    return Outcome(fence=fence.token, status=status, at=time.time(), detail=detail)


def _lost(fence: Fence) -> Outcome:
    return _outcome(fence, OutcomeStatus.UNKNOWN, "the answer was lost")
