"""What a diagnosis needs from a cluster: logs of all ranks, events, container states, nodes, quota, owners."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Awaitable, Callable, Sequence

from trainguard.core.errors import NotFoundError, SchedulerError
from trainguard.core.evidence import Evidence, EvidenceKind
from trainguard.core.observation import LogSource
from trainguard.schedulers.kubernetes import reading
from trainguard.schedulers.kubernetes.api import ClusterApi
from trainguard.schedulers.kubernetes.kinds import KINDS, NODE, Kind
from trainguard.schedulers.kubernetes.logs import PodLogs, Run, runs_of
from trainguard.schedulers.kubernetes.ownership import controller
from trainguard.transports.kube import Object

TAIL_BYTES = 1_000_000
"""Of one container run."""
TOTAL_BYTES = 16_000_000
AT_ONCE = 8
EVENT_OBJECTS = 100
"""Of so many objects events are read: the job, what lies between, then its pods, those in trouble first."""
EVENTS_EACH = 200
EVENT = Kind("Event", "", ("v1",), "events")
QUOTA = Kind("ResourceQuota", "", ("v1",), "resourcequotas")
KERNEL = re.compile(r"Xid|NVRM|nvidia|kernel|ECC|NVLink|oom-?kill|TaskHung|DockerHung|Machine check", re.I)
"""Events and conditions of nodes that come from the kernel (node-problem-detector, GPU operator)."""


class Collector:
    """Collects; a source that can't be read becomes evidence of kind STATUS that says so."""

    def __init__(self, api: ClusterApi, logs: PodLogs) -> None:
        self._api, self._logs = api, logs
        self._gate = asyncio.Semaphore(AT_ONCE)

    async def collect(self, obj: Object, pods: Sequence[Object]) -> list[Evidence]:
        """Gather everything about a job and its pods."""
        namespace = str(reading.meta(obj).get("namespace") or "")
        nodes = reading.distinct(str(reading.spec(pod).get("nodeName") or "") for pod in pods)
        runs = runs_of(pods, {}, everything=True)
        share = min(TAIL_BYTES, TOTAL_BYTES // max(1, len(runs)))
        tasks: list[Awaitable[list[Evidence]]] = [
            self._safe(f"{run.source.name}", self._log, run, share) for run in runs
        ]
        tasks.append(self._safe("events", self._events, obj, pods, namespace))
        tasks.append(self._safe("owners", self._owners, obj))
        tasks.append(self._safe("resourcequotas", self._quota, namespace))
        tasks += [self._safe(f"node/{node}", self._node, node) for node in nodes]
        tasks += [
            self._safe(f"events of node/{node}", self._node_events, node, _first_on(node, pods))
            for node in nodes
        ]
        gathered = await asyncio.gather(*tasks)
        state = [_state(obj), *(_state(pod) for pod in pods if pod is not obj)]
        return [*state, *(item for group in gathered for item in group)]

    async def _safe(
        self, name: str, read: Callable[..., Awaitable[list[Evidence]]], *args: object
    ) -> list[Evidence]:
        async with self._gate:
            try:
                return await read(*args)
            except SchedulerError as error:
                return [_evidence(name, EvidenceKind.STATUS, f"{name} could not be read: {error}")]

    async def _log(self, run: Run, share: int) -> list[Evidence]:
        text, cut = await self._logs.tail(run, share)
        if not text:
            return []
        source = run.source.model_copy(
            update={"name": f"{run.source.name}{' (previous)' if run.previous else ''}"}
        )
        first = None if cut else 1
        return [
            Evidence(
                source=source,
                kind=EvidenceKind.LOG,
                text=text,
                first_line=first,
                at=time.time(),
                truncated=cut,
            )
        ]

    async def _events(self, obj: Object, pods: Sequence[Object], namespace: str) -> list[Evidence]:
        """Events of the job, its pods, and of what lies between, which is named after the job."""
        between = [str(owner["uid"]) for pod in pods if (owner := controller(pod)) is not None]
        well = [reading.status(pod).get("phase") in ("Running", "Succeeded") for pod in pods]
        troubled = [
            reading.uid(pod) for _, pod in sorted(zip(well, pods, strict=True), key=lambda row: row[0])
        ]
        wanted = reading.distinct((reading.uid(obj), *between, *troubled))
        mine = list[Object]()
        for uid in wanted[:EVENT_OBJECTS]:
            # a namespace may have a hundred thousand events; one object has few that differ
            fields = f"involvedObject.uid={uid}"
            page = await self._api.page(EVENT, namespace, EVENTS_EACH, "", fields=fields)
            mine += page.get("items") or []
        return _event_lines(f"events -n {namespace}", EvidenceKind.EVENTS, mine)

    async def _node_events(self, node: str, since: str) -> list[Evidence]:
        """What happened to a node since the job came to it: what was before is another's story."""
        path = "/api/v1/events"
        answer = await self._api.kube.get(
            path, limit=500, fieldSelector=f"involvedObject.kind=Node,involvedObject.name={node}"
        )
        events = [e for e in answer.get("items") or [] if _when(e) >= since]
        kernel = [
            e for e in events if KERNEL.search(f"{e.get('reason')} {e.get('message')} {e.get('source')}")
        ]
        other = [e for e in events if e not in kernel]
        return [
            *_event_lines(f"events of node {node}", EvidenceKind.KERNEL, kernel, node),
            *_event_lines(f"events of node {node}", EvidenceKind.EVENTS, other, node),
        ]

    async def _node(self, name: str) -> list[Evidence]:
        try:
            node = await self._api.get(NODE, "", name)
        except NotFoundError:
            return [_evidence(f"node/{name}", EvidenceKind.STATUS, f"node {name} is gone", name)]
        lines = [
            f"condition {c.get('type')}={c.get('status')} since {c.get('lastTransitionTime')} {reading.said(c)}"
            for c in reading.status(node).get("conditions") or []
        ]
        taints = reading.spec(node).get("taints") or []
        lines += [f"taint {t.get('key')}={t.get('value', '')}:{t.get('effect')}" for t in taints]
        if reading.spec(node).get("unschedulable"):
            lines.append("cordoned")
        free = reading.status(node).get("allocatable") or {}
        lines.append(f"allocatable {json.dumps(free)}")
        return [_evidence(f"node/{name}", EvidenceKind.STATUS, "\n".join(lines), name)]

    async def _owners(self, obj: Object) -> list[Evidence]:
        chain, current = [f"{obj.get('kind')}/{reading.name(obj)}"], obj
        while (owner := controller(current)) is not None and len(chain) < 8:
            chain.append(f"{owner.get('kind')}/{owner.get('name')}")
            kind = KINDS.get(str(owner.get("kind")))
            if kind is None:
                break
            current = await self._api.get(
                kind, str(reading.meta(obj).get("namespace")), str(owner.get("name"))
            )
        return [_evidence("owners", EvidenceKind.STATUS, " <- ".join(chain))]

    async def _quota(self, namespace: str) -> list[Evidence]:
        quotas = await self._api.list(QUOTA, namespace)
        lines = [
            f"{reading.name(one)}: used {json.dumps(reading.status(one).get('used'))}"
            f" of {json.dumps(reading.status(one).get('hard'))}"
            for one in quotas
        ]
        return [_evidence("resourcequotas", EvidenceKind.STATUS, "\n".join(lines))] if lines else []


def _state(obj: Object) -> Evidence:
    """Give an object's status as the server has it, one field a line."""
    name = f"{str(obj.get('kind')).lower()}/{reading.name(obj)}"
    text = json.dumps(reading.status(obj), indent=1, sort_keys=True)
    return _evidence(name, EvidenceKind.STATUS, text[:100_000])


def _first_on(node: str, pods: Sequence[Object]) -> str:
    """When the first of these pods was made for a node; times of the API sort as text."""
    mine = [pod for pod in pods if reading.spec(pod).get("nodeName") == node]
    return min((str(reading.meta(pod).get("creationTimestamp") or "") for pod in mine), default="")


def _event_lines(name: str, kind: EvidenceKind, events: Sequence[Object], node: str = "") -> list[Evidence]:
    """Write events as lines, oldest first. Two event APIs fill different time fields."""
    if not events:
        return []
    lines = [
        f"{_when(e)} {e.get('type')} {e.get('reason')} {(e.get('involvedObject') or {}).get('kind')}/"
        f"{(e.get('involvedObject') or {}).get('name')} x{e.get('count') or 1}: {e.get('message')}"
        for e in sorted(events, key=_when)
    ]
    return [_evidence(name, kind, "\n".join(lines)[-TAIL_BYTES:], node)]


def _when(event: Object) -> str:
    series = event.get("series")
    last = series.get("lastObservedTime") if isinstance(series, dict) else None
    made = event.get("metadata")
    created = made.get("creationTimestamp") if isinstance(made, dict) else ""
    return str(last or event.get("lastTimestamp") or event.get("eventTime") or created or "")


def _evidence(name: str, kind: EvidenceKind, text: str, node: str = "") -> Evidence:
    source = LogSource(name=name, kind=str(kind), node=node)
    return Evidence(source=source, kind=kind, text=text, at=time.time())
