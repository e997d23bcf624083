"""Which process ended how, in the words of what started it: torchrun, srun, mpirun."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from trainguard.core.diagnosis.text import Stamp, head

_SIGTERM = 15


@dataclass(frozen=True, slots=True)
class Exit:
    """One process's end."""

    line: int
    text: str
    rank: int | None = None
    local_rank: int | None = None
    node: str = ""
    status: int | None = None
    """Exit code; negative for a signal."""
    stamp: Stamp | None = None

    @property
    def told_to(self) -> bool:
        """Whether it only followed an order to stop."""
        return self.status in (0, -_SIGTERM, 128 + _SIGTERM)


PROBES: tuple[str, ...] = (
    r"^\s*exitcode\s{0,6}: +(?P<status>-?\d+) \(pid: ",
    r"failed \(exitcode: (?P<status>-?\d+)\) local_rank: (?P<local>\d+)",
    r"srun: error: (?P<node>[\w.-]+): tasks? (?P<rank>\d+): (?P<how>Killed|Out Of Memory|Exited with exit code|Segmentation fault|Bus error|Aborted|Terminated)",
    r"rank (?P<rank>\d+) with PID \d+ on node (?P<node>[\w.-]+) exited on signal (?P<signal>\d+)",
)
"""Searched like rules. torchrun's report names host, rank and time on the lines before its exit code."""
_HOW = {
    "Killed": -9,
    "Out Of Memory": -9,
    "Segmentation fault": -11,
    "Bus error": -7,
    "Aborted": -6,
    "Terminated": -_SIGTERM,
}
_REPORT = re.compile(r"^\s*(?P<key>time|host|rank)\s{1,8}: (?P<value>.+)$")


def exit_of(found: re.Match[str], line: int, text: str, stamp: Stamp | None, before: Sequence[str]) -> Exit:
    """The end that a probe's match tells of; `before` are the messages before it, oldest first."""
    groups = {name: value for name, value in found.groupdict().items() if value}
    status = int(groups["status"]) if "status" in groups else _HOW.get(groups.get("how", ""))
    if "signal" in groups:
        status = -int(groups["signal"])
    if groups.get("how") == "Exited with exit code":
        code = re.search(r"exit code (\d+)", text)
        status = int(code.group(1)) if code else None
    said = Exit(
        line,
        text,
        rank=_int(groups.get("rank")),
        local_rank=_int(groups.get("local")),
        node=groups.get("node", ""),
        status=status,
        stamp=stamp,
    )
    return _reported(said, before) if said.rank is None and said.local_rank is None else said


def _reported(said: Exit, before: Sequence[str]) -> Exit:
    report: dict[str, str] = {}
    for text in before[-6:]:
        field = _REPORT.match(text)
        if field is not None:
            report[field["key"]] = field["value"].strip()
    rank = re.match(r"(\d+)(?: \(local_rank: (\d+)\))?", report.get("rank", ""))
    when = head(report.get("time", "").replace("_", " ", 1)).stamp
    return Exit(
        said.line,
        said.text,
        rank=_int(rank.group(1)) if rank else None,
        local_rank=_int(rank.group(2)) if rank else None,
        node=report.get("host", ""),
        status=said.status,
        stamp=when or said.stamp,
    )


def _int(text: str | None) -> int | None:
    return None if text is None else int(text)
