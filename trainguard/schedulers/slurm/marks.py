"""The mark that an action leaves in a job's comment, behind what the owner wrote there. Pure.

    weekly run [tg-3f2a9c1d-1 restart of 47+1795312320+0 job 47 attempt 2]

It says which fence, which action, the incarnation that was acted on, the job as its guard names it, and the
number of the attempt that came of it. A job that was submitted again is found by its mark.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_MARK = re.compile(
    r" ?\[(?P<fence>tg-[a-z0-9-]{1,45}) (?P<kind>[a-z_]{1,40}) of (?P<token>[0-9][0-9+_a-f]{0,79})"
    r" job (?P<job>[0-9_+]{1,24}) attempt (?P<attempt>\d{1,6})\]"
)
FENCE = re.compile(r"tg-[a-z0-9-]{1,45}")
KEPT = 12
"""Older marks are dropped: a comment is no log."""
LONGEST = 1_000
"""Bytes of a comment; slurmctld refuses an sbatch with more than 1,024."""


@dataclass(frozen=True)
class Mark:
    """One action's trace."""

    fence: str
    kind: str
    token: str
    job: str
    attempt: int

    @property
    def base(self) -> int:
        """The Slurm id that was acted on; another one carrying the mark was born of the action."""
        return int(re.split(r"[_+]", self.token, maxsplit=1)[0])

    def __str__(self) -> str:
        """As it stands in the comment."""
        return f"[{self.fence} {self.kind} of {self.token} job {self.job} attempt {self.attempt}]"


def marks(comment: str) -> list[Mark]:
    """Read the marks of a comment, oldest first."""
    return [
        Mark(m["fence"], m["kind"], m["token"], m["job"], int(m["attempt"])) for m in _MARK.finditer(comment)
    ]


def marked(comment: str, mark: Mark) -> str:
    """Add a mark to a comment; the owner's words stay as they are.

    The oldest marks give way, but for the one that tells of which job this one came, and the new one.
    """
    kept = [*(old for old in marks(comment) if old != mark), mark]
    own = without_marks(comment)
    while True:
        text = " ".join([part for part in (own,) if part] + [str(one) for one in kept])
        born = next((one for one in reversed(kept) if one.base != mark.base), None)
        old = next((one for one in kept[:-1] if one is not born), None)
        if old is None or (len(kept) <= KEPT and len(text.encode()) <= LONGEST):
            return text
        kept.remove(old)


def without_marks(comment: str) -> str:
    """Give what the owner wrote."""
    return _MARK.sub("", comment).strip()


def mark_of(comment: str, fence: str) -> Mark | None:
    """Find a fence's mark."""
    return next((mark for mark in reversed(marks(comment)) if mark.fence == fence), None)
