"""One list and watch of one kind in one namespace, shared by every guarded job of the process.

List, then watch from the list's resourceVersion, so that nothing between the two is lost; bookmarks move the
mark on; a mark that is too old (410, as HTTP or as an ERROR event) means listing again, with jitter, for all
guards of a cluster see it at the same time. Objects are kept by uid: a name can be made again.
https://kubernetes.io/docs/reference/using-api/api-concepts/#efficient-detection-of-changes
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterable
from enum import StrEnum

from trainguard.core.errors import (
    AccessRefusedError,
    NotFoundError,
    SchedulerError,
    UnreachableError,
    UserError,
)
from trainguard.schedulers.kubernetes import reading
from trainguard.schedulers.kubernetes.api import ClusterApi
from trainguard.schedulers.kubernetes.kinds import Kind
from trainguard.transports.kube import Object
from trainguard.transports.kube_errors import ExpiredError

logger = logging.getLogger(__name__)

PAGE = 500
WATCH_SECONDS = 290
RESYNC_SECONDS = 1800.0
"""After so long everything is listed again, in case an event was lost where nobody could see it."""
KEPT = 500
"""Deleted objects that are remembered: a finished Job may vanish by its own time to live."""
STALE_SECONDS = 60.0
POLLS = 30
"""Polls after which watching is tried again."""
WORDLESS = 3
"""Streams that end as soon as they begin, in a row, after which it polls: something in between allows none."""
REFRESH_SECONDS = 10.0
"""How often at most everything is listed again because somebody needs to know it afresh."""
RECONNECT_GRACE = 1.0
"""For how long a stream that has just ended may be without a successor and still count as seeing."""


class Sight(StrEnum):
    """How well a kind can be seen."""

    STARTING = "starting"
    WATCHING = "watching"
    POLLING = "polling"
    """Watching is not allowed, listing is."""
    FORBIDDEN = "forbidden"
    ABSENT = "absent"
    """The cluster has no such kind."""
    BLIND = "blind"


class Informer:
    """Keeps the objects of one kind in one namespace (empty: all) as the cluster has them."""

    def __init__(
        self,
        api: ClusterApi,
        kind: Kind,
        namespace: str,
        changed: Callable[[], None],
        poll_seconds: float = 10.0,
        index: Callable[[Object], Iterable[str]] = lambda obj: (),
    ) -> None:
        self.kind, self.namespace = kind, namespace
        self.sight = Sight.STARTING
        self.error: SchedulerError | None = None
        self.relists = 0
        self.heard = 0.0
        """When (seconds since the epoch) the cluster last said something: what is held was true then. A stream
        that is cut without a word, or one of a quiet cluster, is silent for a minute and more.
        """
        self._api, self._changed, self._poll_seconds = api, changed, poll_seconds
        self._keys = index
        self._objects: dict[str, Object] = {}
        self._names: dict[tuple[str, str], str] = {}
        self._indexed: defaultdict[str, set[str]] = defaultdict(set)
        self._gone: OrderedDict[str, Object] = OrderedDict()
        self._gone_names: OrderedDict[tuple[str, str], str] = OrderedDict()
        self._named: dict[str, Object] | None = None
        self._settled = asyncio.Event()
        self._ended_at: float | None = None
        self._listed_at = 0.0
        self._refreshed_at = float("-inf")
        self._resync = RESYNC_SECONDS * random.uniform(0.8, 1.2)  # noqa: S311 - spreads load, no secret
        self._polls_left = self._wordless = 0
        self._version = ""
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to watch; does nothing if it was begun."""
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name=f"watch {self.kind.plural} {self.namespace}")

    async def stop(self) -> None:
        """End the watch and wait until its task is gone."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def ready(self, timeout: float) -> bool:
        """Wait until it sees, or knows why not. Tells whether it sees."""
        if not self.seeing:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._settled.wait(), timeout)
        return self.seeing

    async def refresh(self, timeout: float) -> None:
        """List again and wait for it: once for all who ask, and not again and again."""
        now = asyncio.get_running_loop().time()
        if now - self._refreshed_at > REFRESH_SECONDS:
            self._refreshed_at = now
            self._settled.clear()
            try:
                await self.stop()
            finally:
                self._version = ""
                self.start()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._settled.wait(), timeout)

    @property
    def seeing(self) -> bool:
        """Whether what it holds is what the cluster has."""
        if self.sight not in (Sight.WATCHING, Sight.POLLING):
            return False
        ended = self._ended_at
        return ended is None or asyncio.get_running_loop().time() - ended < RECONNECT_GRACE

    def get(self, namespace: str, name: str) -> Object | None:
        """Give the object that has a name now."""
        return self._objects.get(self._names.get((namespace, name), ""))

    def deleted(self, namespace: str, name: str) -> Object | None:
        """Give the last state of the newest deleted object of a name."""
        return self._gone.get(self._gone_names.get((namespace, name), ""))

    def indexed(self, words: Iterable[str]) -> list[Object]:
        """Give the objects for which the index names one of some words."""
        found = {uid for word in words for uid in self._indexed.get(word, ())}
        return [self._objects[uid] for uid in sorted(found)]

    def named(self) -> dict[str, Object]:
        """Give every object by its name; for kinds without namespaces. Not to be changed."""
        if self._named is None:
            self._named = {reading.name(obj): obj for obj in self._objects.values()}
        return self._named

    async def _run(self) -> None:
        failures = 0
        while True:
            began = asyncio.get_running_loop().time()
            try:
                await self._round()
                failures = 0
            except ExpiredError:
                self._version = ""
                await asyncio.sleep(random.uniform(0.05, 1.0))  # noqa: S311 - spreads load, no secret
            except UserError as error:
                self._blind(Sight.BLIND, SchedulerError(str(error)))
                await asyncio.sleep(30)
            except Exception as error:
                if not isinstance(error, SchedulerError):
                    logger.exception("an answer of the cluster could not be understood")
                    error = UnreachableError(f"{type(error).__name__}: {error}")
                    self._version = ""
                # a stream that lived for a while and broke is one failure, whatever came before
                lived = asyncio.get_running_loop().time() - began > 5
                failures = 1 if lived else failures + 1
                await self._failed(error, failures)

    async def _round(self) -> None:
        """List where that is due, then watch one stream to its end, or wait where watching is refused."""
        if not self._version or self._due():
            await self._list()
        if self._polls_left:
            self._polls_left -= 1
            self._version = ""
            await asyncio.sleep(self._poll_seconds * random.uniform(0.9, 1.1))  # noqa: S311
        elif await self._stream():
            self._wordless = 0
        else:
            self._wordless += 1
            if self._wordless == WORDLESS:
                self._wordless, self._polls_left, self._ended_at = 0, POLLS, None
                self._see(Sight.POLLING)

    async def _failed(self, error: SchedulerError, failures: int) -> None:
        if isinstance(error, AccessRefusedError) and "cannot watch" in str(error) and self._listed_at:
            self._polls_left = POLLS
            self._see(Sight.POLLING)
            return
        self.error = error
        now = asyncio.get_running_loop().time()
        broke = self.sight is Sight.WATCHING and isinstance(error, UnreachableError)
        self._ended_at = self._ended_at or now
        if not broke or failures > 1:
            self._blind(_sight_of(error), error)
        if self.sight is not Sight.BLIND or now - self._ended_at > STALE_SECONDS:
            # the mark may be one of another age of the cluster: a watch from the future is silent
            self._version = ""
        await asyncio.sleep(_pause(self.sight, failures))

    def _due(self) -> bool:
        return asyncio.get_running_loop().time() - self._listed_at > self._resync

    async def _list(self) -> None:
        seen, token, began = dict[str, Object](), "", time.time()
        while True:
            page = await self._api.page(self.kind, self.namespace, PAGE, token)
            for item in page.get("items") or []:
                item["kind"] = self.kind.name
                seen[reading.uid(item)] = item
            token = str((page.get("metadata") or {}).get("continue") or "")
            if not token:
                break
        self._version = str((page.get("metadata") or {}).get("resourceVersion") or "")
        for old in [one for one in self._objects if one not in seen]:
            self._drop(self._objects[old])
        for item in seen.values():
            self._keep(item)
        self.relists += 1
        self.heard = began
        self._listed_at = asyncio.get_running_loop().time()
        self._ended_at = None
        self._see(Sight.POLLING if self._polls_left else Sight.WATCHING)

    async def _stream(self) -> bool:
        """Hear one stream to its end. Tells whether it was one: it lasted, or said something."""
        began, said = asyncio.get_running_loop().time(), False
        stream = self._api.watch(self.kind, self.namespace, self._version, WATCH_SECONDS, self._opened)
        async with contextlib.aclosing(stream):
            async for event in stream:
                self._apply(event)
                said = True
        self._ended_at = asyncio.get_running_loop().time()
        return said or self._ended_at - began > 1

    def _opened(self) -> None:
        self.error, self._ended_at = None, None
        self._see(Sight.WATCHING)

    def _apply(self, event: Object) -> None:
        obj = event.get("object") or {}
        version = reading.meta(obj).get("resourceVersion")
        word = event.get("type")
        self.heard = time.time()
        if word != "BOOKMARK":
            obj["kind"] = self.kind.name
            if word == "DELETED":
                self._drop(obj)
            else:
                self._keep(obj)
            self._changed()
        if version:
            self._version = str(version)

    def _keep(self, obj: Object) -> None:
        uid, key = reading.uid(obj), _key(obj)
        reading.meta(obj).pop("managedFields", None)  # half of an object's size, and nothing we read
        self._forget(uid)
        for word in self._keys(obj):
            self._indexed[word].add(uid)
        self._objects[uid] = obj
        self._names[key] = uid
        self._named = None

    def _drop(self, obj: Object) -> None:
        uid, key = reading.uid(obj), _key(obj)
        self._forget(uid)
        self._named = None
        if self._names.get(key) == uid:
            del self._names[key]
        reading.meta(obj).pop("managedFields", None)
        self._gone[uid] = obj
        self._gone_names[key] = uid
        self._gone_names.move_to_end(key)
        while len(self._gone) > KEPT:
            self._gone.popitem(last=False)
        while len(self._gone_names) > KEPT:
            self._gone_names.popitem(last=False)

    def _forget(self, uid: str) -> None:
        """Take an object out, with the words under which it was kept: its newest state may have others."""
        stored = self._objects.pop(uid, None)
        for word in () if stored is None else self._keys(stored):
            self._indexed[word].discard(uid)
            if not self._indexed[word]:
                del self._indexed[word]

    def _see(self, sight: Sight) -> None:
        self.sight = sight
        self._settled.set()
        self._changed()

    def _blind(self, sight: Sight, error: SchedulerError) -> None:
        self.sight, self.error = sight, error
        self._settled.set()
        self._changed()


def _sight_of(error: SchedulerError) -> Sight:
    if isinstance(error, AccessRefusedError):
        return Sight.FORBIDDEN
    if isinstance(error, NotFoundError):
        return Sight.ABSENT
    return Sight.BLIND


def _pause(sight: Sight, failures: int) -> float:
    if failures == 1 and sight is Sight.WATCHING:
        return 0.02
    longest: float = 5.0 if sight is Sight.BLIND else 30.0
    grown: float = 0.1 * 2.0 ** min(failures, 9)
    return min(longest, grown) * random.uniform(0.5, 1.0)  # noqa: S311


def _key(obj: Object) -> tuple[str, str]:
    return str(reading.meta(obj).get("namespace") or ""), reading.name(obj)
