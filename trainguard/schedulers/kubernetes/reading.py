"""What an object's state says, as a plain value; and how its times and conditions are read. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from trainguard.core.observation import Liveness
from trainguard.transports.kube import Object

FENCES = "trainguard.dev/fence"
"""Annotation: the fences of the actions that were done on the object, newest last, comma-separated."""
INTENT = "trainguard.dev/intent"
"""Annotation: the action of the newest fence, as JSON, so that another process can finish it."""
ATTEMPT = "trainguard.dev/attempt"
CANCELLED = "trainguard.dev/cancelled"
"""Annotation: the fence by which the job was cancelled. It counts as stopped."""
HOLD = "trainguard.dev/hold"
"""Annotation for owners: any value but `false` keeps every action away."""
SIZE = "trainguard.dev/size-before-suspend"
"""Annotation: replicas or parallelism to go back to on resume."""


@dataclass(frozen=True)
class Reading:
    """What the cluster says about one job. Fields as in `core.observation.Observation`."""

    liveness: Liveness
    native: str
    reason: str = ""
    exit_code: int | None = None
    exit_signal: int | None = None
    oom_killed: bool | None = None
    restart_underway: bool = False
    stuck: str = ""
    warning: str = ""
    nodes: tuple[str, ...] = ()
    bad_nodes: tuple[str, ...] = ()
    generation: str = ""
    """What tells this incarnation from others with the same uid."""
    restarts: int = 0
    """Incarnations that the scheduler itself made of this object before this one."""


@dataclass(frozen=True)
class Limits:
    """What counts as what: how long a state may last before it means something, in seconds."""

    ready: float = 60.0
    """From a rollout, scaling or new pod until a workload without ready replicas counts as failed."""
    node: float = 30.0
    """From the moment a node is not ready until its running pods count as lost."""
    image: float = 30.0
    """For how long a failing image pull may be a hiccup."""
    unschedulable: float = 300.0
    """For how long a pod that fits nowhere may wait for resources."""
    settled: float = 60.0
    """For how long a restarted container must run before it no longer counts as crash-looping."""
    idle: float = 30.0
    """For how long an operator's job may have neither active nor succeeded replicas."""
    failed_pod_is_failure: bool = False
    """A Job with `status.failed >= 1` counts as failed, though Kubernetes would go on trying."""


@dataclass(frozen=True)
class Scene:
    """What is known beside the object itself. `pods` None means that pods can't be read."""

    now: float
    pods: tuple[Object, ...] | None = ()
    nodes: dict[str, Object] | None = None
    """By name; None means that nodes can't be read."""
    limits: Limits = field(default_factory=Limits)
    since: float | None = None
    """Since when the object was seen unchanged and without a pod; None where nobody kept looking."""


def seconds(text: object) -> float | None:
    """Read an RFC 3339 time as seconds since the epoch; None for anything else."""
    if not isinstance(text, str) or not text:
        return None
    try:
        return datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()
    except ValueError:
        return None


def meta(obj: Object) -> dict[str, Any]:
    """Give an object's metadata."""
    found = obj.get("metadata")
    return found if isinstance(found, dict) else {}


def notes(obj: Object) -> dict[str, str]:
    """Give an object's annotations."""
    return meta(obj).get("annotations") or {}


def uid(obj: Object) -> str:
    """Give an object's uid."""
    return str(meta(obj).get("uid") or "")


def name(obj: Object) -> str:
    """Give an object's name."""
    return str(meta(obj).get("name") or "")


def status(obj: Object) -> dict[str, Any]:
    """Give an object's status; a missing one is empty."""
    found = obj.get("status")
    return found if isinstance(found, dict) else {}


def spec(obj: Object) -> dict[str, Any]:
    """Give an object's spec; a missing one is empty."""
    found = obj.get("spec")
    return found if isinstance(found, dict) else {}


def count(obj: dict[str, Any], key: str, absent: int = 0) -> int:
    """Read a counter; an absent one is 0."""
    value = obj.get(key)
    return value if isinstance(value, int) and not isinstance(value, bool) else absent


def deleting(obj: Object) -> bool:
    """Tell whether it was deleted and is not gone yet."""
    return bool(meta(obj).get("deletionTimestamp"))


def created(obj: Object) -> float:
    """Give its creation time; 0 where it has none."""
    return seconds(meta(obj).get("creationTimestamp")) or 0.0


def condition(obj: Object, kind: str) -> dict[str, Any] | None:
    """Give the newest condition of a type, whatever its status."""
    found = [c for c in status(obj).get("conditions") or [] if isinstance(c, dict) and c.get("type") == kind]
    return found[-1] if found else None


def holds(obj: Object, kind: str) -> dict[str, Any] | None:
    """Give the condition of a type if its status is "True": conditions that are false or unknown say nothing."""
    found = condition(obj, kind)
    return found if found is not None and found.get("status") == "True" else None


def since(found: dict[str, Any] | None) -> float | None:
    """Give when a condition last changed."""
    return None if found is None else seconds(found.get("lastTransitionTime"))


def said(found: dict[str, Any]) -> str:
    """Give a condition's reason and message as one line."""
    return ": ".join(str(found[key]) for key in ("reason", "message") if found.get(key))


def fences(obj: Object) -> tuple[str, ...]:
    """Give the fences that an object carries, oldest first."""
    return tuple(part for part in notes(obj).get(FENCES, "").split(",") if part)


def held(obj: Object) -> str:
    """Say how the owner holds the job; empty if not."""
    return f"annotation {HOLD}" if notes(obj).get(HOLD, "false") != "false" else suspended(obj)


def suspended(obj: Object) -> str:
    """Say which field keeps the job from running; empty if none does."""
    if spec(obj).get("suspend") is True:
        return "spec.suspend"
    if (spec(obj).get("runPolicy") or {}).get("suspend") is True:
        return "spec.runPolicy.suspend"
    for size in ("replicas", "parallelism"):
        if spec(obj).get(size) == 0:
            return f"spec.{size} is 0"
    return ""


def distinct(words: Iterable[str]) -> tuple[str, ...]:
    """Give non-empty words once, in order of first sight."""
    return tuple(dict.fromkeys(word for word in words if word))
