"""Plays recorded watch events back to the pure readers, as the informers would hold them."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from trainguard.schedulers.kubernetes.ownership import own_pods
from trainguard.schedulers.kubernetes.reading import Limits, Reading, Scene, seconds
from trainguard.schedulers.kubernetes.state import read_job

FIXTURES = Path(__file__).parents[1] / "fixtures" / "kubernetes"
VERSIONS = ("1.36.2", "1.20.2")
TOPS = (
    "TrainJob",
    "JobSet",
    "PyTorchJob",
    "TFJob",
    "MPIJob",
    "Deployment",
    "StatefulSet",
    "DaemonSet",
    "Job",
    "Pod",
)
# what is compressed in the recordings is compressed here; a Job's missing pods are not
LIMITS = Limits(ready=3.0, node=2.0, image=2.0, unschedulable=2.0, settled=5.0, idle=2.0)
JOB_LIMITS = Limits(ready=60.0, node=2.0, image=2.0, unschedulable=2.0, settled=5.0, idle=2.0)
Row = dict[str, Any]


@dataclass(frozen=True)
class Step:
    """What is read of one object after one event."""

    t: float
    name: str
    uid: str
    told: Reading

    @property
    def word(self) -> str:
        flags = [
            "restarting" if self.told.restart_underway else "",
            "stuck" if self.told.stuck else "",
            f"exit={self.told.exit_code}" if self.told.exit_code is not None else "",
            "oom" if self.told.oom_killed else "",
            "bad=" + ",".join(self.told.bad_nodes) if self.told.bad_nodes else "",
        ]
        return " ".join([self.told.liveness, self.told.native, *filter(None, flags)])


@cache
def recorded(version: str) -> dict[str, list[Row]]:
    """All scenarios of a recording, by name."""
    found = {}
    with tarfile.open(FIXTURES / f"recorded-{version}.tar.xz") as archive:
        for member in archive:
            if member.name.endswith(".jsonl"):
                stream = archive.extractfile(member)
                assert stream is not None
                found[Path(member.name).stem] = [json.loads(line) for line in stream]
    return found


def usable(rows: list[Row]) -> list[Row]:
    """The rows that are objects."""
    return [row for row in rows if row["kind"] not in ("HTTP", "Event", "Status") and row.get("object")]


def top_kind(rows: list[Row]) -> str:
    """The kind that a guard would watch in a scenario."""
    kinds = {row["kind"] for row in rows}
    return next((kind for kind in TOPS if kind in kinds), "")


def replay(rows: list[Row]) -> Iterator[Step]:
    """Give a reading of every guarded object after each event."""
    rows = usable(rows)
    top = top_kind(rows)
    began = _began(rows)
    if began is None:
        return
    # where nodes were only listed once, what is known of them is not kept up
    nodes_known = any(row["kind"] == "Node" and row.get("source") != "list" for row in rows)
    limits = JOB_LIMITS if top == "Job" else LIMITS
    objects: dict[tuple[str, str], Row] = {}
    for row in rows:
        _apply(objects, row)
        nodes = {key[1]: obj for key, obj in objects.items() if key[0] == "Node"}
        for (kind, uid), obj in list(objects.items()):
            if kind != top:
                continue
            pods = _pods(objects, obj)
            scene = Scene(began + row["t"], pods, nodes if nodes_known else None, limits)
            yield Step(row["t"], obj["metadata"]["name"], uid, read_job(obj, scene))


def transitions(rows: list[Row]) -> list[str]:
    """One line for each change of what is read."""
    last: dict[str, str] = {}
    lines = []
    for step in replay(rows):
        if last.get(step.uid) != step.word:
            last[step.uid] = step.word
            lines.append(f"{step.t:.2f} {step.name} {step.word}")
    return lines


def _began(rows: list[Row]) -> float | None:
    for row in rows:
        made = seconds(row["object"].get("metadata", {}).get("creationTimestamp"))
        if made is not None and row["type"] == "ADDED" and row["kind"] != "Node":
            return made - float(row["t"])
    return None


def _apply(objects: dict[tuple[str, str], Row], row: Row) -> None:
    obj = {**row["object"], "kind": row["kind"]}
    own = obj.get("metadata", {})
    if row["type"] == "BOOKMARK" or not own.get("name"):
        return
    key = (row["kind"], own["name"] if row["kind"] == "Node" else own["uid"])
    if row["type"] == "DELETED":
        objects.pop(key, None)
    else:
        objects[key] = obj


def _pods(objects: dict[tuple[str, str], Row], obj: Row) -> tuple[Row, ...]:
    return own_pods(obj, [other for key, other in objects.items() if key[0] == "Pod"])
