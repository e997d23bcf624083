"""What a node says of itself, and what is said of it. Pure.

https://kubernetes.io/docs/reference/node/node-status/#condition
"""

from __future__ import annotations

from dataclasses import dataclass

from trainguard.schedulers.kubernetes import reading
from trainguard.transports.kube import Object

OUT_OF_SERVICE = "node.kubernetes.io/out-of-service"
"""The taint by which a person vouches that a node is powered off."""


@dataclass(frozen=True)
class NodeView:
    """One node, read."""

    ready: bool
    since: float | None = None
    fenced: bool = False
    """It is gone, or vouched for as powered off: nothing runs there."""
    vouched: bool = False
    """A person says so, by taint."""
    why: str = ""


def read_node(nodes: dict[str, Object] | None, name: str) -> NodeView:
    """Read a node. Where nodes can't be read it counts as ready: nothing is known against it."""
    if nodes is None or not name:
        return NodeView(True)
    node = nodes.get(name)
    if node is None:
        return NodeView(False, None, fenced=True, why="the node is gone")
    found = reading.condition(node, "Ready")
    taints = reading.spec(node).get("taints") or []
    fenced = any(taint.get("key") == OUT_OF_SERVICE for taint in taints)
    if found is None or found.get("status") == "True":
        return NodeView(True, None, fenced, fenced)
    return NodeView(False, reading.since(found), fenced, fenced, f"not ready: {reading.said(found)}")
