"""Cordon, uncordon and drain. A drain evicts, so that disruption budgets are respected; finished pods stay.

Like `kubectl drain` without --force and --delete-emptydir-data it is refused where it would destroy what nobody
makes again; the guarded job's own pods may go.

https://kubernetes.io/docs/tasks/administer-cluster/safely-drain-node/
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence
from typing import Any

from trainguard.core.action import Action, ActionKind, Fence, Outcome, OutcomeStatus
from trainguard.core.errors import AccessRefusedError, NotFoundError, RefusedError, UnreachableError
from trainguard.schedulers.kubernetes import reading
from trainguard.schedulers.kubernetes.api import ClusterApi
from trainguard.schedulers.kubernetes.kinds import KINDS, NODE
from trainguard.schedulers.kubernetes.manifest import marked
from trainguard.schedulers.kubernetes.ownership import controller
from trainguard.transports.kube import Object
from trainguard.transports.kube_errors import BudgetError, ConflictError, LostAnswerError

MIRROR = "kubernetes.io/config.mirror"
CONFLICTS = 8
BUDGET_PAUSE = 2.0
DRAIN_SECONDS = 300.0
"""How long after it began a drain that disruption budgets hold up is given up: the nodes stay cordoned."""

Own = Callable[[], Awaitable[Collection[str]]]
"""Gives the uids of the guarded job's own pods."""


class NodeActions:
    """What is done to nodes."""

    def __init__(self, api: ClusterApi, deadline: float) -> None:
        self._api, self._deadline = api, deadline

    async def perform(self, action: Action, fence: Fence, own: Own) -> Outcome:
        """Do it to every node that the action names. Raises RefusedError where one does not exist."""
        if not action.nodes:
            raise RefusedError("no node was named")
        for node in action.nodes:
            await self._try(node)
        if action.kind is ActionKind.DRAIN_NODE:
            await self._try_drain(action.nodes, await own())
        return await self._do(action, fence, time.time(), own)

    async def find(self, fence: Fence, own: Own) -> Outcome | None:
        """Look for a fence on the nodes, and go on with what is half done. None also where nodes can't be read:
        then nothing was done to them.
        """
        try:
            nodes = await self._api.list(NODE, "")
        except AccessRefusedError:
            return None
        mine = [node for node in nodes if fence.token in reading.fences(node)]
        if not mine:
            return None
        names = ", ".join(reading.name(node) for node in mine)
        intents = [intent for node in mine if (intent := _intents(node).get(fence.token))]
        if not intents:
            return _outcome(fence, OutcomeStatus.DONE, f"marked on {names}")
        action = Action.model_validate(intents[0]["action"])
        drains = action.kind is ActionKind.DRAIN_NODE
        if drains and not all(reading.spec(node).get("unschedulable") for node in mine):
            return _outcome(
                fence, OutcomeStatus.REFUSED, f"of {names} some were uncordoned since: not gone on with"
            )
        return await self._do(action, fence, min(float(intent["at"]) for intent in intents), own)

    async def _do(self, action: Action, fence: Fence, began: float, own: Own) -> Outcome:
        """Mark those nodes that are not marked yet, and drain where that is wanted."""
        lost = list[str]()
        for node in action.nodes:
            try:
                lost.append(await self._mark(node, action, fence, began))
            except NotFoundError:
                continue  # the node is gone since
            except (RefusedError, AccessRefusedError) as error:
                return _outcome(fence, OutcomeStatus.REFUSED, f"not done to all of {action.nodes}: {error}")
        if any(lost):
            return _outcome(fence, OutcomeStatus.UNKNOWN, "; ".join(filter(None, lost)))
        if action.kind is ActionKind.DRAIN_NODE:
            try:
                return await self._drain(action.nodes, fence, began, await own())
            except UnreachableError as error:
                return _outcome(fence, OutcomeStatus.UNKNOWN, f"cordoned; {error}")
        return _outcome(fence, OutcomeStatus.DONE, f"{action.kind}: {', '.join(action.nodes)}")

    async def _try(self, name: str) -> None:
        try:
            node = await self._api.get(NODE, "", name)
        except NotFoundError as error:
            raise RefusedError(f"the cluster has no node {name}") from error
        await self._api.patch(NODE, node, {"metadata": {}}, dry_run=True)

    async def _try_drain(self, names: Sequence[str], own: Collection[str]) -> None:
        """Let the server judge every eviction without doing one. A budget may allow it later."""
        for name in names:
            pods = await self._evictable(name)
            _forbid_loss(pods, own)
            for pod in pods:
                await self._evict(pod, dry_run=True)

    async def _mark(self, name: str, action: Action, fence: Fence, began: float) -> str:
        """Set the node's schedulability and leave the fence, in one write. Gives what is unsure; mostly nothing."""
        cordon = action.kind is not ActionKind.UNCORDON_NODE
        for _ in range(CONFLICTS):
            node = await self._api.get(NODE, "", name)
            if fence.token in reading.fences(node):
                return ""
            change: Object = {
                "metadata": {"annotations": _marked(node, fence, action, began)},
                "spec": {"unschedulable": True if cordon else None},
            }
            try:
                await self._api.patch(NODE, node, change)
            except ConflictError:
                continue
            except LostAnswerError as error:
                return str(error)
            return ""
        raise RefusedError(f"node {name} changes faster than it can be marked")

    async def _drain(self, names: Sequence[str], fence: Fence, began: float, own: Collection[str]) -> Outcome:
        """Evict until the nodes are empty. Not known at the deadline; given up a while after it `began`."""
        until, kept = time.monotonic() + self._deadline, ""
        while True:
            left = [pod for name in names for pod in await self._evictable(name)]
            if not left:
                return _outcome(fence, OutcomeStatus.DONE, f"drained {', '.join(names)}")
            try:
                _forbid_loss(left, own)
                kept = "; ".join([message for pod in left if (message := await self._evict(pod))][:3])
            except (RefusedError, AccessRefusedError) as error:
                return _outcome(fence, OutcomeStatus.REFUSED, f"cordoned, not drained: {error}")
            detail = f"cordoned, not empty: {_names(left)}; {kept or 'still ending'}"
            if time.time() - began > DRAIN_SECONDS:
                return _outcome(fence, OutcomeStatus.REFUSED, f"{detail}; given up")
            if time.monotonic() > until:
                return _outcome(fence, OutcomeStatus.UNKNOWN, detail)
            await asyncio.sleep(BUDGET_PAUSE if kept else 0.5)

    async def _evictable(self, node: str) -> list[Object]:
        answer = await self._api.kube.get("/api/v1/pods", fieldSelector=f"spec.nodeName={node}", limit=500)
        return [pod for pod in answer.get("items") or [] if _evictable(pod)]

    async def _evict(self, pod: Object, dry_run: bool = False) -> str:
        """Evict a pod; give why it stays, if it does."""
        own = reading.meta(pod)
        if reading.deleting(pod):
            return ""
        body = {
            "apiVersion": await self._eviction_version(),
            "kind": "Eviction",
            "metadata": {"name": own["name"], "namespace": own["namespace"]},
            "deleteOptions": {"preconditions": {"uid": own["uid"]}},
        }
        path = KINDS["Pod"].path("v1", own["namespace"], own["name"])
        try:
            with contextlib.suppress(NotFoundError, ConflictError, LostAnswerError):
                await self._api.kube.create(f"{path}/eviction", body, dryRun="All" if dry_run else "")
        except BudgetError as error:
            return str(error)
        except AccessRefusedError as error:
            if "being terminated" not in str(error):  # its namespace is, and it with it
                raise
        return ""

    async def _eviction_version(self) -> str:
        try:
            await self._api.kube.get("/apis/policy/v1")
        except NotFoundError:
            return "policy/v1beta1"  # before 1.22
        return "policy/v1"


def _intents(node: Object) -> dict[str, Any]:
    """Give what was done to a node, by fence: several guards may act on one."""
    try:
        found = json.loads(reading.notes(node).get(reading.INTENT, ""))
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _marked(node: Object, fence: Fence, action: Action, began: float) -> dict[str, str]:
    marks = marked(node, fence, action, at=began)
    intents = _intents(node) | {fence.token: json.loads(marks[reading.INTENT])}
    kept = {token: intents[token] for token in marks[reading.FENCES].split(",") if token in intents}
    return marks | {reading.INTENT: json.dumps(kept)}


def _forbid_loss(pods: Iterable[Object], own: Collection[str]) -> None:
    """Raise RefusedError where evictions would end what nobody makes again, or delete somebody's data."""
    bare, full = list[Object](), list[Object]()
    for pod in pods:
        if reading.uid(pod) in own or reading.deleting(pod):
            continue
        if controller(pod) is None:
            bare.append(pod)
        elif any("emptyDir" in volume for volume in reading.spec(pod).get("volumes") or []):
            full.append(pod)
    parts = (
        f"pods without a controller, which nobody makes again: {_names(bare)}" if bare else "",
        f"pods with data in an emptyDir: {_names(full)}" if full else "",
    )
    if any(parts):
        raise RefusedError(
            "; ".join(filter(None, parts)) + "; have their owners end them, or use kubectl drain"
        )


def _evictable(pod: Object) -> bool:
    owner = controller(pod) or {}
    if owner.get("kind") == "DaemonSet" or MIRROR in reading.notes(pod):
        return False
    return reading.status(pod).get("phase") not in ("Succeeded", "Failed")


def _names(pods: Sequence[Object]) -> str:
    return ", ".join(f"{reading.meta(pod).get('namespace')}/{reading.name(pod)}" for pod in pods[:20])


def _outcome(fence: Fence, status: OutcomeStatus, detail: str) -> Outcome:
    return Outcome(fence=fence.token, status=status, at=time.time(), detail=detail)
