"""Acting on a job: which way for which kind, once per fence, and finishing what was begun."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime

from trainguard.core.action import Action, ActionKind, Fence, Outcome, OutcomeStatus
from trainguard.core.errors import ConfigError, NotFoundError, RefusedError, SchedulerError, UnreachableError
from trainguard.core.job import Job
from trainguard.core.observation import Liveness
from trainguard.schedulers.kubernetes import reading
from trainguard.schedulers.kubernetes.api import ClusterApi
from trainguard.schedulers.kubernetes.kinds import KINDS, JobName, at, parse_job_id, put
from trainguard.schedulers.kubernetes.manifest import changed, marked
from trainguard.schedulers.kubernetes.nodes import NodeActions
from trainguard.schedulers.kubernetes.reading import Limits
from trainguard.schedulers.kubernetes.remake import CONFLICTS, Remaker
from trainguard.schedulers.kubernetes.rights import REMAKES, SCALED, senseless
from trainguard.schedulers.kubernetes.sight import ClusterSight
from trainguard.schedulers.kubernetes.store import ManifestStore, Saved
from trainguard.schedulers.kubernetes.target import Target, forbid, pods_of, read_target, resolve
from trainguard.transports.kube import Object
from trainguard.transports.kube_errors import ConflictError, LostAnswerError

ROLLED_AT = "kubectl.kubernetes.io/restartedAt"
NODE_ACTIONS = (ActionKind.CORDON_NODE, ActionKind.UNCORDON_NODE, ActionKind.DRAIN_NODE)
REVISION_SECONDS = 5.0


class Actions:
    """What is done to jobs of one cluster. One action a job at a time in a process."""

    def __init__(
        self,
        api: ClusterApi,
        sight: ClusterSight,
        store: ManifestStore,
        manifests: Mapping[str, Object],
        limits: Limits,
        deadline: float,
    ) -> None:
        self._api, self._sight, self._store, self._limits = api, sight, store, limits
        self._manifests, self._deadline = manifests, deadline
        self._remaker = Remaker(api, store, limits, deadline)
        self._nodes = NodeActions(api, deadline)
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def perform(self, job: Job, action: Action, fence: Fence) -> Outcome:
        """Act once."""
        async with self._locks[job.ref.id]:
            found = await self._find(job, fence)
            return found if found is not None else await self._act(job, action, fence)

    async def find(self, job: Job, fence: Fence) -> Outcome | None:
        """Say what became of a fence; finishes what was begun, for it was decided and is under way.

        Raises UnreachableError while that takes longer than an action may: whoever asks must go on asking.
        """
        async with self._locks[job.ref.id]:
            found = await self._find(job, fence)
        if found is not None and found.status is OutcomeStatus.UNKNOWN:
            raise UnreachableError(found.detail)
        return found

    async def _find(self, job: Job, fence: Fence) -> Outcome | None:
        kept = self._store.load(_name_of(job).id)
        saved = kept if kept is not None and kept.fence == fence.token else None
        try:
            # a CronJob's newest Job may be another one while this one is being made again
            name = await resolve(self._api, _name_of(job) if saved is None else saved.name)
            obj = await self._api.get(name.kind, name.namespace, name.name)
        except NotFoundError:
            return await self._nodes.find(fence) if saved is None else await self._finish(job, saved)
        if fence.token not in reading.fences(obj):
            self._forget(saved)
            return await self._nodes.find(fence)
        intent = _intent(obj, fence)
        if intent is None:
            return _done(fence, "an action after it has been done since")
        if intent["action"]["kind"] in REMAKES and not name.kind.rolls:
            return await self._find_remade(job, name, obj, fence, intent, saved)
        await self._delete_pods(obj, fence)
        return _done(fence, f"{intent['action']['kind']} is on record at {name.id}")

    def _forget(self, saved: Saved | None) -> None:
        """Drop what was kept for an object that is still there: its deletion never came, or it is made."""
        if saved is not None:
            self._store.drop(saved.job_id)

    async def _find_remade(
        self, job: Job, name: JobName, obj: Object, fence: Fence, intent: Object, saved: Saved | None
    ) -> Outcome | None:
        if intent["action"]["incarnation"]["token"].partition("/")[0] != reading.uid(obj):
            self._forget(saved)
            return _done(fence, f"{name.id} was made again as {reading.uid(obj)}")
        if not reading.deleting(obj):
            self._forget(saved)
            return None  # marked and no more: nothing happened
        if saved is None:
            # another process began it: what it deletes is still there to be read
            action = Action.model_validate(intent["action"])
            saved = self._remaker.keep(job, name, obj, action, fence)
        return await self._finish(job, saved)

    async def _finish(self, job: Job, saved: Saved) -> Outcome:
        self._sight.remaking.add(saved.job_id)
        try:
            return await self._remaker.finish(job, saved)
        finally:
            self._sight.remaking.discard(saved.job_id)

    async def _act(self, job: Job, action: Action, fence: Fence) -> Outcome:
        name = _name_of(job)
        why = senseless(action.kind, name.kind)
        if why:
            raise RefusedError(why)
        try:
            target = await read_target(self._api, job, self._limits)
        except NotFoundError:
            return await self._act_on_gone(job, name, action, fence)
        forbid(target, action)
        if action.kind in REMAKES:
            self._forbid_healed(job, target)
        if action.kind in NODE_ACTIONS:
            return await self._nodes.perform(action, fence)
        if action.kind is ActionKind.DELETE_POD:
            return await self._pods(job, target, action, fence)
        if action.kind not in REMAKES:
            return await self._resize(job, target, action, fence)
        if target.name.kind.rolls:
            return await self._roll(job, target, action, fence)
        self._sight.remaking.add(name.id)
        try:
            return await self._remaker.begin(job, target, action, fence)
        finally:
            self._sight.remaking.discard(name.id)

    def _forbid_healed(self, job: Job, target: Target) -> None:
        """Refuse to restart what the guard last saw dead and what runs now, as the same incarnation.

        A stall is of a job that was seen to run; whether it has passed is for the guard to say.
        """
        seen = self._sight.last(job.ref)
        if seen is None or seen.incarnation is None or seen.liveness is not Liveness.FAILED:
            return
        if seen.incarnation.token == target.incarnation.token and target.told.liveness is Liveness.RUNNING:
            raise RefusedError(
                f"{target.name.id} came back by itself: it was {seen.native}, now it is {target.told.native}"
            )

    async def _act_on_gone(self, job: Job, name: JobName, action: Action, fence: Fence) -> Outcome:
        """A failed job whose object was removed can be made again from what was seen or given of it."""
        seen = (await self._sight.observe([job]))[job.ref]
        if action.kind in NODE_ACTIONS:
            return await self._nodes.perform(action, fence)
        known = self._sight.informer(name.kind, name.namespace).deleted(name.namespace, name.name)
        manifest = known or self._manifests.get(name.id)
        same = seen.incarnation is not None and seen.incarnation.token == action.incarnation.token
        if action.kind not in REMAKES or not same or seen.liveness is not Liveness.FAILED or manifest is None:
            raise RefusedError(f"{name.id} is {seen.liveness} ({seen.native}): there is nothing to act on")
        return await self._remaker.from_saved(job, name, manifest, action, fence)

    async def _roll(self, job: Job, target: Target, action: Action, fence: Fence) -> Outcome:
        """Restart by rollout. A Deployment's old pods must be gone before a new one starts: Recreate."""

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
            marks = marked(now.obj, fence, action, pods=_pods_to_delete(now))
            return {"metadata": {"annotations": marks}, "spec": spec}

        obj = await self._change(job, target, action, rolling)
        if obj is None:
            return _lost(fence)
        await self._delete_pods(obj, fence)
        return await self._rolled(job, target, fence)

    async def _rolled(self, job: Job, target: Target, fence: Fence) -> Outcome:
        until = time.monotonic() + REVISION_SECONDS
        while time.monotonic() < until:
            try:
                now = await read_target(self._api, job, self._limits)
            except SchedulerError:
                break  # it is done; only its new name is not known
            if now.incarnation.token != target.incarnation.token:
                return _done(fence, f"{target.name.id} rolls").model_copy(
                    update={"incarnation": now.incarnation}
                )
            await asyncio.sleep(0.2)
        return _done(fence, f"{target.name.id} is to roll; its controller has not begun yet")

    async def _resize(self, job: Job, target: Target, action: Action, fence: Fence) -> Outcome:
        """Suspend, resume or cancel."""
        stop = action.kind is not ActionKind.RESUME

        async def resized(now: Target) -> Object:
            marks: dict[str, str | None] = dict(marked(now.obj, fence, action))
            if action.kind is ActionKind.CANCEL:
                marks[reading.CANCELLED] = fence.token
            change: Object = {"metadata": {"annotations": marks}}
            await self._fill(now, change, marks, stop)
            return change

        if await self._change(job, target, action, resized) is None:
            return _lost(fence)
        if stop:
            with contextlib.suppress(UnreachableError):
                await self._until_still(target)
        return _done(fence, f"{action.kind}: {target.name.id}")

    async def _fill(self, target: Target, change: Object, marks: dict[str, str | None], stop: bool) -> None:
        """Choose the field: `suspend` where the server knows it, else the size; remember how it was."""
        kind, obj = target.name.kind, target.obj
        size = "replicas" if kind.name in SCALED else "parallelism"
        before = reading.notes(obj).get(reading.SIZE, "")
        if kind.suspend and (before == "suspend" if not stop else await self._can_suspend(target)):
            put(change, kind.suspend, stop)
            marks[reading.SIZE] = "suspend" if stop else None
        elif kind.name in (*SCALED, "Job"):
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

    async def _until_still(self, target: Target) -> None:
        until = time.monotonic() + self._deadline
        while time.monotonic() < until:
            now = await pods_of(self._api, target.obj)
            if all(reading.status(pod).get("phase") in ("Succeeded", "Failed") for pod in now):
                return
            await asyncio.sleep(0.5)

    async def _pods(self, job: Job, target: Target, action: Action, fence: Fence) -> Outcome:
        """Delete the stuck and crash-looping pods, or those on the nodes that were named."""

        async def without(now: Target) -> Object:
            chosen = [
                view
                for view in now.views
                if view.alive and (view.stuck or view.looping or view.node in action.nodes)
            ]
            if not chosen:
                raise RefusedError(
                    f"{now.name.id} has no pod that is stuck, crash-looping or on a named node"
                )
            for view in chosen:
                await self._api.delete(KINDS["Pod"], _by_uid(now, view.uid), dry_run=True)
            uids = ",".join(view.uid for view in chosen)
            return {"metadata": {"annotations": marked(now.obj, fence, action, pods=uids)}}

        obj = await self._change(job, target, action, without)
        if obj is None:
            return _lost(fence)
        names = await self._delete_pods(obj, fence)
        return _done(fence, f"deleted {', '.join(names) or 'what was gone by then'}")

    async def _delete_pods(self, obj: Object, fence: Fence) -> list[str]:
        """Delete the pods that a fence names, by uid; those that are gone or going are left alone."""
        wanted = set((_intent(obj, fence) or {}).get("pods", "").split(",")) - {""}
        names = list[str]()
        for pod in await pods_of(self._api, obj) if wanted else ():
            if reading.uid(pod) in wanted and not reading.deleting(pod):
                with contextlib.suppress(NotFoundError, ConflictError, LostAnswerError):
                    await self._api.delete(KINDS["Pod"], pod)
                names.append(reading.name(pod))
        return names

    async def _change(
        self, job: Job, target: Target, action: Action, make: Callable[[Target], Awaitable[Object]]
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
                forbid(target, action)
            except LostAnswerError:
                return None
        raise RefusedError(f"{target.name.id} changes faster than it can be judged")


def _pods_to_delete(target: Target) -> str:
    """A StatefulSet waits for ever behind a broken pod, and a training needs all its ranks at once."""
    if target.name.kind.name == "Deployment":
        return ""
    return ",".join(view.uid for view in target.views if view.alive)


def _by_uid(target: Target, uid: str) -> Object:
    return next(pod for pod in target.scene.pods or () if reading.uid(pod) == uid)


def _name_of(job: Job) -> JobName:
    try:
        return parse_job_id(job.ref.id)
    except ConfigError as error:
        raise NotFoundError(str(error)) from error


def _intent(obj: Object, fence: Fence) -> Object | None:
    """Give what the newest fence was for, if it is this one."""
    try:
        intent = json.loads(reading.notes(obj).get(reading.INTENT, ""))
    except ValueError:
        return None
    return intent if isinstance(intent, dict) and intent.get("fence") == fence.token else None


def _done(fence: Fence, detail: str) -> Outcome:
    return Outcome(fence=fence.token, status=OutcomeStatus.DONE, at=time.time(), detail=detail)


def _lost(fence: Fence) -> Outcome:
    return Outcome(
        fence=fence.token, status=OutcomeStatus.UNKNOWN, at=time.time(), detail="the answer was lost"
    )
