"""Reading pod logs on and on through the API server: by time stamp, for the API knows no byte offsets.

The cursor holds for each container run the stamp of the last line read and how many lines bore it. `sinceTime`
has whole seconds, so that the lines of the last second come again and are skipped by their stamps.
https://kubernetes.io/docs/reference/kubernetes-api/workload-resources/pod-v1/#get-read-log-of-the-specified-pod
"""

from __future__ import annotations

import contextlib
import json
import re
from collections import deque
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from urllib.parse import quote

from trainguard.core.errors import NotFoundError, RefusedError, SchedulerError
from trainguard.core.observation import LogBatch, LogChunk, LogSource
from trainguard.schedulers.kubernetes import reading
from trainguard.schedulers.kubernetes.pods import containers, ranks
from trainguard.transports.kube import Kube, Object

TYPICAL_LINE = 64
"""Bytes of a line, to guess how many lines make a tail."""
CURSOR_VERSION = 1
_STAMP = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d+))?(Z|[+-]\d\d:\d\d)\Z")


@dataclass(frozen=True)
class Run:
    """One run of one container: what has a log of its own."""

    namespace: str
    pod: str
    pod_uid: str
    container: str
    restart: int
    previous: bool
    """It is the run before the current one."""
    ended: bool
    rank: int | None
    node: str

    @property
    def key(self) -> str:
        """Name of the run in a cursor."""
        return f"{self.pod_uid}/{self.container}/{self.restart}"

    @property
    def source(self) -> LogSource:
        """`pod/container`; all its runs are one stream."""
        return LogSource(name=f"{self.pod}/{self.container}", rank=self.rank, node=self.node)


@dataclass(frozen=True)
class Place:
    """How far a run was read."""

    stamp: str = ""
    same: int = 0
    """Lines read that bear exactly this stamp."""
    lines: int | None = 0
    """Lines before this place; None where the beginning was skipped."""
    done: bool = False


@dataclass
class _Read:
    chunk: LogChunk | None
    place: Place
    more: bool


def runs_of(pods: Sequence[Object], known: Mapping[str, Place], everything: bool = False) -> list[Run]:
    """List the container runs that have a log: the current ones, and those before them.

    A run before the current one is listed where it was being read or where everything is wanted.
    """
    listed = []
    for pod in sorted(pods, key=lambda one: (ranks(one) or 0, reading.name(one))):
        for status in containers(pod, everything=True):
            state = status.get("state") or {}
            restarts = reading.count(status, "restartCount")
            base = Run(
                namespace=str(reading.meta(pod).get("namespace") or ""),
                pod=reading.name(pod),
                pod_uid=reading.uid(pod),
                container=str(status.get("name")),
                restart=restarts,
                previous=False,
                ended="terminated" in state,
                rank=ranks(pod),
                node=str(reading.spec(pod).get("nodeName") or ""),
            )
            if restarts:
                before = replace(base, restart=restarts - 1, previous=True, ended=True)
                if everything or (before.key in known and not known[before.key].done):
                    listed.append(before)
            if "running" in state or "terminated" in state:
                listed.append(base)
    return listed


def parse_cursor(cursor: str) -> dict[str, Place] | None:
    """Read a cursor; None for an empty one or one of another age."""
    try:
        parsed = json.loads(cursor or "null")
    except ValueError:
        return None
    if not isinstance(parsed, dict) or parsed.get("v") != CURSOR_VERSION:
        return None
    places = {}
    for key, row in (parsed.get("runs") or {}).items():
        stamp, same, lines, done = row
        places[key] = Place(str(stamp), int(same), lines, bool(done))
    return places


def write_cursor(places: Mapping[str, Place]) -> str:
    """Write a cursor."""
    rows = {key: [one.stamp, one.same, one.lines, one.done] for key, one in places.items()}
    return json.dumps({"v": CURSOR_VERSION, "runs": rows}, separators=(",", ":"))


class PodLogs:
    """Reads the logs of pods."""

    def __init__(self, kube: Kube) -> None:
        self._kube = kube

    async def read(self, pods: Sequence[Object], cursor: str, limit: int) -> LogBatch:
        """Give what is new in all runs. Raises where nothing could be read and something refused."""
        known = parse_cursor(cursor)
        runs = runs_of(pods, known or {})
        places: dict[str, Place] = {run.key: (known or {}).get(run.key, Place()) for run in runs}
        chunks, left, more = list[LogChunk](), limit, False
        refused: SchedulerError | None = None
        pending = [run for run in runs if not places[run.key].done]
        for index, run in enumerate(pending):
            # each run has its share, so that one that floods does not silence the others
            share = max(1, left // (len(pending) - index)) if left else 0
            try:
                got = await self._run(run, places[run.key], share, left, tail=known is None)
            except SchedulerError as error:
                refused = error
                continue
            places[run.key], more = got.place, more or got.more
            if got.chunk is not None:
                chunks.append(got.chunk)
                left -= len(got.chunk.text)
        if refused is not None and not chunks:
            raise refused
        return LogBatch(chunks=tuple(chunks), cursor=write_cursor(places), more=more)

    async def tail(self, run: Run, limit: int) -> tuple[str, bool]:
        """Give the end of a run's log, and whether its beginning is missing."""
        got = await self._run(run, Place(), limit, limit, tail=True)
        text = "" if got.chunk is None else got.chunk.text
        return text, got.place.lines is None

    async def _run(self, run: Run, place: Place, share: int, left: int, tail: bool) -> _Read:
        if left <= 0:
            return _Read(None, place, True)
        try:
            if tail:
                return await self._last(run, share)
            return await self._next(run, place, share, left)
        except RefusedError as error:
            # 400: the container has not begun, or the run before it is no longer kept
            if not run.previous and "waiting to start" not in str(error):
                raise
            return _Read(None, replace(place, done=run.previous), False)
        except NotFoundError:
            if run.previous:
                return _Read(None, replace(place, done=True), False)
            raise

    async def _next(self, run: Run, place: Place, share: int, left: int) -> _Read:
        taken, size, skipped = list[str](), 0, place.same
        last = place
        async for stamp, text, whole in self._lines(run, since=_whole_second(place.stamp)):
            if stamp < place.stamp:
                continue
            if stamp == place.stamp and skipped:
                skipped -= 1
                continue
            if not whole and not run.ended:
                break  # half a line: it comes whole next time
            if size + len(text) > share:
                return _full(run, place, last, taken, (stamp, text), left)
            taken.append(text)
            size += len(text)
            last = _after(last, stamp)
        return _Read(_chunk(run, taken, place), replace(last, done=run.ended), False)

    async def _last(self, run: Run, limit: int) -> _Read:
        kept: deque[str] = deque()
        size, lines, place, dropped = 0, max(1, limit // TYPICAL_LINE), Place(), 0
        async for stamp, text, whole in self._lines(run, tail=lines):
            if not whole and not run.ended:
                break
            kept.append(text if len(text) <= limit else text[-limit:])
            size += len(kept[-1])
            place = _after(place, stamp)
            while size > limit:
                size -= len(kept.popleft())
                dropped += 1
        whole_log = not dropped and (place.lines or 0) < lines
        if not whole_log:
            place = replace(place, lines=None)
        chunk = _chunk(run, list(kept), Place(lines=0 if whole_log else None))
        return _Read(chunk, replace(place, done=run.ended), False)

    async def _lines(
        self, run: Run, since: str = "", tail: int | None = None
    ) -> AsyncGenerator[tuple[str, str, bool], None]:
        """Give lines as (stamp, text with its end, whether it has one)."""
        path = f"/api/v1/namespaces/{quote(run.namespace)}/pods/{quote(run.pod)}/log"
        stream = self._kube.lines(
            path,
            container=run.container,
            previous="true" if run.previous else "",
            timestamps="true",
            sinceTime=since,
            tailLines=tail,
        )
        last = ""
        async with contextlib.aclosing(stream):
            async for raw in stream:
                line = raw.decode("utf-8", "replace")
                word, found, text = line.partition(" ")
                stamp = _stamp(word) if found else ""
                last = stamp or last
                yield last, text if stamp else line, line.endswith("\n")


def _full(run: Run, place: Place, last: Place, taken: list[str], line: tuple[str, str], left: int) -> _Read:
    """The share is used up. A first line may take all that is left; a longer one is cut, else it would never pass."""
    if taken:
        return _Read(_chunk(run, taken, place), last, True)
    stamp, text = line
    short = text if len(text) <= left else text[: left - 1] + "\n"
    chunk = _chunk(run, [short], place)
    assert chunk is not None
    cut = chunk.model_copy(update={"skipped_bytes": len(text) - len(short)})
    return _Read(cut, _after(last, stamp), True)


def _after(place: Place, stamp: str) -> Place:
    lines = None if place.lines is None else place.lines + 1
    if stamp == place.stamp:
        return replace(place, same=place.same + 1, lines=lines)
    return Place(stamp, 1, lines)


def _chunk(run: Run, lines: list[str], place: Place) -> LogChunk | None:
    if not lines:
        return None
    first = None if place.lines is None else place.lines + 1
    return LogChunk(source=run.source, text="".join(lines), first_line=first)


def _stamp(word: str) -> str:
    """Read a time stamp as UTC with nine digits, so that stamps compare as strings; empty if it is none.

    A node writes them in its own time zone, with nanoseconds, of which Python reads six digits.
    """
    match = _STAMP.match(word)
    if match is None:
        return ""
    head, fraction, zone = match.groups()
    try:
        moment = datetime.fromisoformat(head + zone.replace("Z", "+00:00")).astimezone(UTC)
    except ValueError:
        return ""
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{(fraction or '').ljust(9, '0')[:9]}Z"


def _whole_second(stamp: str) -> str:
    return f"{stamp.partition('.')[0]}Z" if stamp else ""
