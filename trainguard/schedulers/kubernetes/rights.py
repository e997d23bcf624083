"""What this user may do, asked of the API server itself, and the RBAC rule to add where something is missing.

https://kubernetes.io/docs/reference/access-authn-authz/authorization/#checking-api-access
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass

from trainguard.core.action import ActionKind
from trainguard.schedulers.kubernetes.kinds import Kind
from trainguard.transports.kube import Kube

FRESH_SECONDS = 60.0
"""A thousand guards that start together ask once."""


@dataclass(frozen=True)
class Right:
    """One verb on one resource. An empty namespace means the whole cluster."""

    verb: str
    group: str
    resource: str
    subresource: str = ""
    namespace: str = ""

    def __str__(self) -> str:
        """`delete jobs.batch in ml`."""
        name = f"{self.resource}/{self.subresource}" if self.subresource else self.resource
        full = f"{name}.{self.group}" if self.group else name
        return f"{self.verb} {full} {'in ' + self.namespace if self.namespace else 'cluster-wide'}"


_NODES = [Right(verb, "", "nodes") for verb in ("get", "list", "watch")]
_CHANGE_NODE = (Right("get", "", "nodes"), Right("patch", "", "nodes"))
_DRAIN = (*_CHANGE_NODE, Right("list", "", "pods"), Right("create", "", "pods", "eviction"))
REMAKES = (
    ActionKind.RESTART,
    ActionKind.RESTART_EXCLUDING_NODE,
    ActionKind.RESTART_WITH_MORE_MEMORY,
    ActionKind.RESTART_FROM_EARLIER_CHECKPOINT,
    ActionKind.EXTEND_TIME_LIMIT,
)
SUPPORTED = frozenset(
    {
        *REMAKES,
        ActionKind.SUSPEND,
        ActionKind.RESUME,
        ActionKind.CANCEL,
        ActionKind.DELETE_POD,
        ActionKind.CORDON_NODE,
        ActionKind.UNCORDON_NODE,
        ActionKind.DRAIN_NODE,
    }
)
SCALED = ("Deployment", "StatefulSet")
"""Kinds that are suspended by scaling to 0."""


def watching(kind: Kind, namespace: str) -> list[Right]:
    """Name the rights that seeing a job takes."""
    own = [Right(verb, kind.group, kind.plural, namespace=namespace) for verb in ("get", "list", "watch")]
    pods = [Right(verb, "", "pods", namespace=namespace) for verb in ("get", "list", "watch")]
    more = [Right("list", "", word, namespace=namespace) for word in ("events", "resourcequotas")]
    if kind.name == "CronJob":
        more += [Right(verb, "batch", "jobs", namespace=namespace) for verb in ("get", "list", "watch")]
    return [*own, *pods, *more, *_NODES, Right("list", "", "events")]


def reading_logs(namespace: str) -> Right:
    """Name the right to read logs."""
    return Right("get", "", "pods", "log", namespace)


def needed(action: ActionKind, kind: Kind, namespace: str) -> tuple[Right, ...]:
    """Name the rights that an action on a job of this kind takes."""
    group, plural = ("batch", "jobs") if kind.name == "CronJob" else (kind.group, kind.plural)

    def own(*verbs: str) -> tuple[Right, ...]:
        return tuple(Right(verb, group, plural, namespace=namespace) for verb in verbs)

    delete_pods = Right("delete", "", "pods", namespace=namespace)
    if action in REMAKES:
        if kind.rolls:
            return (*own("get", "patch"), delete_pods)
        return (*own("get", "patch", "delete", "create"), delete_pods)
    if action is ActionKind.DELETE_POD:
        return (*own("get", "patch"), delete_pods)
    if action is ActionKind.DRAIN_NODE:
        return _DRAIN
    if action in (ActionKind.CORDON_NODE, ActionKind.UNCORDON_NODE):
        return _CHANGE_NODE
    return own("get", "patch")


def senseless(action: ActionKind, kind: Kind) -> str:
    """Say why an action can't be done on this kind at all; empty if it can."""
    name = kind.name
    if action in (ActionKind.SUSPEND, ActionKind.RESUME, ActionKind.CANCEL):
        if name not in SCALED and not kind.suspend:
            return f"a {name} can't be suspended"
    elif action is ActionKind.EXTEND_TIME_LIMIT and not kind.deadline and name not in ("JobSet", "CronJob"):
        return f"a {name} has no time limit"
    elif action is ActionKind.DELETE_POD and name == "Pod":
        return "a pod without a controller does not come back; restart it instead"
    elif action is ActionKind.RESTART_EXCLUDING_NODE and name == "TrainJob":
        return "a TrainJob's node placement is its runtime's; cordon the node instead"
    return ""


class Rights:
    """Asks by SelfSubjectAccessReview, which every user may create, and remembers for a minute."""

    def __init__(self, kube: Kube) -> None:
        self._kube = kube
        self._known: dict[Right, tuple[float, bool]] = {}

    async def missing(self, rights: Iterable[Right]) -> list[Right]:
        """Give those that this user lacks, each once. Raises the errors of `transports.kube`."""
        return [right for right in dict.fromkeys(rights) if not await self._may(right)]

    async def _may(self, right: Right) -> bool:
        asked, answer = self._known.get(right, (float("-inf"), False))
        if time.monotonic() - asked > FRESH_SECONDS:
            answer = await self._ask(right)
            self._known[right] = (time.monotonic(), answer)
        return answer

    async def _ask(self, right: Right) -> bool:
        attributes = {"verb": right.verb, "group": right.group, "resource": right.resource}
        if right.subresource:
            attributes["subresource"] = right.subresource
        if right.namespace:
            attributes["namespace"] = right.namespace
        review = await self._kube.create(
            "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews",
            {
                "apiVersion": "authorization.k8s.io/v1",
                "kind": "SelfSubjectAccessReview",
                "spec": {"resourceAttributes": attributes},
            },
        )
        return (review.get("status") or {}).get("allowed") is True


def rule(missing: Iterable[Right]) -> str:
    """Write the RBAC rules that would grant these rights, ready to be put into a Role."""
    grouped: dict[tuple[str, str, str], list[str]] = {}
    for right in missing:
        name = f"{right.resource}/{right.subresource}" if right.subresource else right.resource
        grouped.setdefault((right.namespace, right.group, name), []).append(right.verb)
    parts = []
    for (namespace, group, name), verbs in grouped.items():
        where = f"Role in namespace {namespace}" if namespace else "ClusterRole"
        listed = ", ".join(f'"{verb}"' for verb in dict.fromkeys(verbs))
        parts.append(
            f'add to a {where}: - {{apiGroups: ["{group}"], resources: ["{name}"], verbs: [{listed}]}}'
        )
    return "; ".join(parts)
