"""What a job may use by its own words: memory and time. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable
from decimal import Decimal
from typing import Any

from trainguard.schedulers.kubernetes import reading
from trainguard.schedulers.kubernetes.kinds import Kind, found, pod_templates
from trainguard.transports.kube import Object

OOM = "OOMKilled"
_QUANTITY = re.compile(r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE]([+-]?[0-9]{1,2})|([numkMGTPE]|[KMGTPE]i)?)")
_POWERS = {"n": -3, "u": -2, "m": -1, "k": 1, "M": 2, "G": 3, "T": 4, "P": 5, "E": 6}


def quantity(text: object) -> int | None:
    """Read a quantity (Kubernetes API conventions, resource.Quantity), rounded down; None where it is none."""
    match = _QUANTITY.fullmatch(str(text))
    if match is None:
        return None
    number, exponent, unit = match.groups()
    if exponent:
        return int(Decimal(number) * Decimal(10) ** int(exponent))
    if unit and unit.endswith("i"):
        return int(Decimal(number) * 1024 ** (_POWERS["k"] if unit == "Ki" else _POWERS[unit[0]]))
    return int(Decimal(number) * Decimal(1000) ** (_POWERS[unit] if unit else 0))


def training_containers(kind: Kind, manifest: Object) -> list[dict[str, Any]]:
    """Give the containers that train: of each template the one that is the default, else the first."""
    places = list[dict[str, Any]]()
    for template in pod_templates(kind, manifest):
        containers: list[dict[str, Any]] = (template.get("spec") or {}).get("containers") or []
        wanted = reading.notes(template).get("kubectl.kubernetes.io/default-container", "")
        chosen = [one for one in containers if one.get("name") == wanted] or containers[:1]
        places += chosen
    return places


def memory_of(container: Object, key: str = "limits") -> int | None:
    """Give a container's memory limit (or another of its memory resources) in bytes; None where it has none."""
    return quantity(((container.get("resources") or {}).get(key) or {}).get("memory"))


def memory_limit(kind: Kind, obj: Object, pods: Iterable[Object] = ()) -> int | None:
    """Give the memory limit of the container that trains, in bytes; None where none has one.

    Of several roles that of the one which was killed for memory counts, else the smallest.
    """
    if kind.name == "TrainJob":
        limits = [memory_of({"resources": one}) for one in found(obj, "spec.trainer.resourcesPerNode")]
    else:
        limits = [memory_of(one) for one in training_containers(kind, obj)]
    known = {limit for limit in limits if limit}
    return max(known & full_limits(pods), default=None) or min(known, default=None)


def full_limits(pods: Iterable[Object]) -> set[int]:
    """Give the memory limits of the containers that were killed for memory."""
    limits = set()
    for pod in pods:
        state = reading.status(pod)
        killed = {
            one.get("name")
            for key in ("initContainerStatuses", "containerStatuses")
            for one in state.get(key) or []
            for when in ("state", "lastState")
            if ((one.get(when) or {}).get("terminated") or {}).get("reason") == OOM
        }
        wanted = reading.spec(pod)
        for one in (*(wanted.get("initContainers") or []), *(wanted.get("containers") or [])):
            if one.get("name") in killed:
                limits.add(memory_of(one) or 0)
    return limits - {0}


def time_limits(kind: Kind, obj: Object) -> list[tuple[str, Object]]:
    """Give the places where the job bounds how long it may run: the field, and the map that has it."""
    if kind.name == "JobSet":
        way, last = "spec.replicatedJobs.*.template.spec", "activeDeadlineSeconds"
    elif kind.deadline:
        way, _, last = kind.deadline.rpartition(".")
    else:
        return []
    return [(last, spec) for spec in found(obj, way) if isinstance(spec.get(last), int) and spec[last] > 0]


def time_limit(kind: Kind, obj: Object) -> float | None:
    """Give how long the job may run, in seconds; None where that is not bounded."""
    return min((float(spec[key]) for key, spec in time_limits(kind, obj)), default=None)
