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
    UnreachableError,
)
from trainguard.core.job import Job
from trainguard.schedulers.kubernetes import reading
from trainguard.schedulers.kubernetes.api import ClusterApi
from trainguard.schedulers.kubernetes.kinds import KINDS, JobName
from trainguard.schedulers.kubernetes.manifest import changed, cleaned, marked
from trainguard.schedulers.kubernetes.node_view import read_node
from trainguard.schedulers.kubernetes.ownership import own_pods
from trainguard.schedulers.kubernetes.pods import nodes_of, read_pods
from trainguard.schedulers.kubernetes.reading import Limits, Scene
from trainguard.schedulers.kubernetes.state import incarnation, read_job
from trainguard.schedulers.kubernetes.store import ManifestStore, Saved
from trainguard.schedulers.kubernetes.target import Target, forbid, nodes_by_name, read_target
from trainguard.transports.kube import Object
from trainguard.transports.kube_errors import ConflictError, LostAnswerError

CONFLICTS = 8
"""How often a change is tried again after somebody else wrote to the object."""


class Remaker:
    """Deletes and creates."""

    def __init__(self, api: ClusterApi, store: ManifestStore, limits: Limits, deadline: float) -> None:
        self._api, self._store, self._limits, self._deadline = api, store, limits, deadline

    async def begin(self, job: Job, target: Target, action: Action, fence: Fence) -> Outcome:
        """Try it out, mark the old object, delete it, and go on to `finish`."""
        manifest = self._manifest(job, target, action, fence)
        await self._rehearse(target, manifest, fence)
        self._store.save(Saved(target.name.id, reading.uid(target.obj), fence.token, manifest))
        try:
            await self._delete(job, target, action, fence)
        except (RefusedError, AccessRefusedError, NotFoundError):
            self._store.drop(target.name.id)
            raise
        return await self.finish(job, target.name, fence)

    def keep(self, job: Job, name: JobName, obj: Object, action: Action, fence: Fence) -> None:
        """Keep what an object that is being deleted is to be made again from."""
        manifest = changed(name.kind, cleaned(name.kind, obj), action, job)
        notes = marked(obj, fence, action, action.incarnation.attempt + 1)
        manifest["metadata"].setdefault("annotations", {}).update(notes)
        self._store.save(Saved(name.id, reading.uid(obj), fence.token, manifest))

    async def from_saved(
        self, job: Job, name: JobName, manifest: Object, action: Action, fence: Fence
    ) -> Outcome:
        """Make again what is already gone, from a manifest that was kept or given."""
        fresh = changed(name.kind, cleaned(name.kind, manifest), action, job)
        notes = marked(manifest, fence, action, action.incarnation.attempt + 1)
        fresh["metadata"].setdefault("annotations", {}).update(notes)
        self._store.save(Saved(name.id, action.incarnation.token.partition("/")[0], fence.token, fresh))
        return await self.finish(job, name, fence)

    def _manifest(self, job: Job, target: Target, action: Action, fence: Fence) -> Object:
        manifest = changed(target.name.kind, cleaned(target.name.kind, target.obj), action, job)
        notes = marked(target.obj, fence, action, target.incarnation.attempt + 1)
        manifest["metadata"].setdefault("annotations", {}).update(notes)
        return manifest

    async def _rehearse(self, target: Target, manifest: Object, fence: Fence) -> None:
        """Let the server judge the new object under another name, and the deletion, without doing either."""
        trial = copy.deepcopy(manifest)
        digest = hashlib.sha256(fence.token.encode()).hexdigest()[:8]
        trial["metadata"]["name"] = f"{target.name.name[:40].rstrip('.-')}-tg-{digest}"
        try:
            await self._api.create(target.name.kind, trial, dry_run=True)
        except (RefusedError, AccessRefusedError) as error:
            # the old one's share of the quota is free again once it is gone; some webhooks know no dry run
            if "exceeded quota" not in str(error) and "dry run" not in str(error):
                raise
        await self._api.delete(target.name.kind, target.obj, "Foreground", dry_run=True)

    async def _delete(self, job: Job, target: Target, action: Action, fence: Fence) -> None:
        """Mark and delete exactly what was read; what changed meanwhile is judged again."""
        for _ in range(CONFLICTS):
            kind, obj = target.name.kind, target.obj
            if reading.deleting(obj):
                return
            try:
                if fence.token not in reading.fences(obj):
                    obj = await self._api.patch(
                        kind, obj, {"metadata": {"annotations": marked(obj, fence, action)}}
                    )
                await self._api.delete(kind, obj, "Foreground", unchanged=True)
            except (ConflictError, LostAnswerError):
                try:
                    target = await read_target(self._api, job, self._limits)
                except NotFoundError:
                    return
                if not (reading.deleting(target.obj) and fence.token in reading.fences(target.obj)):
                    forbid(target, action)
            else:
                return
        raise RefusedError(f"{target.name.id} changes faster than it can be judged")

    async def finish(self, job: Job, name: JobName, fence: Fence) -> Outcome:
        """Wait until the old one is gone, then create the new one. Does nothing twice."""
        saved = self._store.load(name.id)
        if saved is None or saved.fence != fence.token:
            return _unknown(fence, "the old object is gone and no manifest was kept for this fence")
        until, pause, why = time.monotonic() + self._deadline, 0.1, "time ran out"
        while time.monotonic() < until:
            try:
                done = await self._step(job, name, saved, fence)
            except LostAnswerError as error:
                return _unknown(fence, f"the answer to the creation was lost: {error}")
            except UnreachableError as error:
                done, why = None, str(error)
            if isinstance(done, Outcome):
                self._store.drop(name.id)
                return done
            why = done or why
            await asyncio.sleep(pause)
            pause = min(1.0, pause * 1.5)
        return _unknown(fence, f"{why}; doing it again with the same fence goes on from here")

    async def _step(self, job: Job, name: JobName, saved: Saved, fence: Fence) -> Outcome | str:
        """Go one step; give the outcome, or what is being waited for."""
        try:
            obj = await self._api.get(name.kind, name.namespace, name.name)
        except NotFoundError:
            obj = None
        if obj is not None and fence.token in reading.fences(obj) and reading.uid(obj) != saved.uid:
            return self._done(job, name, obj, fence)
        if obj is not None and reading.uid(obj) != saved.uid:
            raise RefusedError(f"{name.id} was made again by somebody else")
        left = await self._left(name, saved)
        if obj is not None:
            return f"{name.id} is being deleted; left: {left or 'nothing but itself'}"
        if left:
            return f"pods of the old one are left: {left}"
        with contextlib.suppress(ConflictError):  # made or being deleted: the next step tells
            return self._done(job, name, await self._api.create(name.kind, saved.manifest), fence)
        return f"{name.id} exists already"

    async def _left(self, name: JobName, saved: Saved) -> str:
        """Name pods of the old object that may still run; let go of those whose node is fenced."""
        ghost = {**saved.manifest, "kind": name.kind.name}
        ghost["metadata"] = {**saved.manifest["metadata"], "uid": saved.uid}
        if name.kind.name == "Pod":
            return ""
        pods = own_pods(ghost, await self._api.list(KINDS["Pod"], name.namespace))
        views = [view for view in read_pods(Scene(time.time(), pods)) if not view.ended]
        nodes = await nodes_by_name(self._api, nodes_of(views))
        left = []
        for view in views:
            node = read_node(nodes, view.node)
            if node.fenced and not node.ready:
                pod = next(one for one in pods if reading.uid(one) == view.uid)
                with contextlib.suppress(NotFoundError, ConflictError):
                    await self._api.delete(KINDS["Pod"], pod, grace=0)
            left.append(f"{view.name} on {view.node or 'no node'}")
        return ", ".join(left)

    def _done(self, job: Job, name: JobName, obj: Object, fence: Fence) -> Outcome:
        told = read_job(obj, Scene(time.time(), limits=self._limits))
        native_id = f"{name.kind.name.lower()}/{name.name} -n {name.namespace}"
        return Outcome(
            fence=fence.token,
            status=OutcomeStatus.DONE,
            at=time.time(),
            detail=f"{name.id} was made again as {reading.uid(obj)}",
            incarnation=incarnation(job.ref, obj, told, native_id),
        )


def _unknown(fence: Fence, detail: str) -> Outcome:
    return Outcome(fence=fence.token, status=OutcomeStatus.UNKNOWN, at=time.time(), detail=detail)
