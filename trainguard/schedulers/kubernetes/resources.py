"""What a job may use by its own words: memory and time. Pure."""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Any

from trainguard.schedulers.kubernetes import reading
from trainguard.schedulers.kubernetes.kinds import Kind, found, pod_templates
from trainguard.transports.kube import Object

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


def memory_limit(kind: Kind, obj: Object) -> int | None:
    """Give the smallest memory limit of the containers that train, in bytes; None where none has one."""
    if kind.name == "TrainJob":
        places = list(found(obj, "spec.trainer.resourcesPerNode"))
    else:
        places = [one.get("resources") or {} for one in training_containers(kind, obj)]
    limits = [quantity((place.get("limits") or {}).get("memory")) for place in places]
    return min((limit for limit in limits if limit), default=None)


def time_limit(kind: Kind, obj: Object) -> float | None:
    """Give how long the job may run, in seconds; None where that is not bounded."""
    if kind.name == "JobSet":
        places = [
            ("activeDeadlineSeconds", spec) for spec in found(obj, "spec.replicatedJobs.*.template.spec")
        ]
    elif kind.deadline:
        way, _, last = kind.deadline.rpartition(".")
        places = [(last, spec) for spec in found(obj, way)]
    else:
        return None
    limits = [spec.get(key) for key, spec in places]
    return min((float(limit) for limit in limits if isinstance(limit, int) and limit > 0), default=None)
