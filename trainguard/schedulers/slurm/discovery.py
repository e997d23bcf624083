"""Selectors of patrol: which live jobs to find. Pure."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Mapping, Sequence

from trainguard.core.errors import ConfigError
from trainguard.core.job import JobRef
from trainguard.schedulers.slurm.ids import JobId, job_id
from trainguard.schedulers.slurm.marks import marks

_WORD = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@+-]{0,63}")
_OPTIONS = {"user": "--user", "account": "--account", "partition": "--partition"}
_LIVE = "--states=PENDING,CONFIGURING,RUNNING,SUSPENDED,STOPPED,COMPLETING,REQUEUED,REQUEUE_HOLD,SPECIAL_EXIT"
Matcher = Callable[[Sequence[Mapping[str, str]], str], list[JobRef]]


def selection(selector: str) -> tuple[list[str], Matcher]:
    """Read `user=alice,partition=gpu,name=train-*`, `me` or `*`: squeue's options, and what picks the rows.

    Raises ConfigError for a selector that is none.
    """
    options, name = [_LIVE], "*"
    for part in selector.split(","):
        key, equals, value = part.strip().partition("=")
        if part.strip() == "*":
            continue
        if part.strip() == "me":
            options.append("--me")
        elif key == "name" and equals:
            name = value
        elif key in _OPTIONS and _WORD.fullmatch(value):
            options.append(f"{_OPTIONS[key]}={value}")
        else:
            raise ConfigError(
                "selector",
                f"{part[:80]!r} is none",
                "Use user=, account=, partition=, name=<pattern>, me or *.",
            )
    return options, _picker(name)


def _guarded_as(asked: JobId, comment: str) -> str:
    """Name the job as its guard does: one that was submitted again is still the one it came of.

    A heterogeneous job is one job; an array's elements are guarded one by one.
    """
    born = [mark.job for mark in marks(comment) if mark.base != asked.base and job_id(mark.job) is not None]
    if born:
        return born[-1]
    return str(asked.base) if asked.offset is not None else str(asked)


def _picker(pattern: str) -> Matcher:
    def pick(rows: Sequence[Mapping[str, str]], cluster: str) -> list[JobRef]:
        found: dict[str, JobRef] = {}
        for row in rows:
            asked = job_id(row["JobArrayID"])
            if asked is None or not fnmatch.fnmatchcase(row["Name"].strip(), pattern):
                continue
            native = _guarded_as(asked, row["Comment"])
            found[native] = JobRef(scheduler="slurm", cluster=cluster, id=native)
        return list(found.values())

    return pick
