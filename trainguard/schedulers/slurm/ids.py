"""Slurm's names for jobs and nodes. https://slurm.schedmd.com/squeue.html, hostlists in scontrol's page."""

from __future__ import annotations

import re
from dataclasses import dataclass

_JOB = re.compile(r"(\d{1,10})(?:_(\d{1,9})|\+(\d{1,5}))?")
_NODE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_RANGE = re.compile(r"(\d+)(?:-(\d+))?")


@dataclass(frozen=True)
class JobId:
    """`47`, an array's element `47_2`, or a component of a heterogeneous job `53+1`."""

    base: int
    task: int | None = None
    offset: int | None = None

    def __str__(self) -> str:
        """As Slurm's commands take it."""
        task = "" if self.task is None else f"_{self.task}"
        return f"{self.base}{task}" + ("" if self.offset is None else f"+{self.offset}")

    @property
    def asked(self) -> str:
        """What to ask squeue for: a component is found by its leader."""
        return str(self.base) if self.task is None else f"{self.base}_{self.task}"


def job_id(text: str) -> JobId | None:
    """Read an id; None for anything else, however it looks."""
    match = _JOB.fullmatch(text, 0) if text.isascii() else None
    if match is None or int(match[1]) == 0:
        return None
    return JobId(int(match[1]), _number(match[2]), _number(match[3]))


def _number(text: str | None) -> int | None:
    return None if text is None else int(text)


def is_node_name(text: str) -> bool:
    """Whether a text can be the name of one node."""
    return _NODE.fullmatch(text) is not None


def expand_hostlist(text: str, limit: int = 100_000) -> tuple[str, ...]:
    """Expand `n[1-3,07],gpu-a` to single names. Raises ValueError where it can't be one or is too long."""
    names: list[str] = []
    for part in _top_level(text):
        names += _expand(part, limit - len(names))
    return tuple(names)


def _top_level(text: str) -> list[str]:
    parts, depth, current = [], 0, ""
    for char in text:
        depth += (char == "[") - (char == "]")
        if char == "," and depth == 0:
            parts.append(current)
            current = ""
        else:
            current += char
    if depth != 0:
        raise ValueError(f"unbalanced brackets in {text[:80]!r}")
    return [part for part in [*parts, current] if part]


def _expand(part: str, limit: int) -> list[str]:
    before, opening, rest = part.partition("[")
    if not opening:
        return [part]
    inside, _, after = rest.partition("]")
    names = []
    for tail in _expand(after, limit):
        for number in _numbers(inside, limit):
            names.append(f"{before}{number}{tail}")
            if len(names) > limit:
                raise ValueError("too many nodes in a list")
    return names


def _numbers(inside: str, limit: int) -> list[str]:
    numbers: list[str] = []
    for part in inside.split(","):
        match = _RANGE.fullmatch(part)
        if match is None:
            raise ValueError(f"no range of numbers: {part[:80]!r}")
        low, high = match[1], match[2] or match[1]
        if int(high) - int(low) >= limit:
            raise ValueError("too many nodes in a list")
        numbers += [str(n).zfill(len(low)) for n in range(int(low), int(high) + 1)]
    return numbers
