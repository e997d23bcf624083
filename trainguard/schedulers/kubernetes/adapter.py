"""The Kubernetes adapter."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from trainguard.core.action import Access, Action, ActionKind, Fence, Outcome
from trainguard.core.checkpoint import Checkpoint
from trainguard.core.errors import AccessRefusedError, ConfigError, NotFoundError, RefusedError
from trainguard.core.evidence import Evidence
from trainguard.core.job import Job, JobRef
from trainguard.core.observation import LogBatch, Observation
from trainguard.schedulers.base import Scheduler, Wakes
from trainguard.schedulers.kubernetes import patrol, volumes
from trainguard.schedulers.kubernetes.actions import Actions
from trainguard.schedulers.kubernetes.api import ClusterApi
from trainguard.schedulers.kubernetes.evidence import Collector
from trainguard.schedulers.kubernetes.kinds import JobName, parse_job_id
from trainguard.schedulers.kubernetes.logs import PodLogs
from trainguard.schedulers.kubernetes.reading import Limits
from trainguard.schedulers.kubernetes.rights import (
    SUPPORTED,
    Rights,
    needed,
    reading_logs,
    rule,
    senseless,
    watching,
)
from trainguard.schedulers.kubernetes.sight import ClusterSight
from trainguard.schedulers.kubernetes.store import ManifestStore
from trainguard.schedulers.kubernetes.target import pods_of, resolve
from trainguard.transports.kube import Kube, Object
from trainguard.transports.kube_access import KubeAccess

ACTION_SECONDS = 120.0
"""How long an action may wait for old pods to go before it answers that the end is not known."""


class KubernetesScheduler(Scheduler, Wakes):
    """Jobs of one Kubernetes cluster, seen by watch."""

    name: ClassVar[str] = "kubernetes"
    supports: ClassVar[frozenset[ActionKind]] = SUPPORTED
    poll_seconds: ClassVar[float] = 10.0

    def __init__(
        self,
        cluster: str,
        access: KubeAccess,
        manifest_folder: Path | None = None,
        limits: Limits | None = None,
        action_seconds: float = ACTION_SECONDS,
        volumes_here: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(cluster)
        limits = limits or Limits()
        self._kube = Kube(access)
        self._api = ClusterApi(self._kube)
        store = ManifestStore(manifest_folder)
        self._sight = ClusterSight(self._api, cluster, limits, self.poll_seconds, store)
        self._rights = Rights(self._kube)
        self._logs = PodLogs(self._kube)
        self._collector = Collector(self._api, self._logs)
        self._actions = Actions(self._api, self._sight, store, limits, action_seconds)
        self._volumes = dict(volumes_here or {})
        self._closed = False

    @property
    def requests(self) -> int:
        """Requests sent to the API server so far."""
        return self._kube.requests

    async def validate(self, job: Job) -> Access:
        """See `Scheduler.validate`."""
        self._open()
        name = _name_of(job)
        await self._api.get(name.kind, name.namespace, name.name)
        unseen = await self._rights.missing(watching(name.kind, name.namespace))
        unread = await self._rights.missing([reading_logs(name.namespace)])
        impossible: dict[ActionKind, str] = {}
        for action in sorted(self.supports):
            why = senseless(action, name.kind)
            lacking = [] if why else await self._rights.missing(needed(action, name.kind, name.namespace))
            if why or lacking:
                impossible[action] = why or f"no right to {', '.join(map(str, lacking))}: {rule(lacking)}"
        return Access(
            job_seen=True,
            logs_readable=not unread,
            possible=self.supports - set(impossible),
            impossible=impossible,
            warnings=tuple(f"no right to {right}: {rule([right])}" for right in (*unseen, *unread)),
        )

    async def observe(self, jobs: Sequence[Job]) -> Mapping[JobRef, Observation]:
        """See `Scheduler.observe`."""
        self._open()
        return await self._sight.observe(jobs)

    async def wait(self, since: int, timeout: float) -> int:
        """See `Wakes.wait`."""
        self._open()
        return await self._sight.wait(since, timeout)

    async def logs(self, job: Job, cursor: str = "", limit: int = 1_000_000) -> LogBatch:
        """See `Scheduler.logs`: all containers of all pods."""
        self._open()
        pods = await self._pods(job)
        return await self._logs.read(pods, cursor, limit)

    async def collect(self, job: Job, observation: Observation) -> Sequence[Evidence]:
        """See `Scheduler.collect`."""
        self._open()
        name = _name_of(job)
        informer = self._sight.informer(name.kind, name.namespace)
        try:
            name = await resolve(self._api, name)
            obj = await self._api.get(name.kind, name.namespace, name.name)
        except NotFoundError:
            gone = informer.deleted(name.namespace, name.name)
            if gone is None:
                raise
            obj = gone
        try:
            pods = await pods_of(self._api, obj)
        except AccessRefusedError:
            pods = ()
        return await self._collector.collect(obj, pods)

    async def checkpoints(self, job: Job) -> tuple[Checkpoint, ...] | None:
        """See `Scheduler.checkpoints`: on the volumes that are mounted here too."""
        self._open()
        if job.checkpoints is None or not self._volumes:
            return None
        seen = (await self._sight.observe([job]))[job.ref]
        writing = not seen.liveness.terminal
        return await asyncio.to_thread(volumes.look, job.checkpoints, self._volumes, writing=writing)

    async def perform(self, job: Job, action: Action, fence: Fence) -> Outcome:
        """See `Scheduler.perform`. What was begun under this fence is finished."""
        self._open()
        if action.kind not in self.supports:
            raise RefusedError(f"{self.name} can't do {action.kind}")
        return await self._perform(job, action, fence)

    async def _perform(self, job: Job, action: Action, fence: Fence) -> Outcome:
        return await self._actions.perform(job, action, fence)

    async def find(self, job: Job, fence: Fence) -> Outcome | None:
        """See `Scheduler.find`."""
        self._open()
        return await self._actions.find(job, fence)

    async def discover(self, selector: str) -> Sequence[JobRef]:
        """See `Scheduler.discover`; the selector's words are in `patrol`."""
        self._open()
        names = await patrol.discover(self._api, patrol.parse_selector(selector))
        return [JobRef(scheduler=self.name, cluster=self.cluster, id=name.id) for name in names]

    async def close(self) -> None:
        """See `Scheduler.close`."""
        if not self._closed:
            self._closed = True
            await self._sight.close()
            await self._kube.close()

    async def _pods(self, job: Job) -> Sequence[Object]:
        """Give the job's pods: from the watch where it sees, else afresh."""
        name = _name_of(job)
        informer = self._sight.informer(name.kind, name.namespace)
        obj = informer.get(name.namespace, name.name) if informer.seeing else None
        if obj is None or name.kind.name == "CronJob":
            name = await resolve(self._api, name)
            obj = await self._api.get(name.kind, name.namespace, name.name)
        known = self._sight.scene(obj).pods
        return known if known is not None else await pods_of(self._api, obj)

    def _open(self) -> None:
        if self._closed:
            raise RuntimeError("this Kubernetes adapter was closed")


def _name_of(job: Job) -> JobName:
    try:
        return parse_job_id(job.ref.id)
    except ConfigError as error:
        raise NotFoundError(str(error)) from error
