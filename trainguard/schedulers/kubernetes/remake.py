"""Making a job again under its own name: mark, delete, wait until nothing of the old one can run, create.

Crash-safe by the name: two objects can't have one, and the new one bears the fence. What was begun can be
finished by any process that has the fence: the old object is marked before it is deleted, and its manifest
is kept before that.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import hashlib
import time

from trainguard.core.action import Action, Fence, Outcome, OutcomeStatus
from trainguard.core.errors import (
    AccessRefusedError,
    NotFoundError,
    RefusedError,
    SchedulerError,
    UnreachableError,
)
from trainguard.core.job import Job
from trainguard.schedulers.kubernetes import reading
from trainguard.schedulers.kubernetes.api import ClusterApi
from trainguard.schedulers.kubernetes.kinds import KINDS, JobName, Kind, parse_job_id
from trainguard.schedulers.kubernetes.manifest import changed, cleaned, marked
from trainguard.schedulers.kubernetes.node_view import read_node
from trainguard.schedulers.kubernetes.ownership import own_pods
from trainguard.schedulers.kubernetes.pods import nodes_of, read_pods
from trainguard.schedulers.kubernetes.reading import Limits, Scene
from trainguard.schedulers.kubernetes.state import incarnation, read_job
from trainguard.schedulers.kubernetes.store import ManifestStore, Saved
from trainguard.schedulers.kubernetes.target import Judge, Target, beside_schedule, nodes_by_name, read_target
from trainguard.transports.kube import Object
from trainguard.transports.kube_errors import ConflictError, LostAnswerError

CONFLICTS = 8
"""How often a change is tried again after somebody else wrote to the object."""


class Remaker:
    """Deletes and creates."""

    def __init__(self, api: ClusterApi, store: ManifestStore, limits: Limits, deadline: float) -> None:
        self._api, self._store, self._limits, self._deadline = api, store, limits, deadline

    async def begin(self, job: Job, target: Target, action: Action, fence: Fence, judge: Judge) -> Outcome:
        """Try it out, mark the old object, delete it, and go on to `finish`.

        `judge` is asked again about whatever somebody changed meanwhile.
        """
        await self._rehearse(target, self._manifest(job, target, action, fence), fence)
        try:
            saved = await self._delete(job, target, action, fence, judge)
        except (RefusedError, AccessRefusedError, NotFoundError):
            self._store.drop(_key(job))
            raise
        return await self.finish(job, saved)

    def keep(self, job: Job, name: JobName, obj: Object, action: Action, fence: Fence) -> Saved:
        """Keep what an object that is being deleted is to be made again from."""
        manifest = changed(name.kind, cleaned(name.kind, obj), action, job)
        notes = marked(obj, fence, action, action.incarnation.attempt + 1)
        manifest["metadata"].setdefault("annotations", {}).update(notes)
        saved = Saved(_key(job), reading.uid(obj), fence.token, manifest, reading.created(obj))
        self._store.save(saved)
        return saved

    async def from_saved(
        self, job: Job, name: JobName, manifest: Object, action: Action, fence: Fence
    ) -> Outcome:
        """Make again what is already gone, from what was last seen of it."""
        fresh = changed(name.kind, cleaned(name.kind, manifest), action, job)
        notes = marked(manifest, fence, action, action.incarnation.attempt + 1)
        fresh["metadata"].setdefault("annotations", {}).update(notes)
        uid, born = action.incarnation.token.partition("/")[0], reading.created(manifest)
        schedule = await beside_schedule(self._api, fresh, born)
        if schedule:
            raise RefusedError(f"{name.id} is not made again: {schedule}")
        await self._try(name.kind, fresh)
        saved = Saved(_key(job), uid, fence.token, fresh, born)
        self._store.save(saved)
        return await self.finish(job, saved)

    def _manifest(self, job: Job, target: Target, action: Action, fence: Fence) -> Object:
        manifest = changed(
            target.name.kind, cleaned(target.name.kind, target.obj), action, job, target.scene.pods or ()
        )
        notes = marked(target.obj, fence, action, target.incarnation.attempt + 1)
        manifest["metadata"].setdefault("annotations", {}).update(notes)
        return manifest

    async def _rehearse(self, target: Target, manifest: Object, fence: Fence) -> None:
        """Let the server judge the new object under another name, and the deletion, without doing either."""
        trial = copy.deepcopy(manifest)
        digest = hashlib.sha256(fence.token.encode()).hexdigest()[:8]
        trial["metadata"]["name"] = f"{target.name.name[:40].rstrip('.-')}-tg-{digest}"
        await self._try(target.name.kind, trial)
        await self._api.delete(target.name.kind, target.obj, "Foreground", dry_run=True)

    async def _try(self, kind: Kind, manifest: Object) -> None:
        """Let the server judge a creation without doing it."""
        try:
            await self._api.create(kind, manifest, dry_run=True)
        except (RefusedError, AccessRefusedError) as error:
            # the old one's share of the quota is free again once it is gone; some webhooks know no dry run
            if "exceeded quota" not in str(error) and "dry run" not in str(error):
                raise

    async def _delete(self, job: Job, target: Target, action: Action, fence: Fence, judge: Judge) -> Saved:
        """Keep, mark and delete exactly what was read; what changed meanwhile is judged and kept again.

        Raises RefusedError, AccessRefusedError and NotFoundError only where it was surely not deleted.
        """
        lost, saved = False, self._keep(job, target, action, fence)
        try:
            for _ in range(CONFLICTS):
                with contextlib.suppress(ConflictError, LostAnswerError):
                    if await self._answered(target.name.kind, await self._marked(target, action, fence)):
                        return saved
                    lost = True
                target = await self._judged(job, fence, judge)
                if reading.deleting(target.obj):
                    return saved
                saved = self._keep(job, target, action, fence)
            raise RefusedError(f"{target.name.id} changes faster than it can be judged")
        except NotFoundError:
            if not lost:
                raise
        except (RefusedError, AccessRefusedError) as error:
            if not lost:
                raise
            raise UnreachableError(f"{error}; a deletion was sent and its answer lost") from error
        return saved

    def _keep(self, job: Job, target: Target, action: Action, fence: Fence) -> Saved:
        """Keep what it is to be made again from, before it is deleted."""
        manifest = self._manifest(job, target, action, fence)
        saved = Saved(_key(job), reading.uid(target.obj), fence.token, manifest, reading.created(target.obj))
        self._store.save(saved)
        return saved

    async def _marked(self, target: Target, action: Action, fence: Fence) -> Object:
        """Leave the fence on the old object, unless it bears it."""
        kind, obj = target.name.kind, target.obj
        if fence.token in reading.fences(obj):
            return obj
        return await self._api.patch(kind, obj, {"metadata": {"annotations": marked(obj, fence, action)}})

    async def _answered(self, kind: Kind, obj: Object) -> bool:
        """Delete; tell whether that was answered. Else it may have happened, or yet happen."""
        try:
            await self._api.delete(kind, obj, "Foreground", unchanged=True)
        except LostAnswerError:
            return False
        return True

    async def _judged(self, job: Job, fence: Fence, judge: Judge) -> Target:
        """Read again what a write failed on."""
        try:
            target = await read_target(self._api, job, self._limits)
        except AccessRefusedError as error:
            raise UnreachableError(str(error)) from error
        if not (reading.deleting(target.obj) and fence.token in reading.fences(target.obj)):
            judge(target)
        return target

    async def finish(self, job: Job, saved: Saved) -> Outcome:
        """Wait until the old one is gone, then create the new one. Does nothing twice.

        The old one is deleted: whatever is refused from here on is tried again, else the job would be lost.
        """
        until, pause, why = time.monotonic() + self._deadline, 0.1, "time ran out"
        while time.monotonic() < until:
            try:
                done = await self._step(job, saved.name, saved)
            except LostAnswerError as error:
                return _outcome(saved, OutcomeStatus.UNKNOWN, f"the answer to the creation was lost: {error}")
            except SchedulerError as error:
                done = str(error)
            if isinstance(done, Outcome):
                self._store.drop(saved.job_id)
                return done
            why = done
            await asyncio.sleep(pause)
            pause = min(1.0, pause * 1.5)
        detail = f"{why}; doing it again with the same fence goes on from here"
        return _outcome(saved, OutcomeStatus.UNKNOWN, detail)

    async def _step(self, job: Job, name: JobName, saved: Saved) -> Outcome | str:
        """Go one step; give the outcome, or what is being waited for."""
        try:
            obj = await self._api.get(name.kind, name.namespace, name.name)
        except NotFoundError:
            obj = None
        if obj is not None and reading.uid(obj) != saved.uid:
            if saved.fence in reading.fences(obj):
                return self._done(job, name, obj, saved)
            return _outcome(saved, OutcomeStatus.REFUSED, f"{name.id} was made again by somebody else")
        left = await self._left(name, saved, obj)
        if obj is not None:
            return f"{name.id} is being deleted; left: {left or 'nothing but itself'}"
        if left:
            return f"pods of the old one are left: {left}"
        schedule = await beside_schedule(self._api, saved.manifest, saved.born)
        if schedule:
            return _outcome(saved, OutcomeStatus.REFUSED, f"{name.id} is not made again: {schedule}")
        return await self._create(job, name, saved)

    async def _create(self, job: Job, name: JobName, saved: Saved) -> Outcome | str:
        try:
            made = await self._api.create(name.kind, saved.manifest)
        except ConflictError:
            return f"{name.id} exists already"  # made or being deleted: the next step tells
        except (RefusedError, AccessRefusedError, NotFoundError) as error:
            if _namespace_ends(error, name.namespace):
                detail = f"namespace {name.namespace} was deleted, and {name.id} with it"
                return _outcome(saved, OutcomeStatus.REFUSED, detail)
            return f"the new one is refused: {error}"
        return self._done(job, name, made, saved)

    async def _left(self, name: JobName, saved: Saved, obj: Object | None) -> str:
        """Name pods of the old object that may still run; let go of those whose node is fenced."""
        if name.kind.name == "Pod":
            pods: tuple[Object, ...] = () if obj is None else (obj,)
        else:
            ghost = {**saved.manifest, "kind": name.kind.name}
            ghost["metadata"] = {**saved.manifest["metadata"], "uid": saved.uid}
            pods = own_pods(ghost, await self._api.list(KINDS["Pod"], name.namespace))
        views = [view for view in read_pods(Scene(time.time(), pods)) if not view.ended]
        nodes = await nodes_by_name(self._api, nodes_of(views))
        left = []
        for view in views:
            node, why = read_node(nodes, view.node), ""
            if node.fenced and not node.ready:
                why = await self._let_go(next(pod for pod in pods if reading.uid(pod) == view.uid))
            left.append(f"{view.name} on {view.node or 'no node'}{why}")
        return ", ".join(left)

    async def _let_go(self, pod: Object) -> str:
        """Delete a pod whose kubelet is off and will never confirm it; say what forbids that."""
        try:
            await self._api.delete(KINDS["Pod"], pod, grace=0)
        except (NotFoundError, ConflictError):
            return ""
        except AccessRefusedError as error:
            return f" (its node is off, but {error})"
        return ""

    def _done(self, job: Job, name: JobName, obj: Object, saved: Saved) -> Outcome:
        told = read_job(obj, Scene(time.time(), limits=self._limits))
        native_id = f"{name.kind.name.lower()}/{name.name} -n {name.namespace}"
        return Outcome(
            fence=saved.fence,
            status=OutcomeStatus.DONE,
            at=time.time(),
            detail=f"{name.id} was made again as {reading.uid(obj)}",
            incarnation=incarnation(job.ref, obj, told, native_id),
        )


def _key(job: Job) -> str:
    return parse_job_id(job.ref.id).id


def _namespace_ends(error: SchedulerError, namespace: str) -> bool:
    """Tell whether a creation was refused because its namespace is gone or going: it never comes back."""
    said = str(error)
    return (
        f'namespaces "{namespace}" not found' in said
        or f"in namespace {namespace} because it is being" in said
    )


def _outcome(saved: Saved, status: OutcomeStatus, detail: str) -> Outcome:
    return Outcome(fence=saved.fence, status=status, at=time.time(), detail=detail)
