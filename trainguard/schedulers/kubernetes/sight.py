"""What one process sees of one cluster: the informers, and observations made from them."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from trainguard.core.errors import ConfigError, NotFoundError, SchedulerError
from trainguard.core.job import Job, JobRef
from trainguard.core.masking import mask
from trainguard.core.observation import Liveness, Observation
from trainguard.schedulers.kubernetes import reading
from trainguard.schedulers.kubernetes.api import ClusterApi
from trainguard.schedulers.kubernetes.batch import newest_job
from trainguard.schedulers.kubernetes.informer import Informer, Sight
from trainguard.schedulers.kubernetes.kinds import KINDS, NODE, JobName, Kind, parse_job_id
from trainguard.schedulers.kubernetes.ownership import index_words, job_words, own_pods
from trainguard.schedulers.kubernetes.reading import Limits, Reading, Scene
from trainguard.schedulers.kubernetes.resources import memory_limit, time_limit
from trainguard.schedulers.kubernetes.state import incarnation, read_job, read_removed
from trainguard.schedulers.kubernetes.store import ManifestStore
from trainguard.transports.kube import Object

FIRST_LOOK_SECONDS = 15.0
"""How long a first look may wait for its list."""
BLINK_SECONDS = 0.5
"""How long a look waits for a stream that is being opened again."""
FRESH_SECONDS = 5.0
"""Older news decide nothing that the mere passing of time would decide: see `ClusterSight._said`."""
REFRESH_PATIENCE = 5.0
REUSE_SECONDS = 1.0
REMEMBERED = 5000


@dataclass(frozen=True)
class _Kept:
    """A reading and what it was made of: one change wakes every guard, and most have nothing new to read."""

    obj: Object
    scene: Scene
    observation: Observation

    def still(self, obj: Object, scene: Scene) -> bool:
        """Whether nothing has changed. Time alone changes verdicts too, though not within a second."""
        before, after = self.scene.pods, scene.pods
        if (
            obj is not self.obj
            or scene.nodes is not self.scene.nodes
            or scene.now - self.scene.now > REUSE_SECONDS
        ):
            return False
        if before is None or after is None:
            return before is after
        return len(before) == len(after) and all(
            one is other for one, other in zip(before, after, strict=True)
        )

    def since(self, obj: Object, scene: Scene) -> float:
        """Since when the object has been as it is, without a pod."""
        before, after = reading.meta(self.obj), reading.meta(obj)
        same = all(before.get(key) == after.get(key) for key in ("uid", "resourceVersion"))
        bare = not self.scene.pods and not scene.pods
        return scene.now if self.scene.since is None or not (same and bare) else self.scene.since


class ClusterSight:
    """The shared watch of one cluster."""

    def __init__(
        self, api: ClusterApi, cluster: str, limits: Limits, poll_seconds: float, store: ManifestStore
    ) -> None:
        self._api, self._cluster, self._limits, self._poll_seconds = api, cluster, limits, poll_seconds
        self._store = store
        self._informers: dict[tuple[str, str], Informer] = {}
        self._last: OrderedDict[JobRef, tuple[str, Observation]] = OrderedDict()
        self._asked: dict[JobRef, tuple[float, Observation]] = {}
        self._read: dict[JobRef, _Kept] = {}
        self._sequence = 0
        self._changed = asyncio.Condition()
        self._notify: asyncio.Task[None] | None = None
        self.remaking: set[str] = set()
        """Ids of jobs that this process is making again."""

    async def wait(self, since: int, timeout: float) -> int:
        """Return a new sequence number as soon as anything changed."""
        async with self._changed:
            try:
                await asyncio.wait_for(self._changed.wait_for(lambda: self._sequence > since), timeout)
            except TimeoutError:
                return since
            return self._sequence

    async def observe(self, jobs: Iterable[Job]) -> dict[JobRef, Observation]:
        """Look at many jobs; asks the cluster nothing where it is watched."""
        names, seen = dict[JobRef, JobName](), dict[JobRef, Observation]()
        for ref in dict.fromkeys(job.ref for job in jobs):
            try:
                names[ref] = parse_job_id(ref.id)
            except ConfigError as error:
                seen[ref] = self._unknown(ref, str(error))
        await self._look(names.values())
        for ref, name in names.items():
            seen[ref] = await self._one(ref, name)
        return seen

    def last(self, ref: JobRef) -> Observation | None:
        """Give what was last read of a job."""
        return self._last.get(ref, ("", None))[1]

    def being_remade(self, job_id: str, uid: str = "") -> bool:
        """Whether a job that is not there is being made again: by this process now, or by what was kept of it.

        `uid` is that of its last object, where it was seen: what was kept may be of an earlier one.
        """
        if job_id in self.remaking:
            return True
        saved = self._store.load(job_id)
        return saved is not None and uid in ("", saved.uid)

    def informer(self, kind: Kind, namespace: str) -> Informer:
        """Give the informer of a kind in a namespace, begun."""
        key = (kind.name, namespace)
        if key not in self._informers:
            index = index_words if kind.name in ("Pod", "Job") else lambda obj: ()
            made = Informer(self._api, kind, namespace, self._on_change, self._poll_seconds, index)
            self._informers[key] = made
            made.start()
        return self._informers[key]

    def scene(self, obj: Object) -> Scene:
        """Gather what is known beside an object."""
        namespace = str(reading.meta(obj).get("namespace") or "")
        pods = self.informer(KINDS["Pod"], namespace)
        nodes = self.informer(NODE, "")
        return Scene(
            now=time.time(),
            pods=own_pods(obj, pods.indexed(job_words(obj))) if pods.seeing else None,
            nodes=nodes.named() if nodes.seeing else None,
            limits=self._limits,
        )

    async def close(self) -> None:
        """End all watches."""
        await asyncio.gather(*(one.stop() for one in self._informers.values()))
        if self._notify is not None:
            await asyncio.gather(self._notify, return_exceptions=True)

    def _on_change(self) -> None:
        """Wake the waiting guards, once for all changes of one turn of the loop."""
        self._sequence += 1
        if self._notify is None or self._notify.done():
            self._notify = asyncio.create_task(self._wake())

    async def _wake(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    async def _look(self, names: Iterable[JobName]) -> None:
        wanted = {(name.kind.name, name.namespace): name.kind for name in names}
        wanted |= {("Pod", namespace): KINDS["Pod"] for _, namespace in wanted}
        wanted |= {("Job", namespace): KINDS["Job"] for kind, namespace in wanted if kind == "CronJob"}
        if not wanted:
            return
        informers = [self.informer(kind, namespace) for (_, namespace), kind in wanted.items()]
        informers.append(self.informer(NODE, ""))
        await asyncio.gather(
            *(
                one.ready(FIRST_LOOK_SECONDS if one.sight is Sight.STARTING else BLINK_SECONDS)
                for one in informers
            )
        )

    async def _one(self, ref: JobRef, name: JobName) -> Observation:
        informer, pods = self.informer(name.kind, name.namespace), self.informer(KINDS["Pod"], name.namespace)
        if informer.sight is Sight.FORBIDDEN:
            return await self._by_name(ref, name, informer)
        for _ in range(2):
            if informer.sight is Sight.ABSENT or not informer.seeing:
                return self._unknown(ref, str(informer.error or "the watch is being opened again"))
            obj = informer.get(name.namespace, name.name)
            if obj is None:
                return self._missing(ref, name, informer)
            if not pods.seeing and pods.sight is not Sight.FORBIDDEN:
                return self._unknown(ref, f"pods: {pods.error or 'the watch is being opened again'}")
            if name.kind.name == "CronJob" and self.being_remade(name.id):
                return self._recreating(ref)  # its newest Job may be an older one by now
            said = self._said(ref, name, obj, str(informer.sight))
            if said is not None:
                return said
            await self._refresh(name)
        return self._silent(ref, name)

    async def _refresh(self, name: JobName) -> None:
        await asyncio.gather(*(one.refresh(REFRESH_PATIENCE) for one in self._sources(name)))

    def _sources(self, name: JobName) -> list[Informer]:
        """Give the informers that a reading of a job rests on and that see."""
        kinds = [(name.kind, name.namespace), (KINDS["Pod"], name.namespace), (NODE, "")]
        if name.kind.name == "CronJob":
            kinds.append((KINDS["Job"], name.namespace))
        return [one for one in (self.informer(*kind) for kind in kinds) if one.seeing]

    def _silent(self, ref: JobRef, name: JobName) -> Observation:
        heard = min((one.heard for one in self._sources(name)), default=0.0)
        return self._unknown(ref, f"the cluster has said nothing for {time.time() - heard:.0f} s")

    def _said(self, ref: JobRef, name: JobName, obj: Object, source: str) -> Observation | None:
        """Read a job. None where the verdict is another than when the cluster was last heard, though all that
        has happened since is that time has passed: then it must be asked first.
        """
        obj = self._speaker(name, obj)
        kept = self._read.get(ref)
        scene = self.scene(obj)
        scene = replace(scene, since=scene.now if kept is None else kept.since(obj, scene))
        if kept is not None and kept.still(obj, scene):
            return kept.observation.model_copy(update={"at": scene.now})
        told = read_job(obj, scene)
        dark = self._dark(obj, scene, told)
        if dark:
            return self._unknown(ref, dark)
        heard = min((one.heard for one in self._sources(name)), default=scene.now)
        if scene.now - heard > FRESH_SECONDS:
            then = read_job(obj, replace(scene, now=heard))
            if _verdict(then) != _verdict(told):
                return None
        made = self._observation(ref, name, obj, told, source, scene.pods or ())
        self._read[ref] = _Kept(obj, scene, made)
        self._last[ref] = (reading.uid(obj), made)
        self._last.move_to_end(ref)
        while len(self._last) > REMEMBERED:
            self._read.pop(self._last.popitem(last=False)[0], None)
        return made

    def _dark(self, obj: Object, scene: Scene, told: Reading) -> str:
        """Say why nodes can't be seen where that matters; those that may not be seen are held against nobody."""
        nodes = self.informer(NODE, "")
        if scene.nodes is not None or nodes.sight is Sight.FORBIDDEN:
            return ""
        if _verdict(read_job(obj, replace(scene, nodes={}))) == _verdict(told):
            return ""  # it would be the same if none of its nodes were there
        return f"nodes: {nodes.error or 'the watch is being opened again'}"

    def _speaker(self, name: JobName, obj: Object) -> Object:
        """A CronJob is what its newest Job is."""
        if name.kind.name != "CronJob":
            return obj
        return newest_job(self.informer(KINDS["Job"], name.namespace).indexed([reading.uid(obj)])) or obj

    def _missing(self, ref: JobRef, name: JobName, informer: Informer) -> Observation:
        """Tell finished and vanished, deleted by somebody, being made again, and never heard of apart."""
        gone = informer.deleted(name.namespace, name.name)
        if self.being_remade(name.id, reading.uid(gone or {})):
            return self._recreating(ref)
        if gone is None:
            return Observation(
                job=ref, at=time.time(), source=str(informer.sight), liveness=Liveness.GONE, native="NotFound"
            )
        uid, last = self._last.get(ref, ("", None))
        if last is not None and uid == reading.uid(gone) and last.liveness.terminal:
            # a finished object may be removed by its time to live
            return last.model_copy(
                update={"at": time.time(), "reason": f"{last.reason}; the object was removed"}
            )
        told = read_removed(gone, self.scene(gone))
        if told.restart_underway:
            return self._recreating(ref)
        made = self._observation(ref, name, gone, told, str(informer.sight), ())
        self._last[ref] = (reading.uid(gone), made)
        return made

    def _recreating(self, ref: JobRef) -> Observation:
        return Observation(
            job=ref,
            at=time.time(),
            source="guard",
            liveness=Liveness.PENDING,
            native="Recreating",
            restart_underway=True,
        )

    async def _by_name(self, ref: JobRef, name: JobName, informer: Informer) -> Observation:
        """Listing is refused: read the one object, no more often than one polls."""
        at, last = self._asked.get(ref, (float("-inf"), None))
        if last is not None and time.monotonic() - at < self._poll_seconds:
            return last
        try:
            obj = await self._api.get(name.kind, name.namespace, name.name)
            said = self._said(ref, name, obj, "get")
            if said is None:
                await self._refresh(name)
                said = self._said(ref, name, obj, "get")
            made = said or self._silent(ref, name)
        except NotFoundError:
            if self.being_remade(name.id):
                return self._recreating(ref)
            made = Observation(
                job=ref, at=time.time(), source="get", liveness=Liveness.GONE, native="NotFound"
            )
        except SchedulerError as error:
            return self._unknown(ref, f"{informer.error}; {error}")
        self._asked[ref] = (time.monotonic(), made)
        return made

    def _unknown(self, ref: JobRef, why: str) -> Observation:
        return Observation(
            job=ref, at=time.time(), source="watch", liveness=Liveness.UNKNOWN, native="", reason=why
        )

    def _observation(
        self, ref: JobRef, name: JobName, obj: Object, told: Reading, source: str, pods: Sequence[Object]
    ) -> Observation:
        kind = KINDS.get(str(obj.get("kind")), name.kind)
        native_id = f"{str(obj.get('kind')).lower()}/{reading.name(obj)} -n {name.namespace}"
        return Observation(
            job=ref,
            at=time.time(),
            source=source,
            liveness=told.liveness,
            native=told.native,
            reason=mask(told.reason)[:2000],
            incarnation=incarnation(ref, obj, told, native_id),
            exit_code=told.exit_code,
            exit_signal=told.exit_signal,
            oom_killed=told.oom_killed,
            nodes=told.nodes,
            bad_nodes=told.bad_nodes,
            restart_underway=told.restart_underway,
            stuck=told.stuck,
            warning=mask(told.warning)[:2000],
            memory_limit=memory_limit(kind, obj, pods),
            time_limit=time_limit(kind, obj),
        )


def _verdict(told: Reading) -> tuple[Liveness, bool, bool]:
    return told.liveness, bool(told.stuck), told.restart_underway
