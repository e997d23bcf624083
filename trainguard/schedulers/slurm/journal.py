"""A note in the login user's home before each action: what a crash of the guard leaves to be found.

Slurm lets no comment be written on a finished job, so a requeue's mark comes a moment after the requeue. The
note stands before it. It also decides between two processes that use one fence at the same instant: `ln`
makes a name at most once. Where the home can't be written to (a full quota is a common cause of failures),
actions go on without it.
"""

from __future__ import annotations

from dataclasses import dataclass

from trainguard.schedulers.slurm.marks import Mark, mark_of
from trainguard.transports.posix_shell import Command, Result

TAKEN = 17
"""Exit code: another process has written the note."""
_WRITE = (
    'd="$HOME/.trainguard/slurm/$1"; f="$d/$2"; umask 077; mkdir -p "$d" 2>/dev/null || exit 0; '
    'if [ -s "$f" ]; then [ "$4" = again ] || exit 17; touch "$f"; exit 0; fi; '
    'find "$d" -type f -mtime +30 -delete 2>/dev/null; t="$f.$$"; '
    '{ printf "%s\\n" "$3" >"$t"; } 2>/dev/null && [ -s "$t" ] || { rm -f "$t"; exit 0; }; '
    'ln "$t" "$f" 2>/dev/null; rc=$?; rm -f "$t"; [ "$rc" -eq 0 ] || { [ -s "$f" ] && exit 17; }; exit 0'
)
_READ = 'f="$HOME/.trainguard/slurm/$1/$2"; [ -s "$f" ] || exit 3; echo $(($(date +%s) - $(stat -c %Y "$f"))); cat "$f"'
_ERASE = 'rm -f "$HOME/.trainguard/slurm/$1/$2"'


@dataclass(frozen=True)
class Note:
    """What a process meant to do."""

    mark: Mark
    age: float
    """Seconds, by the login node's clock."""


class Journal:
    """The notes of one cluster."""

    def __init__(self, cluster: str) -> None:
        self._folder = (
            "".join(char if char.isalnum() or char in "-_" else "-" for char in cluster)[:60] or "-"
        )

    def write(self, mark: Mark, *, again: bool) -> Command:
        """Write a note before an action; `again` where this one is being taken up."""
        how = "again" if again else "new"
        return Command(("sh", "-c", _WRITE, "sh", self._folder, mark.fence, str(mark), how), timeout=30)

    def read(self, fence: str) -> Command:
        """Ask for a fence's note."""
        return Command(("sh", "-c", _READ, "sh", self._folder, fence), timeout=30)

    def erase(self, fence: str) -> Command:
        """Take a note back: the action was refused."""
        return Command(("sh", "-c", _ERASE, "sh", self._folder, fence), timeout=30)


def note(answer: Result, fence: str) -> Note | None:
    """Read the answer to `read`."""
    age, _, text = answer.text.partition("\n")
    mark = mark_of(text, fence) if answer.code == 0 else None
    if mark is None or not age.strip().lstrip("-").isdigit():
        return None
    return Note(mark, max(float(age), 0.0))
