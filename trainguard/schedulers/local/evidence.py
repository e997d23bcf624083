"""What can be found out about a job on its own machine. Blocking; bounded in bytes and time."""

from __future__ import annotations

import json
import re
import shutil
import time
from pathlib import Path
from typing import Any

from trainguard.core.evidence import Evidence, EvidenceKind
from trainguard.core.job import Job
from trainguard.core.observation import LogSource
from trainguard.supervisor import supervisor

LOG_BYTES = 4_000_000
EARLIER_BYTES = 256_000
OOM_BEGINS = re.compile(r"invoked oom-killer")
OOM_ENDS = re.compile(r"Killed process (\d+)|oom_reaper: reaped process (\d+)")


def collect(job: Job) -> list[Evidence]:
    """Gather log tails, state, attempts, kernel log, stacks and GPU state."""
    folder = Path(job.ref.id)
    found: list[Evidence] = []
    try:
        state = supervisor.view(folder)
    except supervisor.StateError as error:
        state = {}
        found.append(_note(folder, "state", str(error)))
    found += _logs(folder, state)
    found += [_extra(Path(word)) for word in job.extra_logs]
    if state:
        now = {key: value for key, value in state.items() if key != "attempts"}
        found.append(
            _said("supervisor state", EvidenceKind.STATUS, json.dumps(now, indent=1, sort_keys=True))
        )
        found += _processes(folder, state)
    found += _kernel(state)
    return [item for item in found if item.text]


def stream_name(folder: Path, attempt: int) -> str:
    """Name an attempt's log stream: its first piece, whatever rotation made of it."""
    return str(folder / "logs" / f"attempt-{attempt:04d}.log")


def _logs(folder: Path, state: dict[str, Any]) -> list[Evidence]:
    try:
        numbers = supervisor.attempt_numbers(folder)
    except supervisor.StateError as error:
        return [_note(folder, "logs", str(error))]
    found = []
    for number in numbers[-1:]:  # an earlier attempt's last words are another incident's evidence
        try:
            found.append(_log(folder, number, LOG_BYTES))
        except OSError as error:
            found.append(_note(folder, stream_name(folder, number), str(error)))
    return found


def _log(folder: Path, number: int, size: int) -> Evidence:
    pieces = supervisor.pieces(folder / "logs", number)
    start = supervisor.newest_start(folder / "logs", number, size)
    at, data, _ = supervisor.read_span(pieces, start, size)
    return Evidence(
        source=LogSource(name=stream_name(folder, number)),
        kind=EvidenceKind.LOG,
        text=data.decode("utf-8", "replace"),
        first_line=1 if at == 0 else None,
        at=time.time(),
        truncated=at > 0,
    )


def _extra(path: Path) -> Evidence:
    try:
        with path.open("rb") as file:
            end = file.seek(0, 2)
            file.seek(max(0, end - EARLIER_BYTES))
            data = file.read(EARLIER_BYTES)
    except OSError as error:
        return _note(path, str(path), str(error))
    return Evidence(
        source=LogSource(name=str(path)),
        kind=EvidenceKind.LOG,
        text=data.decode("utf-8", "replace"),
        first_line=1 if end <= EARLIER_BYTES else None,
        at=time.time(),
        truncated=end > EARLIER_BYTES,
    )


def _processes(folder: Path, state: dict[str, Any]) -> list[Evidence]:
    """Stacks and GPU state of what runs now."""
    found = []
    if state["status"] == "running" and state["attempt"]:
        try:
            pids = sorted(supervisor.Attempt(folder, state["attempt"]).processes())[:8]
        except supervisor.StateError as error:
            return [_note(folder, "processes", str(error))]
        text = "\n\n".join(supervisor.stacks_of(pid) for pid in pids)
        found.append(_said("process stacks", EvidenceKind.STACKS, text))
    if shutil.which("nvidia-smi"):
        found.append(_said("nvidia-smi", EvidenceKind.UTILISATION, supervisor.output_of(("nvidia-smi",), 10)))
    return found


def _kernel(state: dict[str, Any]) -> list[Evidence]:
    """The kernel's lines since the attempt began, without kills of processes that are not the job's."""
    text = supervisor.kernel_log(float(state.get("started_at") or 0))
    ours = {int(pid) for pid in [*state.get("pids", []), state.get("pid") or 0]}
    kept = without_strangers(text, ours, str(state.get("token") or "no attempt"))
    return [_said("kernel log", EvidenceKind.KERNEL, kept)]


def without_strangers(text: str, ours: set[int], token: str) -> str:
    """Leave out the kernel's out-of-memory reports about other jobs' processes: here they prove nothing.

    A report runs from the line that invokes the killer to the one that names whom it killed. It is ours if
    the process is, or if it names the attempt's control group.
    """
    kept: list[str] = []
    report: list[str] = []
    left_out = 0
    for line in text.splitlines():
        if OOM_BEGINS.search(line):
            kept += report
            report = [line]
            continue
        ended = OOM_ENDS.search(line)
        if ended is None:
            (report or kept).append(line)
            continue
        report.append(line)
        mine = int(ended.group(1) or ended.group(2)) in ours or any(token in one for one in report)
        kept += report if mine else []
        left_out += 0 if mine else len(report)
        report = []
    kept += report
    if left_out:
        kept.append(f"[trainguard] {left_out} lines about other jobs' processes left out")
    return "\n".join(kept)


def _said(name: str, kind: EvidenceKind, text: str) -> Evidence:
    return Evidence(source=LogSource(name=name, kind=kind.value), kind=kind, text=text, at=time.time())


def _note(folder: Path, name: str, problem: str) -> Evidence:
    source = LogSource(name=name, kind=EvidenceKind.STATUS.value)
    text = f"{name} of {folder} could not be read: {problem}"
    return Evidence(source=source, kind=EvidenceKind.STATUS, text=text, at=time.time())
