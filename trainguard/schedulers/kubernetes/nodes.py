"""Cordon, uncordon and drain. A drain evicts, so that disruption budgets are respected; finished pods stay.

https://kubernetes.io/docs/tasks/administer-cluster/safely-drain-node/
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Sequence

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


class NodeActions:
    """What is done to nodes."""

    def __init__(self, api: ClusterApi, deadline: float) -> None:
        self._api, self._deadline = api, deadline

    async def perform(self, action: Action, fence: Fence) -> Outcome:
        """Do it to every node that the action names. Raises RefusedError where one does not exist."""
        if not action.nodes:
            raise RefusedError("no node was named")
        for node in action.nodes:
            await self._try(node)
        lost = [str(await self._mark(node, action, fence)) for node in action.nodes]
        if any(lost):
            return _outcome(fence, OutcomeStatus.UNKNOWN, "; ".join(filter(None, lost)))
        if action.kind is ActionKind.DRAIN_NODE:
            try:
                return await self._drain(action.nodes, fence)
            except UnreachableError as error:
                return _outcome(fence, OutcomeStatus.UNKNOWN, f"cordoned; {error}")
        return _outcome(fence, OutcomeStatus.DONE, f"{action.kind}: {', '.join(action.nodes)}")

    async def find(self, fence: Fence) -> Outcome | None:
        """Look for a fence on the nodes. None also where nodes can't be read: then nothing was done to them."""
        try:
            nodes = await self._api.list(NODE, "")
        except AccessRefusedError:
            return None
        mine = [node for node in nodes if fence.token in reading.fences(node)]
        if not mine:
            return None
        names = [reading.name(node) for node in mine]
        if not all('"drain_node"' in reading.notes(node).get(reading.INTENT, "") for node in mine):
            return _outcome(fence, OutcomeStatus.DONE, f"marked on {', '.join(names)}")
        left = [pod for name in names for pod in await self._evictable(name)]
        if left:
            return _outcome(fence, OutcomeStatus.UNKNOWN, f"cordoned, not empty: {_names(left)}")
        return _outcome(fence, OutcomeStatus.DONE, f"drained {', '.join(names)}")

    async def _try(self, name: str) -> None:
        try:
            node = await self._api.get(NODE, "", name)
        except NotFoundError as error:
            raise RefusedError(f"the cluster has no node {name}") from error
        await self._api.patch(NODE, node, {"metadata": {}}, dry_run=True)

    async def _mark(self, name: str, action: Action, fence: Fence) -> str:
        """Set the node's schedulability and leave the fence, in one write. Gives what is unsure; mostly nothing."""
        cordon = action.kind is not ActionKind.UNCORDON_NODE
        for _ in range(CONFLICTS):
            node = await self._api.get(NODE, "", name)
            if fence.token in reading.fences(node):
                return ""
            change: Object = {
                "metadata": {"annotations": marked(node, fence, action)},
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

    async def _drain(self, names: Sequence[str], fence: Fence) -> Outcome:
        until, kept = time.monotonic() + self._deadline, ""
        while True:
            left = [pod for name in names for pod in await self._evictable(name)]
            if not left:
                return _outcome(fence, OutcomeStatus.DONE, f"drained {', '.join(names)}")
            kept = "; ".join([message for pod in left if (message := await self._evict(pod))][:3])
            if time.monotonic() > until:
                detail = f"cordoned, not empty: {_names(left)}; {kept or 'still ending'}"
                return _outcome(fence, OutcomeStatus.UNKNOWN, detail)
            await asyncio.sleep(BUDGET_PAUSE if kept else 0.5)

    async def _evictable(self, node: str) -> list[Object]:
        answer = await self._api.kube.get("/api/v1/pods", fieldSelector=f"spec.nodeName={node}", limit=500)
        return [pod for pod in answer.get("items") or [] if _evictable(pod)]

    async def _evict(self, pod: Object) -> str:
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
                await self._api.kube.create(f"{path}/eviction", body)
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


def _evictable(pod: Object) -> bool:
    owner = controller(pod) or {}
    if owner.get("kind") == "DaemonSet" or MIRROR in reading.notes(pod):
        return False
    return reading.status(pod).get("phase") not in ("Succeeded", "Failed")


def _names(pods: Sequence[Object]) -> str:
    return ", ".join(f"{reading.meta(pod).get('namespace')}/{reading.name(pod)}" for pod in pods[:20])


def _outcome(fence: Fence, status: OutcomeStatus, detail: str) -> Outcome:
    return Outcome(fence=fence.token, status=status, at=time.time(), detail=detail)
