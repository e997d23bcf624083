"""Acting on a job: which way for which kind, once per fence, and finishing what was begun."""

from __future__ import annotations

import asyncio
import functools
import time
from collections import defaultdict

from trainguard.core.action import Action, ActionKind, Fence, Outcome, OutcomeStatus
from trainguard.core.errors import (
    AccessRefusedError,
    ConfigError,
    NotFoundError,
    RefusedError,
    UnreachableError,
)
from trainguard.core.job import Job
from trainguard.core.observation import Liveness, Observation
from trainguard.schedulers.kubernetes import reading
from trainguard.schedulers.kubernetes.api import ClusterApi
from trainguard.schedulers.kubernetes.change import Changer, done, held_back, intent_of
from trainguard.schedulers.kubernetes.kinds import JobName, parse_job_id
from trainguard.schedulers.kubernetes.manifest import marked, removed_by_itself
from trainguard.schedulers.kubernetes.nodes import NodeActions
from trainguard.schedulers.kubernetes.reading import Limits
from trainguard.schedulers.kubernetes.remake import Remaker
from trainguard.schedulers.kubernetes.rights import REMAKES, senseless
from trainguard.schedulers.kubernetes.sight import ClusterSight
from trainguard.schedulers.kubernetes.store import ManifestStore, Saved
from trainguard.schedulers.kubernetes.target import (
    Judge,
    Target,
    forbid,
    read_target,
    resolve,
)
from trainguard.transports.kube import Object
from trainguard.transports.kube_errors import ConflictError

NODE_ACTIONS = (ActionKind.CORDON_NODE, ActionKind.UNCORDON_NODE, ActionKind.DRAIN_NODE)
STOPS = (ActionKind.SUSPEND, ActionKind.CANCEL)


class Actions:
    """What is done to jobs of one cluster. One action a job at a time in a process."""

    def __init__(
        self,
        api: ClusterApi,
        sight: ClusterSight,
        store: ManifestStore,
        limits: Limits,
        deadline: float,
    ) -> None:
        self._api, self._sight, self._store, self._limits = api, sight, store, limits
        self._changer = Changer(api, limits, deadline)
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
        own = functools.partial(self._own, job)
        try:
            # a CronJob's newest Job may be another one while this one is being made again
            name = await resolve(self._api, _name_of(job) if saved is None else saved.name)
            obj = await self._api.get(name.kind, name.namespace, name.name)
        except NotFoundError:
            return await self._nodes.find(fence, own) if saved is None else await self._finish(job, saved)
        if fence.token not in reading.fences(obj):
            self._forget(saved)
            return await self._nodes.find(fence, own)
        intent = intent_of(obj, fence)
        if intent is None:
            return done(fence, "an action after it has been done since")
        if intent["action"]["kind"] in REMAKES and not name.kind.rolls:
            return await self._find_remade(job, name, obj, fence, intent, saved)
        return await self._find_changed(job, name, obj, fence, Action.model_validate(intent["action"]))

    async def _find_changed(
        self, job: Job, name: JobName, obj: Object, fence: Fence, action: Action
    ) -> Outcome:
        await self._changer.delete_pods(obj, fence)
        if action.kind in STOPS and reading.held(obj):
            return await self._changer.still(name, obj, fence, action.kind)
        if action.kind in REMAKES and held_back(obj):
            return await self._changer.let_go(job, name, action, fence)
        return done(fence, f"{action.kind} is on record at {name.id}")

    async def _own(self, job: Job) -> frozenset[str]:
        """Give the uids of the job's own pods; none where it is gone."""
        try:
            target = await read_target(self._api, job, self._limits)
        except NotFoundError:
            return frozenset()
        return frozenset(reading.uid(pod) for pod in target.scene.pods or ())

    def _forget(self, saved: Saved | None) -> None:
        """Drop what was kept for an object that is still there: its deletion never came, or it is made."""
        if saved is not None:
            self._store.drop(saved.job_id)

    async def _find_remade(
        self, job: Job, name: JobName, obj: Object, fence: Fence, intent: Object, saved: Saved | None
    ) -> Outcome | None:
        if intent["action"]["incarnation"]["token"].partition("/")[0] != reading.uid(obj):
            self._forget(saved)
            return done(fence, f"{name.id} was made again as {reading.uid(obj)}")
        action = Action.model_validate(intent["action"])
        if not reading.deleting(obj):
            if saved is not None:
                await self._outdate(name, obj, action, fence)
            self._forget(saved)
            return None  # marked and no more: nothing happened
        if saved is None:
            # another process began it: what it deletes is still there to be read
            saved = self._remaker.keep(job, name, obj, action, fence)
        return await self._finish(job, saved)

    async def _outdate(self, name: JobName, obj: Object, action: Action, fence: Fence) -> None:
        """Write to an object, so that a deletion that may still be on its way, of an earlier version, is refused."""
        change = {"metadata": {"annotations": marked(obj, fence, action, at=time.time())}}
        try:
            await self._api.patch(name.kind, obj, change)
        except (ConflictError, NotFoundError) as error:
            raise UnreachableError(f"{name.id} changes right now: {error}") from error
        except (RefusedError, AccessRefusedError):
            return  # it can't be written to any more: the deletion was hardly let through either

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
        seen = self._sight.last(job.ref)  # as of now: it goes on looking

        def judge(now: Target) -> None:
            forbid(now, action)
            if action.kind in REMAKES:
                _forbid_healed(seen, now)

        try:
            target = await read_target(self._api, job, self._limits)
        except NotFoundError:
            return await self._act_on_gone(job, name, action, fence)
        judge(target)
        return await self._do(job, target, action, fence, judge)

    async def _do(self, job: Job, target: Target, action: Action, fence: Fence, judge: Judge) -> Outcome:
        if action.kind in NODE_ACTIONS:
            own = functools.partial(self._own, job)
            return await self._nodes.perform(action, fence, own)
        if action.kind is ActionKind.DELETE_POD:
            return await self._changer.pods(job, target, action, fence, judge)
        if action.kind not in REMAKES:
            return await self._changer.resize(job, target, action, fence, judge)
        if target.name.kind.rolls:
            return await self._changer.roll(job, target, action, fence, judge)
        name = _name_of(job)
        self._sight.remaking.add(name.id)
        try:
            return await self._remaker.begin(job, target, action, fence, judge)
        finally:
            self._sight.remaking.discard(name.id)

    async def _act_on_gone(self, job: Job, name: JobName, action: Action, fence: Fence) -> Outcome:
        """A failed job whose object Kubernetes removed after its end can be made again from what was seen of it."""
        seen = (await self._sight.observe([job]))[job.ref]
        if action.kind in NODE_ACTIONS:
            return await self._nodes.perform(action, fence, functools.partial(self._own, job))
        known = self._sight.informer(name.kind, name.namespace).deleted(name.namespace, name.name)
        same = seen.incarnation is not None and seen.incarnation.token == action.incarnation.token
        if action.kind not in REMAKES or not same or seen.liveness is not Liveness.FAILED or known is None:
            raise RefusedError(f"{name.id} is {seen.liveness} ({seen.native}): there is nothing to act on")
        if not removed_by_itself(known):
            raise RefusedError(
                f"somebody deleted {name.id}: nothing in it says that Kubernetes removes it once it has failed"
                " (ttlSecondsAfterFinished); create it again to have it guarded"
            )
        return await self._remaker.from_saved(job, name, known, action, fence)


def _forbid_healed(seen: Observation | None, target: Target) -> None:
    """Refuse to restart what the guard last saw dead and what runs now, as the same incarnation.

    A stall is of a job that was seen to run; whether it has passed is for the guard to say.
    """
    if seen is None or seen.incarnation is None or seen.liveness is not Liveness.FAILED:
        return
    if seen.incarnation.token == target.incarnation.token and target.told.liveness is Liveness.RUNNING:
        raise RefusedError(
            f"{target.name.id} came back by itself: it was {seen.native}, now it is {target.told.native}"
        )


def _name_of(job: Job) -> JobName:
    try:
        return parse_job_id(job.ref.id)
    except ConfigError as error:
        raise NotFoundError(str(error)) from error
