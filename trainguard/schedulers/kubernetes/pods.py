"""What pods and their nodes say: phases, containers, evictions, dead nodes. Pure functions over raw objects.

https://kubernetes.io/docs/concepts/workloads/pods/pod-lifecycle/
https://kubernetes.io/docs/concepts/workloads/pods/disruptions/#pod-disruption-conditions
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from trainguard.core.masking import mask
from trainguard.core.observation import Liveness
from trainguard.schedulers.kubernetes import reading
from trainguard.schedulers.kubernetes.node_view import NodeView, read_node
from trainguard.schedulers.kubernetes.reading import Limits, Scene, seconds
from trainguard.schedulers.kubernetes.resources import OOM
from trainguard.transports.kube import Object

PHASES: dict[str, Liveness] = {
    "Pending": Liveness.PENDING,
    "Running": Liveness.RUNNING,
    "Succeeded": Liveness.SUCCEEDED,
    "Failed": Liveness.FAILED,
    # "Unknown" is the node's silence: see `read_pod`.
}
"""Any other phase is UNKNOWN."""

WAITING_STUCK = frozenset(
    {
        "ImagePullBackOff",
        "InvalidImageName",
        "ErrImageNeverPull",
        "ImageInspectError",
        "CreateContainerConfigError",
        "CreateContainerError",
        "RunContainerError",
        "PreStartHookError",
        "PostStartHookError",
    }
)
"""Waiting reasons of a container that nobody but its owner can mend."""
WAITING_TRANSIENT = frozenset({"ErrImagePull", "RegistryUnavailable"})
"""The same once they last."""
CRASH_LOOP = "CrashLoopBackOff"
LOOPS = 2
"""Restarts from which a container that has just started again counts as crash-looping."""
NODE_LOST = "NodeLost"


@dataclass(frozen=True)
class PodView:
    """One pod, read. `ended` means that nothing of it can still be running."""

    name: str
    uid: str
    node: str
    liveness: Liveness
    native: str
    reason: str = ""
    exit_code: int | None = None
    oom_killed: bool | None = None
    restarts: int = 0
    looping: bool = False
    restarting: bool = False
    """A container ended and the kubelet is to start it again."""
    stuck: str = ""
    disruption: str = ""
    """Why the cluster took it away, where it did (eviction, preemption, taint, shutdown)."""
    lost: bool = False
    """Its node is not ready: what it says of its containers is old."""
    lost_for: float = 0.0
    ended: bool = False
    deleting: bool = False
    ready: bool = False
    at: float = 0.0
    """When it ended, else when it was created."""

    @property
    def alive(self) -> bool:
        """Whether it is neither finished nor on its way out."""
        return not self.ended and not self.deleting


def read_pod(pod: Object, scene: Scene) -> PodView:
    """Read one pod."""
    node_name = str(reading.spec(pod).get("nodeName") or "")
    node = read_node(scene.nodes, node_name)
    state = reading.status(pod)
    phase = str(state.get("phase") or "Pending")
    liveness = PHASES.get(phase, Liveness.UNKNOWN)
    ended = liveness in (Liveness.SUCCEEDED, Liveness.FAILED) and (
        node.fenced or not any(_running(c) for c in containers(pod))
    )
    up = reading.holds(pod, "Ready") is not None
    # the control plane takes Ready from the pods of a node that it holds for dead: both must say so
    lost = (not node.ready and liveness is Liveness.RUNNING and not up) or phase == "Unknown"
    last = _last_exit(pod, current_only=liveness is Liveness.FAILED)
    looping, restarting = _loops(pod, scene)
    return PodView(
        name=reading.name(pod),
        uid=reading.uid(pod),
        node=node_name,
        liveness=Liveness.FAILED if phase == "Unknown" else liveness,
        native=_native(pod, phase, last, looping),
        reason=_reason(pod, last),
        exit_code=_code(last),
        oom_killed=_oom(last),
        restarts=sum(reading.count(c, "restartCount") for c in containers(pod)),
        looping=looping,
        restarting=restarting,
        stuck=_stuck(pod, scene.now, scene.limits) if liveness is Liveness.PENDING else "",
        disruption=disruption(pod),
        lost=lost,
        lost_for=0.0 if not lost else _lost_for(pod, node, scene.now),
        ended=ended,
        deleting=reading.deleting(pod),
        ready=up,
        at=_finished(last)
        or (ended and reading.since(reading.condition(pod, "Ready")))
        or reading.created(pod),
    )


def read_pods(scene: Scene) -> tuple[PodView, ...]:
    """Read all pods of a scene, oldest first."""
    views = [read_pod(pod, scene) for pod in scene.pods or ()]
    return tuple(sorted(views, key=lambda view: (view.at, view.name)))


def containers(pod: Object, everything: bool = False) -> list[dict[str, Any]]:
    """Give the statuses of a pod's containers; init containers and sidecars only where everything is asked."""
    state = reading.status(pod)
    keys = ["containerStatuses"]
    if everything or state.get("phase") == "Pending":
        keys.insert(0, "initContainerStatuses")
    return [c for key in keys for c in state.get(key) or [] if isinstance(c, dict)]


def disruption(pod: Object) -> str:
    """Say why the cluster took a pod away; empty where it did not. 1.20 has only `status.reason`."""
    found = reading.holds(pod, "DisruptionTarget")
    if found is not None:
        return str(found.get("reason") or "DisruptionTarget")
    word = str(reading.status(pod).get("reason") or "")
    return (
        word
        if word
        in {"Evicted", "Preempting", "Preempted", "NodeLost", "Shutdown", "NodeShutdown", "Terminated"}
        else ""
    )


def ranks(pod: Object) -> int | None:
    """Give a pod's rank where its labels tell it."""
    labels = reading.meta(pod).get("labels") or {}
    for key in (
        "batch.kubernetes.io/job-completion-index",
        "apps.kubernetes.io/pod-index",
        "training.kubeflow.org/replica-index",
    ):
        value = (labels.get(key) or reading.notes(pod).get(key)) or ""
        if str(value).isdigit():
            # a PyTorchJob's workers come after its master
            role = labels.get("training.kubeflow.org/replica-type", "")
            return int(value) + (1 if role.lower() == "worker" else 0)
    return None


def _state(container: dict[str, Any], key: str) -> dict[str, Any] | None:
    found = (container.get("state") or {}).get(key)
    return found if isinstance(found, dict) else None


def _running(container: dict[str, Any]) -> bool:
    return _state(container, "running") is not None


def _exits(pod: Object, current_only: bool) -> Iterator[dict[str, Any]]:
    for container in containers(pod, everything=True):
        now = _state(container, "terminated")
        before = (container.get("lastState") or {}).get("terminated")
        for found in (now,) if current_only and now else (now, before):
            if isinstance(found, dict) and found.get("exitCode") not in (None, 0):
                yield found


def _last_exit(pod: Object, current_only: bool) -> dict[str, Any] | None:
    """Give the failed exit that came first: what ends later was mostly pulled along."""
    return min(_exits(pod, current_only), key=lambda e: str(e.get("finishedAt") or ""), default=None)


def _code(last: dict[str, Any] | None) -> int | None:
    return None if last is None else reading.count(last, "exitCode")


def _oom(last: dict[str, Any] | None) -> bool | None:
    """137 alone is no proof: an eviction kills with it too, and so does a process killed within its container."""
    if last is None:
        return None
    if last.get("reason") == OOM:
        return True
    return None if last.get("exitCode") == 137 else False


def _finished(last: dict[str, Any] | None) -> float | None:
    return None if last is None else seconds(last.get("finishedAt"))


def _native(pod: Object, phase: str, last: dict[str, Any] | None, looping: bool) -> str:
    if looping:
        return CRASH_LOOP
    if phase == "Pending":
        return _waiting(pod) or phase
    if phase == "Failed":
        word = str(reading.status(pod).get("reason") or "") or disruption(pod)
        return word or str((last or {}).get("reason") or phase)
    return phase


def _waiting(pod: Object) -> str:
    for container in containers(pod):
        word = (_state(container, "waiting") or {}).get("reason")
        if word and word != "PodInitializing":
            return str(word)
    scheduled = reading.condition(pod, "PodScheduled")
    if scheduled is not None and scheduled.get("status") == "False":
        return str(scheduled.get("reason") or "")
    return ""


def _reason(pod: Object, last: dict[str, Any] | None) -> str:
    state = reading.status(pod)
    parts = [str(state.get("message") or "")]
    found = reading.holds(pod, "DisruptionTarget")
    if found is not None:
        parts.append(reading.said(found))
    if last is not None:
        parts.append(f"{last.get('reason') or 'Error'}, exit code {last.get('exitCode')}")
        parts.append(_said(last))
    for container in containers(pod):
        parts.append(_said(_state(container, "waiting") or {}))
    scheduled = reading.condition(pod, "PodScheduled")
    if scheduled is not None and scheduled.get("status") == "False":
        parts.append(str(scheduled.get("message") or ""))
    return "; ".join(reading.distinct(parts))


def _said(state: Mapping[str, Any]) -> str:
    """What a container's state says, often the end of its log: masked before it is cut through a secret."""
    return mask(str(state.get("message") or ""))[:500]


def _loops(pod: Object, scene: Scene) -> tuple[bool, bool]:
    """Tell whether a container crash-loops, and whether one is between two of its runs."""
    looping = restarting = False
    policy = reading.spec(pod).get("restartPolicy", "Always")
    if reading.status(pod).get("phase") not in ("Running", "Pending") or policy == "Never":
        return False, False
    for container in containers(pod, everything=True):
        restarts = reading.count(container, "restartCount")
        if (_state(container, "waiting") or {}).get("reason") == CRASH_LOOP:
            looping = True
        ended = _state(container, "terminated")
        if ended is not None and (policy == "Always" or ended.get("exitCode") != 0):
            restarting = restarting or container in containers(pod)
        started = seconds((_state(container, "running") or {}).get("startedAt"))
        failed_before = ((container.get("lastState") or {}).get("terminated") or {}).get("exitCode") not in (
            None,
            0,
        )
        young = started is not None and scene.now - started < scene.limits.settled
        looping = looping or (restarts >= LOOPS and failed_before and (young or ended is not None))
    return looping, restarting or looping


def _stuck(pod: Object, now: float, limits: Limits) -> str:
    age = now - reading.created(pod)
    for container in containers(pod):
        waiting = _state(container, "waiting") or {}
        word = str(waiting.get("reason") or "")
        if word in WAITING_STUCK or (word in WAITING_TRANSIENT and age > limits.image):
            return f"{word}: {waiting.get('message') or container.get('name')}"
    scheduled = reading.condition(pod, "PodScheduled")
    if scheduled is not None and scheduled.get("reason") == "Unschedulable":
        message = str(scheduled.get("message") or "")
        # a lack of resources ends when others finish; a node that matches nothing never does
        patience = limits.unschedulable if "Insufficient" in message else limits.image
        if now - (reading.since(scheduled) or reading.created(pod)) > patience:
            return f"Unschedulable: {message}"
    return ""


def _lost_for(pod: Object, node: NodeView, now: float) -> float:
    if node.vouched:
        return float("inf")
    # a node that is not known may be one that has just joined
    began = node.since if node.since is not None else reading.since(reading.condition(pod, "Ready"))
    return 0.0 if began is None else max(0.0, now - began)


def nodes_of(views: Iterable[PodView]) -> tuple[str, ...]:
    """Name the nodes of some pods."""
    return reading.distinct(view.node for view in views)
