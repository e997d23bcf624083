"""What a restart changes of a job, bounded by what its partition gives."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

from trainguard.core.action import Action, ActionKind
from trainguard.core.errors import RefusedError
from trainguard.schedulers.slurm import parse
from trainguard.schedulers.slurm.client import SlurmClient, check, slurm
from trainguard.schedulers.slurm.detail import Detail
from trainguard.schedulers.slurm.ids import is_node_name
from trainguard.schedulers.slurm.parse import Record
from trainguard.transports.posix_shell import new_mark

_FIELDS = ("NodeList", "StateLong", "Memory")


@dataclass(frozen=True)
class Changes:
    """Fields for `scontrol update`, the same as options for sbatch, and a sentence about them."""

    fields: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    told: tuple[str, ...] = field(default=())


@dataclass(frozen=True)
class Partition:
    """What a job's partition gives."""

    max_minutes: int | None
    memory: dict[str, int]
    """Megabytes of each node that is in service, those counted that do not answer at the moment."""
    nodes: frozenset[str]


async def partition_of(client: SlurmClient, detail: Detail) -> Partition:
    """Ask for the limits and nodes of the job's partition."""
    name, mark = detail.get("Partition").split(",")[0], new_mark()
    shown, listed = await client.run(
        [
            slurm("scontrol", "show", "partition", name),
            slurm("sinfo", "--local", "-h", "-N", f"--partition={name}", f"--Format={parse.squeue_format(_FIELDS, mark)}"),
        ]
    )  # fmt: skip
    check(shown, f"partition {name}")
    check(listed, f"nodes of partition {name}")
    rows = parse.rows(listed.text, _FIELDS, mark)
    up = {
        row["NodeList"].strip(): parse.megabytes(row["Memory"]) or 0
        for row in rows
        if not parse.out_of_service(row["StateLong"])
    }
    return Partition(
        parse.minutes(parse.show_value(shown.text, "MaxTime")),
        up,
        frozenset(row["NodeList"].strip() for row in rows),
    )


async def changes_for(
    client: SlurmClient, action: Action, detail: Detail, record: Record, bad: tuple[str, ...]
) -> Changes:
    """Work out what the action changes. Raises RefusedError where it can't be given.

    `bad` are nodes on which the job's old processes may still live: it does not come back to them.
    """
    wanted = set(bad)
    if action.kind is ActionKind.RESTART_EXCLUDING_NODE:
        if not action.nodes:
            raise RefusedError("no node is named that should be excluded")
        wanted |= set(action.nodes)
    kinds = {ActionKind.RESTART_WITH_MORE_MEMORY, ActionKind.EXTEND_TIME_LIMIT}
    if not wanted and action.kind not in kinds:
        return Changes()
    partition = await partition_of(client, detail)
    found = _excluding(wanted, detail, partition) if wanted else Changes()
    if action.kind is ActionKind.RESTART_WITH_MORE_MEMORY:
        found = _joined(found, _memory(action, detail, partition))
    if action.kind is ActionKind.EXTEND_TIME_LIMIT:
        found = _joined(found, _time(action, detail, partition))
    return found


def _joined(one: Changes, two: Changes) -> Changes:
    return replace(
        one, fields=one.fields + two.fields, options=one.options + two.options, told=one.told + two.told
    )


def _excluding(wanted: set[str], detail: Detail, partition: Partition) -> Changes:
    unknown = sorted(node for node in wanted if not is_node_name(node) or node not in partition.nodes)
    if unknown:
        raise RefusedError(f"{', '.join(unknown)[:200]}: no node of the partition {detail.get('Partition')}")
    asked = set(parse.node_names(detail.get("ReqNodes"))) & wanted
    if asked:
        raise RefusedError(f"the job asks for {', '.join(sorted(asked))} by name")
    nodes = sorted(wanted | set(detail.excluded))
    left = set(partition.memory) - set(nodes)
    need = int(detail.get("NumNodes").partition("-")[0] or 1)
    if len(left) < need:
        raise RefusedError(
            f"without {', '.join(nodes)} only {len(left)} nodes in service are left, the job needs {need}"
        )
    text = ",".join(nodes)
    return Changes(
        (f"ExcNodeList={text}",), (f"--exclude={text}",), (f"without {', '.join(sorted(wanted))}",)
    )


def _memory(action: Action, detail: Detail, partition: Partition) -> Changes:
    per_cpu = parse.megabytes(parse.show_value(detail.shown, "MinMemoryCPU"))
    now = parse.megabytes(parse.show_value(detail.shown, "MinMemoryNode")) or 0
    if per_cpu is not None:
        cpus = int(detail.get("NumTasks") or 1) * int(detail.get("cpus-per-task") or 1)
        now = per_cpu * math.ceil(cpus / int(detail.get("NumNodes").partition("-")[0] or 1))
    wanted = action.memory_bytes // 2**20 if action.memory_bytes else now * 3 // 2
    most = max(partition.memory.values(), default=0)
    target = min(wanted, most)
    if target <= now:
        raise RefusedError(f"it has {now} MB a node already, the partition's nodes give at most {most} MB")
    return Changes(
        (f"MinMemoryNode={target}",), (f"--mem={target}M",), (f"{target} MB a node instead of {now}",)
    )


def _time(action: Action, detail: Detail, partition: Partition) -> Changes:
    now = parse.minutes(detail.get("TimeLimit"))
    if now is None:
        raise RefusedError("its time limit is not bounded")
    # Slurm counts limits in whole minutes
    wanted = math.ceil(action.time_limit / 60) if action.time_limit else max(now * 3 // 2, now + 1)
    target = wanted if partition.max_minutes is None else min(wanted, partition.max_minutes)
    if target <= now:
        most = partition.max_minutes
        given = "" if most is None else f", the partition gives at most {most}"
        raise RefusedError(f"its time limit is {now} minutes already{given}")
    return Changes((f"TimeLimit={target}",), (f"--time={target}",), (f"{target} minutes instead of {now}",))
