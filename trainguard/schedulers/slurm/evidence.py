"""What a diagnosis gets of a Slurm job: its output, accounting's steps, the nodes, slurmd's words."""

from __future__ import annotations

import time
from collections.abc import Sequence

from trainguard.core.evidence import Evidence, EvidenceKind
from trainguard.core.observation import LogSource, Observation
from trainguard.schedulers.slurm.client import SlurmClient, slurm
from trainguard.schedulers.slurm.ids import is_node_name
from trainguard.transports.posix_shell import Command, Result

TAIL = 512_000
"""Bytes of each file's end."""
_MAX_NODES = 64
_TAIL = '[ -e "$1" ] || exit 3; [ -r "$1" ] && [ -f "$1" ] || exit 4; stat -L -c %s -- "$1" && tail -c "$2" -- "$1"'
_STEPS = (
    "JobID,State,ExitCode,DerivedExitCode,Submit,Start,End,Elapsed,Timelimit,NodeList,NTasks,ReqMem,MaxRSS,"
    "MaxRSSNode,AveCPU,Reason"
)
_DAEMON_LOG = 'f=$1; [ -r "$f" ] || exit 4; tail -c 4000000 -- "$f" | grep -E -e "$2" | tail -n 400'


async def log_tails(
    client: SlurmClient, sources: Sequence[LogSource], total: int = 8_000_000
) -> list[Evidence]:
    """Save the end of each file: a requeue begins it anew."""
    share = min(TAIL, max(total // max(len(sources), 1), 4_000))
    commands = [Command(("sh", "-c", _TAIL, "sh", source.name, str(share)), timeout=30) for source in sources]
    answers = await client.run(commands) if commands else []
    return [_tail(source, answer, share) for source, answer in zip(sources, answers, strict=True)]


def _tail(source: LogSource, answer: Result, share: int) -> Evidence:
    if answer.code != 0:
        why = {3: "does not exist", 4: "can't be read with this login"}.get(answer.code, answer.problem)
        return status(f"log {source.name}", f"{source.name} {why}")
    size, _, data = answer.out.partition(b"\n")
    cut = int(size) > share
    if cut:
        data = data[data.find(b"\n") + 1 :]
    return Evidence(
        source=source,
        kind=EvidenceKind.LOG,
        text=data.decode("utf-8", "replace"),
        first_line=None if cut else 1,
        at=time.time(),
        truncated=cut,
    )


async def slurm_facts(client: SlurmClient, ids: Sequence[str], observation: Observation) -> list[Evidence]:
    """Gather what Slurm itself says: the job, its steps in accounting, its nodes and their daemons' logs."""
    nodes = [node for node in observation.nodes if is_node_name(node)][:_MAX_NODES]
    asked = ",".join(ids)
    commands = [
        *(slurm("scontrol", "show", "job", name) for name in ids[:20]),
        slurm("sacct", "-P", f"--format={_STEPS}", f"--jobs={asked}"),
        slurm("scontrol", "show", "config"),
    ]
    if nodes:
        commands.append(slurm("scontrol", "show", "node", ",".join(nodes)))
    *shown, steps, config = (answers := await client.run(commands))[: len(ids[:20]) + 2]
    found = [_text("scontrol show job", EvidenceKind.STATUS, answer) for answer in shown]
    found.append(_text("sacct steps", EvidenceKind.ACCOUNTING, steps))
    if nodes:
        found.append(_text("scontrol show node", EvidenceKind.STATUS, answers[-1]))
    found += await _daemon_logs(client, config.text, ids, nodes)
    return found


async def _daemon_logs(
    client: SlurmClient, config: str, ids: Sequence[str], nodes: Sequence[str]
) -> list[Evidence]:
    """Read slurmctld's and slurmd's lines about the job, where this login may and they lie on a shared disk."""
    settings = dict(
        (name.strip(), value.strip())
        for name, _, value in (line.partition("=") for line in config.splitlines())
    )
    words = "|".join(rf"(^|[^0-9]){name.split('_')[0].split('+')[0]}([^0-9]|$)" for name in ids[:20])
    asked = [("slurmctld", settings.get("SlurmctldLogFile", ""), "")]
    pattern = settings.get("SlurmdLogFile", "")
    if "%" in pattern:
        asked += [(f"slurmd {node}", pattern.replace("%n", node).replace("%h", node), node) for node in nodes]
    asked = [one for one in asked if one[1].startswith("/")]
    commands = [Command(("sh", "-c", _DAEMON_LOG, "sh", path, words), timeout=30) for _, path, _ in asked]
    answers = await client.run(commands) if commands else []
    found = [
        Evidence(
            source=LogSource(name=path, kind="kernel" if node else "events", node=node),
            kind=EvidenceKind.KERNEL if node else EvidenceKind.EVENTS,
            text=answer.text,
            at=time.time(),
        )
        for (_, path, node), answer in zip(asked, answers, strict=True)
        if answer.code == 0 and answer.text
    ]
    missing = [name for (name, _, _), answer in zip(asked, answers, strict=True) if answer.code == 4]
    missing += [] if "%" in pattern else ["slurmd of the job's nodes"]
    text = f"not readable from the login node: the logs of {', '.join(missing)}; the nodes' kernel logs"
    return [*found, status("daemon logs", text)]


def _text(name: str, kind: EvidenceKind, answer: Result) -> Evidence:
    if answer.code != 0:
        return status(name, f"{name}: {answer.problem}")
    return Evidence(
        source=LogSource(name=name, kind=str(kind)), kind=kind, text=answer.text[:1_000_000], at=time.time()
    )


def status(name: str, text: str) -> Evidence:
    """Say that a source could not be read, or another fact."""
    return Evidence(
        source=LogSource(name=name, kind="status"), kind=EvidenceKind.STATUS, text=text, at=time.time()
    )
