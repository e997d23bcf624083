"""What Slurm prints, read into records. Pure.

Only text formats with explicit fields are read. JSON is not: in 22.05 `sacct --json` gives exit code 0 for
every failure and `squeue --json` an empty list with exit code 0 while the controller is down.
Fields end in a unit separator, records in a word that was made up for the call, and the free text of the
owner stands last: nothing that a job's name or comment holds can be taken for another field.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from trainguard.schedulers.slurm.ids import JobId, expand_hostlist, job_id

SEP = "\x1f"

SQUEUE_FIELDS = (
    "JobArrayID", "JobID", "State", "Reason", "exit_code", "DerivedEC", "RestartCnt", "SubmitTime",
    "StartTime", "EndTime", "EligibleTime", "Requeue", "HetJobID", "NodeList", "TimeLimit", "tres-alloc", "UserName", "Comment",
)  # fmt: skip
DETAIL_FIELDS = (
    "JobArrayID", "Partition", "TimeLimit", "NumNodes", "NumTasks", "cpus-per-task", "MinMemory", "Account",
    "QOS", "Reservation", "ReqNodes", "tres-per-node", "Feature", "BatchHost", "UserName", "GroupName",
    "WorkDir", "STDOUT", "STDERR", "Command", "Name",
)  # fmt: skip
SACCT_FIELDS = (
    "JobID", "State", "ExitCode", "DerivedExitCode", "Submit", "Start", "End", "NodeList", "User", "Comment",
)  # fmt: skip
NODE_FIELDS = ("NodeList", "StateLong", "Reason")
_NOTHING = frozenset({"", "(null)", "N/A", "None assigned", "Unknown", "NONE", "None"})


@dataclass(frozen=True)
class Record:
    """One job, array element or component as squeue or sacct gives it. Times are seconds since the epoch."""

    id: JobId
    source: str
    state: str
    reason: str = ""
    code: int | None = None
    signal: int = 0
    derived_code: int = 0
    restarts: int | None = None
    """sacct does not tell: there it is the number of older records."""
    submit: int = 0
    start: int | None = None
    end: int | None = None
    eligible: int | None = None
    requeue: bool = False
    nodes: tuple[str, ...] = ()
    user: str = ""
    comment: str = ""
    time_limit: int | None = None
    """Minutes."""
    memory: int | None = None
    """Megabytes a node, as allocated."""
    requeueing: bool = False
    """It is being killed to be requeued: the controller counts the next restart already."""


@dataclass(frozen=True)
class Node:
    """A node as sinfo tells of it."""

    name: str
    state: str
    reason: str

    @property
    def unknown(self) -> bool:
        """Its controller has just started and has not determined the state yet (sinfo(1), NODE STATE CODES)."""
        return self.state.startswith("unk")

    @property
    def bad(self) -> bool:
        """Down, drained, failing or not answering."""
        return out_of_service(self.state) or (self.state.endswith("*") and not self.unknown)


def squeue_format(fields: Iterable[str], mark: str) -> str:
    """Give the -O argument for these fields; the last one ends in `mark`."""
    names = list(fields)
    return ",".join([f"{name}:{SEP}" for name in names[:-1]] + [f"{names[-1]}:{mark}"])


def rows(text: str, fields: tuple[str, ...], mark: str) -> list[dict[str, str]]:
    """Take squeue's (or, with `mark` after each line's last field, any such) output apart."""
    found = []
    for record in text.split(f"{mark}\n"):
        values = record.split(SEP, len(fields) - 1)
        if len(values) == len(fields):
            found.append(dict(zip(fields, values, strict=True)))
    return found


def sacct_rows(text: str, fields: tuple[str, ...]) -> list[dict[str, str]]:
    """Take `sacct -n -P --delimiter=SEP` apart. A newline in the last field only cuts that field short."""
    found = []
    for line in text.split("\n"):
        values = line.split(SEP, len(fields) - 1)
        if len(values) == len(fields):
            found.append(dict(zip(fields, values, strict=True)))
    return found


def squeue_records(text: str, mark: str) -> list[Record]:
    """Read the answer to a query with SQUEUE_FIELDS."""
    return [record for row in rows(text, SQUEUE_FIELDS, mark) if (record := _squeue(row)) is not None]


def _squeue(row: Mapping[str, str]) -> Record | None:
    name = job_id(row["JobArrayID"]) or job_id(row["JobID"])
    if name is None:
        return None
    code, signal = wait_status(row["exit_code"])
    return Record(
        id=name,
        source="squeue",
        state=row["State"].strip(),
        reason=_text(row["Reason"]),
        code=code,
        signal=signal,
        derived_code=wait_status(row["DerivedEC"])[0] or 0,
        restarts=_int(row["RestartCnt"]) or 0,
        submit=_int(row["SubmitTime"]) or 0,
        start=_int(row["StartTime"]),
        end=_int(row["EndTime"]),
        eligible=_int(row["EligibleTime"]),
        requeue=row["Requeue"].strip() not in {"0", "no"},
        nodes=node_names(row["NodeList"]),
        user=row["UserName"].strip(),
        comment=_text(row["Comment"]),
        time_limit=minutes(row["TimeLimit"]),
        memory=_memory(row["tres-alloc"], len(node_names(row["NodeList"]))),
    )


def _memory(tres: str, nodes: int) -> int | None:
    """Read `cpu=4,mem=2G,node=2`: memory over all nodes."""
    found = dict(part.partition("=")[::2] for part in tres.strip().split(","))
    total = megabytes(found.get("mem", ""))
    return None if total is None or nodes == 0 else total // nodes


def sacct_records(text: str) -> list[Record]:
    """Read the answer to a query with SACCT_FIELDS and --duplicates: the newest record of each id."""
    return newest(record for row in sacct_rows(text, SACCT_FIELDS) if (record := _sacct(row)) is not None)


def newest(records: Iterable[Record]) -> list[Record]:
    """Of several records of one id keep the newest. Each requeue left one; only a reused id has another user."""
    found: dict[JobId, Record] = {}
    for record in sorted(records, key=lambda one: one.submit):
        older = found.get(record.id)
        again = older is not None and older.user == record.user and older.submit < record.submit
        restarts = (older.restarts or 0) + 1 if older is not None and again else 0
        found[record.id] = replace(record, restarts=restarts)
    return list(found.values())


def _sacct(row: Mapping[str, str]) -> Record | None:
    name = job_id(row["JobID"])
    state = row["State"].split()
    if name is None or not state:
        return None
    code, signal = exit_code(row["ExitCode"])
    # An exit code above 128 loses 128 in sacct: `exit 137` reads 9:0, like `exit 9`. squeue tells them apart.
    return Record(
        id=name,
        source="sacct",
        # `CANCELLED by 1001` and the cut-off `OUT_OF_ME+`.
        state=state[0].rstrip("+"),
        reason=row["State"].strip() if len(state) > 1 else "",
        code=code,
        signal=signal,
        derived_code=exit_code(row["DerivedExitCode"])[0] or 0,
        submit=_int(row["Submit"]) or 0,
        start=_int(row["Start"]),
        end=_int(row["End"]),
        nodes=node_names(row["NodeList"]),
        user=row["User"].strip(),
        comment=_text(row["Comment"]),
    )


def wait_status(text: str) -> tuple[int | None, int]:
    """Read squeue's exit code: 22.05 prints the status of wait(2), 24.11 `3:0`."""
    if ":" in text:
        return exit_code(text)
    status = _int(text)
    return (None, 0) if status is None else (status >> 8, status & 0x7F)


def exit_code(text: str) -> tuple[int | None, int]:
    """Read `3:0` into code and signal."""
    code, _, signal = text.strip().partition(":")
    return _int(code), _int(signal) or 0


def nodes(text: str, mark: str) -> list[Node]:
    """Read sinfo's nodes with their state and reason, each once."""
    found = {}
    for row in rows(text, NODE_FIELDS, mark):
        name = row["NodeList"].strip()
        found[name] = Node(name, row["StateLong"].strip().lower(), _text(row["Reason"]))
    return list(found.values())


def out_of_service(state: str) -> bool:
    """Whether a node in this state, as sinfo writes it, is given to no job until somebody returns it.

    `inval` registered with less than slurm.conf promises, a lost GPU for one (sinfo(1), NODE STATE CODES).
    """
    return state.strip().lower().startswith(("down", "drain", "fail", "inval"))


def node_names(text: str) -> tuple[str, ...]:
    """Expand a list of nodes; what is none (`None assigned`, `(null)`) gives nothing."""
    if _text(text) == "":
        return ()
    try:
        return expand_hostlist(text.strip())
    except ValueError:
        return ()


def show_value(text: str, key: str) -> str:
    """Give the value of `Key=value` in scontrol's text; values end at a blank. Empty where there is none."""
    for word in text.split():
        name, equals, value = word.partition("=")
        if equals and name == key:
            return _text(value)
    return ""


def minutes(text: str) -> int | None:
    """Read Slurm's `[days-]hours:minutes:seconds`, `minutes` or `minutes:seconds`. None for UNLIMITED."""
    days, dash, rest = text.strip().rpartition("-")
    try:
        parts = [int(part) for part in rest.split(":")]
        total_days = int(days) if dash else 0
    except ValueError:
        return None
    if dash:
        hours, mins = (*parts, 0, 0)[:2]
    elif len(parts) == 3:
        hours, mins = parts[:2]
    else:
        hours, mins = 0, parts[0]
    return total_days * 1440 + hours * 60 + mins


_UNITS = {"K": 1 / 1024, "M": 1, "G": 1024, "T": 1024**2}


def megabytes(text: str) -> int | None:
    """Read `100M`, `1.5G`, `2000`. None for what is no size."""
    text = text.strip().upper().rstrip("NCB")
    factor = _UNITS.get(text[-1:])
    try:
        return round(float(text if factor is None else text[:-1]) * (factor or 1))
    except ValueError:
        return None


def _int(text: str) -> int | None:
    text = text.strip()
    return int(text) if text.isascii() and text.isdigit() else None


def _text(text: str) -> str:
    text = text.strip()
    return "" if text in _NOTHING else text
