"""Slurm's commands, asked in bulk over a shell. What each can be trusted with is said where it is asked."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

from trainguard.core.errors import AccessRefusedError, RefusedError, UnreachableError
from trainguard.schedulers.slurm import parse
from trainguard.schedulers.slurm.ids import JobId, job_id
from trainguard.schedulers.slurm.parse import Node, Record
from trainguard.transports.posix_shell import Command, Result, new_mark

IDS_PER_COMMAND = 5_000
"""An argument may hold 128 KiB; an id takes up to 20 bytes."""
_DENIED = ("access/permission denied", "invalid user id", "permission denied", "user id is missing")
_NO_JOB = ("invalid job id",)


class Shell(Protocol):
    """Where commands are run: an SSH connection, or a fake of one."""

    async def run(
        self, commands: Sequence[Command], *, limit: int = ..., now: bool = ..., within: float | None = ...
    ) -> list[Result]:
        """Run commands one after another; `limit` bounds what they print, in bytes, `within` their seconds."""
        ...

    async def close(self) -> None:
        """Free what is held."""
        ...


@dataclass(frozen=True)
class Look:
    """What the controller says at one moment of its own clock."""

    now: float
    records: list[Record]
    bad_nodes: list[Node]

    @cached_property
    def by_base(self) -> dict[int, list[Record]]:
        """The records of each id without its element or component."""
        found: dict[int, list[Record]] = defaultdict(list)
        for record in self.records:
            found[record.id.base].append(record)
        return found


@dataclass(frozen=True)
class Accounts:
    """What accounting says. `on` is False where the cluster has none."""

    records: list[Record] = field(default_factory=list)
    on: bool = True
    problem: str = ""
    """Why it could not be asked; then nothing is known."""


def slurm(*argv: str, timeout: float = 45.0, if_ok: bool = False) -> Command:
    """Make a command whose times are seconds since the epoch and whose lists are not cut."""
    env = ("env", "LC_ALL=C", "SLURM_TIME_FORMAT=%s", "SLURM_BITSTR_LEN=0")
    return Command((*env, *argv), timeout=timeout, if_ok=if_ok)


def squeue(mark: str, *selection: str, fields: Sequence[str] = parse.SQUEUE_FIELDS) -> Command:
    """Ask the controller. Finished jobs are shown as long as it remembers them (MinJobAge)."""
    return slurm(
        "squeue", "--local", "--all", "--noheader", "--array", "--states=all", *selection,
        f"--Format={parse.squeue_format(fields, mark)}",
    )  # fmt: skip


def sacct(*selection: str) -> Command:
    """Ask accounting, 1 to 5 s behind; right only for jobs that the controller no longer knows."""
    return slurm(
        "sacct", "--allocations", "--duplicates", "--noheader", "--parsable2", f"--delimiter={parse.SEP}",
        f"--format={','.join(parse.SACCT_FIELDS)}", *selection,
    )  # fmt: skip


def node_states(mark: str) -> Command:
    """Ask for the nodes in trouble."""
    return slurm(
        "sinfo", "--local", "--all", "--noheader", "--Node", "--states=down,drain,fail,no_respond,unknown",
        f"--Format={parse.squeue_format(parse.NODE_FIELDS, mark)}",
    )  # fmt: skip


class SlurmClient:
    """Asks, and tells apart: an answer, no such job, no right, and no answer."""

    def __init__(self, shell: Shell) -> None:
        self._shell = shell

    async def run(
        self,
        commands: Sequence[Command],
        *,
        limit: int = 64_000_000,
        now: bool = False,
        within: float | None = None,
    ) -> list[Result]:
        """Run commands in one round trip."""
        return await self._shell.run(commands, limit=limit, now=now, within=within)

    async def look(self, ids: Sequence[str], *, now: bool = False) -> Look:
        """Ask the controller for these jobs and for nodes in trouble. Raises UnreachableError."""
        mark = new_mark()
        chunks = [ids[i : i + IDS_PER_COMMAND] for i in range(0, len(ids), IDS_PER_COMMAND)]
        queues = [squeue(mark, f"--jobs={','.join(chunk)}") for chunk in chunks]
        *queued, nodes, date = await self.run([*queues, node_states(mark), Command(("date", "+%s"))], now=now)
        records = [record for answer in queued for record in self._records(answer, mark)]
        bad = [node for node in parse.nodes(nodes.text, mark) if node.bad] if nodes.code == 0 else []
        return Look(_clock(date), records, bad)

    async def nodes(self) -> list[Node]:
        """Ask for all nodes. Raises UnreachableError: without an answer none is known to be sound."""
        mark = new_mark()
        (nodes,) = await self.run([node_states(mark)])
        if nodes.code != 0:
            raise UnreachableError(f"the Slurm controller does not tell the nodes' states: {nodes.problem}")
        return parse.nodes(nodes.text, mark)

    async def own(self) -> list[Record]:
        """Ask the controller for all jobs of the login's user."""
        mark = new_mark()
        (answer,) = await self.run([squeue(mark, "--me")])
        return self._records(answer, mark)

    async def own_comments(self) -> list[tuple[JobId, str]]:
        """Ask the controller for the comments of the login's own jobs, and nothing else of them."""
        mark, fields = new_mark(), ("JobArrayID", "Comment")
        (answer,) = await self.run([squeue(mark, "--me", fields=fields)])
        if answer.code != 0:
            raise UnreachableError(f"the Slurm controller does not answer: {answer.problem}")
        found = [(job_id(row["JobArrayID"]), row["Comment"]) for row in parse.rows(answer.text, fields, mark)]
        return [(name, comment) for name, comment in found if name is not None]

    @staticmethod
    def _records(answer: Result, mark: str) -> list[Record]:
        if answer.code == 0:
            return parse.squeue_records(answer.text, mark)
        if no_such_job(answer):
            return []
        raise UnreachableError(f"the Slurm controller does not answer: {answer.problem}")

    async def accounts(self, ids: Sequence[str]) -> Accounts:
        """Ask accounting for the newest record of each id. A failure is told, not raised."""
        chunks = [ids[i : i + IDS_PER_COMMAND] for i in range(0, len(ids), IDS_PER_COMMAND)]
        answers = await self.run([sacct("--allusers", f"--jobs={','.join(chunk)}") for chunk in chunks])
        return _joined([_account(answer) for answer in answers])

    async def own_accounts(self, since: float) -> Accounts:
        """Ask accounting for all jobs of the login's user since a time."""
        (answer,) = await self.run([own_accounts(since)])
        return _account(answer)


def own_accounts(since: float) -> Command:
    """Ask accounting for the login's jobs since a time; without one sacct begins at midnight."""
    return sacct(f"--starttime={_stamp(since)}")


def _stamp(since: float) -> str:
    # sacct reads times as the login node's local time; uts<seconds> is the same everywhere.
    return f"uts{max(since, 1):.0f}"


def _account(answer: Result) -> Accounts:
    if answer.code == 0:
        return Accounts(parse.sacct_records(answer.text))
    if "accounting storage is disabled" in answer.problem.lower():
        return Accounts(on=False)
    return Accounts(problem=f"accounting does not answer: {answer.problem}")


def _joined(parts: Sequence[Accounts]) -> Accounts:
    return Accounts(
        [record for part in parts for record in part.records],
        on=all(part.on for part in parts),
        problem=next((part.problem for part in parts if part.problem), ""),
    )


def _clock(answer: Result) -> float:
    text = answer.text.strip()
    if answer.code != 0 or not text.isdigit():
        raise UnreachableError(f"the login node does not tell the time: {answer.problem}")
    return float(text)


def check(answer: Result, what: str) -> None:
    """Raise what a command's failure means: no right, refused by Slurm, or no answer.

    Only words known to be Slurm's refusal are one. A killed command and words not known here count as no
    answer: Slurm may have accepted what was asked.
    """
    if answer.code == 0:
        return
    problem = answer.problem
    said = problem.lower()
    if silent(answer):
        raise UnreachableError(f"{what}: {problem}")
    if any(word in said for word in _DENIED):
        raise AccessRefusedError(f"{what}: {problem}", "Log in as the job's owner or as a Slurm operator.")
    if any(word in said for word in _REFUSED):
        raise RefusedError(f"{what}: {problem}")
    raise UnreachableError(f"{what}: {problem}")


def silent(answer: Result) -> bool:
    """Whether nobody answered: the command was ended, was not run, or says that it reached nobody."""
    said = answer.problem.lower()
    return answer.code >= _NOT_RUN or (answer.code != 0 and any(word in said for word in _SILENT))


def no_such_job(answer: Result) -> bool:
    """Whether the controller answered, and knows no such job."""
    return answer.code != 0 and any(word in answer.problem.lower() for word in _NO_JOB)


_NOT_RUN = 124
"""From here on exit codes are `timeout`'s (too long, could not be started) and, from 128, those of the killed."""
_SILENT = (
    "unable to contact",
    "timed out",
    "connection refused",
    "connection reset",
    "zero bytes were transmitted",
    "munge",
    "protocol authentication error",
    "communication",
    "unexpected message",
    "backup",
    "send failure",
    "receive failure",
    "rate limit",
)
_REFUSED = (
    "invalid",
    "disabled",
    "not permitted",
    "not supported",
    "not available",
    "not usable",
    "unavailable",
    "unrecognized option",
    "requires an argument",
    "job is pending execution",
    "not pending",
    "no longer pending",
    "not running",
    "not suspended",
    "already",
    "violates",
    "exceed",
    "limit reached",
    "more processors",
    "not in this partition",
    "no partition",
    "denied",
    "too long",
    "too large",
    "can not be altered",
    "dependency",
    "reservation",
    "only batch jobs",
    "batch script",
    "unable to open file",
    "unspecified error",
)
"""Words of slurm_errno.c's answers by slurmctld, and of sbatch's own complaints before it asks anybody."""
