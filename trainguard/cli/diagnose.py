"""`trainguard diagnose`: the root cause of what lies in log files, without a cluster or a guard."""

from __future__ import annotations

import gzip
import json
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from trainguard.cli.terminal import say_problem
from trainguard.core.diagnosis import Catalogue, Examination, Stream
from trainguard.core.diagnosis.stream import CHUNK
from trainguard.core.errors import UserError
from trainguard.core.evidence import EvidenceKind
from trainguard.core.job import JobRef
from trainguard.core.observation import Liveness, LogSource, Observation
from trainguard.core.verdict import Diagnosis, FaultClass
from trainguard.rules import load_catalogue
from trainguard.rules.store import user_folder

_LOG_SUFFIXES = {".log", ".out", ".err", ".txt", ".gz", ".stdout", ".stderr", ""}
_RANK_IN_NAME = re.compile(r"(?i)(?:^|[._/-])(?:rank|task|worker|proc)[._-]?(\d{1,6})(?=[._/-]|$)")
_NODE_IN_NAME = re.compile(r"(?i)(?:^|[._/-])(?:node|host)[=_.-]?([a-z0-9][a-z0-9-]*?\d+)(?=[._/]|$)")
_KERNEL_NAME = re.compile(r"(?i)dmesg|kern(?:el)?[._-]|kmsg|journal")
_KERNEL_WORD = re.compile(r"(?i)[._-]*(?:dmesg|kernel|kern|kmsg|journal(?:ctl)?)[._-]*")
_HOST = re.compile(r"(?i)^([a-z][a-z0-9.-]{0,60}\d)$")
"""`n01` of n01-dmesg.log, or of n01/dmesg."""
_KINDS = {
    "log": EvidenceKind.LOG,
    "dmesg": EvidenceKind.KERNEL,
    "kernel": EvidenceKind.KERNEL,
    "k8s_events": EvidenceKind.EVENTS,
    "events": EvidenceKind.EVENTS,
    "status": EvidenceKind.STATUS,
    "slurm": EvidenceKind.ACCOUNTING,
    "accounting": EvidenceKind.ACCOUNTING,
}

Files = Annotated[
    list[str] | None,
    typer.Argument(help="Log files, folders of them, or - for standard input. Many files are many ranks."),
]


def diagnose(
    files: Files = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the diagnosis as JSON.")] = False,
    jsonl: Annotated[bool, typer.Option("--jsonl", help="Answer cases from standard input.")] = False,
    rules: Annotated[list[Path] | None, typer.Option(help="A file of own rules; may be given often.")] = None,
    exit_code: Annotated[int | None, typer.Option(help="The job's exit code, as its scheduler says.")] = None,
    signal: Annotated[int | None, typer.Option(help="The signal that ended it.")] = None,
    native: Annotated[str, typer.Option(help="The scheduler's own word, such as NODE_FAIL.")] = "",
    oom_killed: Annotated[
        bool | None, typer.Option("--oom-killed/--not-oom-killed", help="Whether memory killed it.")
    ] = None,
) -> None:
    """Find the root cause in log files and show the lines that prove it."""
    try:
        catalogue = load_catalogue(rules or (), user_folder())
        if jsonl:
            answer_cases(catalogue)
            return
        streams = tuple(stream_of(path) for path in expand(files or []))
        observation = observed(exit_code, signal, native, oom_killed)
        examination = Examination(streams, catalogue, observation)
    except UserError as error:
        say_problem(error, error.remedy)
        raise typer.Exit(2) from error
    if as_json:
        typer.echo(examination.diagnosis.model_dump_json(indent=2))
        return
    from trainguard.cli.diagnosis_view import show  # rich is only needed here

    show(examination)


def answer_cases(catalogue: Catalogue) -> None:
    """Read `{"id", "scheduler", "kind", "text"}` a line, write an answer a line."""
    for number, line in enumerate(sys.stdin, start=1):
        if not line.strip():
            continue
        try:
            case = json.loads(line)
            name, kind, text = case["id"], case["kind"], case["text"]
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"standard input, line {number}: no case: {error!r}") from error
        source = LogSource(name=str(name))
        stream = Stream(source, _KINDS.get(kind, EvidenceKind.LOG), (str(text),))
        typer.echo(json.dumps({"id": name} | answer(Examination((stream,), catalogue).diagnosis)))


def answer(diagnosis: Diagnosis) -> dict[str, Any]:
    """A diagnosis in the four words of a scored case."""
    failed = diagnosis.fault not in (FaultClass.HEALTHY, FaultClass.UNKNOWN)
    cited = diagnosis.citations if diagnosis.fault is not FaultClass.HEALTHY else ()
    return {
        "label": diagnosis.fault.value,
        "evidence": cited[0].text if cited else "",
        "transient": diagnosis.transient if failed else None,
        "action": diagnosis.actions[0].value if diagnosis.actions else "none",
    }


def observed(
    exit_code: int | None, signal: int | None, native: str, oom_killed: bool | None
) -> Observation | None:
    """What the caller says of the job's end, in the scheduler's place; None where nothing is said."""
    if exit_code is None and signal is None and not native and oom_killed is None:
        return None
    clean = exit_code == 0 and not signal and not oom_killed
    return Observation(
        job=JobRef(scheduler="local", cluster="files", id="diagnose"),
        at=0.0,
        source="command line",
        liveness=Liveness.SUCCEEDED if clean else Liveness.FAILED,
        native=native,
        exit_code=exit_code,
        exit_signal=signal,
        oom_killed=oom_killed,
    )


def expand(names: Sequence[str]) -> list[Path]:
    """Files and the log files of folders. Raises UserError where there is nothing to read."""
    if not names:
        raise UserError("no log files", "Give files, a folder, or - for standard input.")
    found: list[Path] = []
    for name in names:
        path = Path(name)
        if name == "-" or path.is_file() or path.is_fifo():
            found.append(path)
        elif path.is_dir():
            inside = sorted(p for p in path.rglob("*") if p.is_file() and p.suffix.lower() in _LOG_SUFFIXES)
            if not inside:
                raise UserError(f"{name} holds no log files", "Their names end in .log, .out, .err or .txt.")
            found += inside
        else:
            raise UserError(f"{name} does not exist or is no file")
    return found


def stream_of(path: Path) -> Stream:
    """A file as a stream; rank, node and kind are read from its name."""
    name = str(path)
    rank, node = _RANK_IN_NAME.search(name), _NODE_IN_NAME.search(name)
    kernel = _KERNEL_NAME.search(path.name) is not None
    if kernel and node is None:
        node = _HOST.match(_KERNEL_WORD.sub("", path.stem)) or _HOST.match(path.parent.name)
    kind = EvidenceKind.KERNEL if kernel else EvidenceKind.LOG
    source = LogSource(
        name=name,
        kind=kind.value,
        rank=int(rank.group(1)) if rank else None,
        node=node.group(1) if node else "",
    )
    return Stream(source, kind, _blocks(path))


def _blocks(path: Path) -> Iterator[bytes]:
    """The bytes of a file, packed or not. Raises UserError where it can't be read."""
    try:
        if str(path) == "-":
            yield from iter(lambda: sys.stdin.buffer.read(CHUNK), b"")
            return
        with path.open("rb") as raw:
            packed = raw.read(2) == b"\x1f\x8b"
            raw.seek(0)
            if not packed:
                yield from iter(lambda: raw.read(CHUNK), b"")
                return
            with gzip.open(raw) as unpacked:
                yield from iter(lambda: unpacked.read(CHUNK), b"")
    except (OSError, EOFError) as error:
        raise UserError(f"{path} can't be read: {error}") from error


if __name__ == "__main__":
    typer.run(diagnose)
