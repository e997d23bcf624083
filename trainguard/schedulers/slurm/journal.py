"""A note in the login user's home before each action: what a crash of the guard leaves to be found.

Slurm lets no comment be written on a finished job, so a requeue's mark comes a moment after the requeue. The
note stands before it. It also decides between two processes that use one fence at the same instant: `ln`
makes a name at most once. Where the home can't be written to (a full quota is a common cause of failures),
actions go on without it.

The note also says when the commands were begun and how long they may take in all: they go on without the
connection, so until then nothing can be concluded from what is not to be seen.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from trainguard.schedulers.slurm.marks import Mark, mark_of
from trainguard.transports.posix_shell import Command, Result

TAKEN = 17
"""Exit code: another process has written the note."""
NONE = 3
"""Exit code: there is no such note. Any other says that the home does not answer."""
_WRITE = (
    'd="$HOME/.trainguard/slurm/$1"; f="$d/$2"; umask 077; mkdir -p "$d" 2>/dev/null || exit 0; '
    'if [ -s "$f" ] && [ "$4" != again ]; then exit 17; fi; '
    'find "$d" -type f -mtime +30 -delete 2>/dev/null; t="$f.$$"; '
    '{ printf "%s at %s\\n" "$3" "$(date +%s)" >"$t"; } 2>/dev/null && [ -s "$t" ] || '
    '{ rm -f "$t"; [ ! -e "$f" ] || touch "$f"; exit 0; }; '
    'if [ "$4" = again ]; then mv -f "$t" "$f" || { rm -f "$t"; touch "$f"; }; exit 0; fi; '
    'ln "$t" "$f" 2>/dev/null; rc=$?; rm -f "$t"; [ "$rc" -eq 0 ] || { [ -s "$f" ] && exit 17; }; exit 0'
)
_READ = 'f="$HOME/.trainguard/slurm/$1/$2"; [ -s "$f" ] || exit 3; echo "$(date +%s) $(stat -c %Y "$f")"; cat "$f"'
_TIMES = re.compile(r"\] within (\d{1,6})(?: at (\d{1,12}))?\s*$")
WITHIN = 300.0
"""Seconds that the commands of one note may take together at most."""
_ERASE = 'rm -f "$HOME/.trainguard/slurm/$1/$2"'


@dataclass(frozen=True)
class Note:
    """What a process meant to do."""

    mark: Mark
    age: float
    """Seconds, by the login node's clock."""
    within: float
    """Seconds that its commands may take in all."""
    at: float
    """When it was written, by the login node's clock."""


class Journal:
    """The notes of one cluster."""

    def __init__(self, cluster: str) -> None:
        self._folder = (
            "".join(char if char.isalnum() or char in "-_" else "-" for char in cluster)[:60] or "-"
        )

    def write(self, mark: Mark, within: float, *, again: bool) -> Command:
        """Write a note before an action; `again` where this one is being taken up."""
        how, text = "again" if again else "new", f"{mark} within {within:.0f}"
        return Command(("sh", "-c", _WRITE, "sh", self._folder, mark.fence, text, how), timeout=30)

    def read(self, fence: str) -> Command:
        """Ask for a fence's note."""
        return Command(("sh", "-c", _READ, "sh", self._folder, fence), timeout=30)

    def erase(self, fence: str) -> Command:
        """Take a note back: the action was refused."""
        return Command(("sh", "-c", _ERASE, "sh", self._folder, fence), timeout=30)


def note(answer: Result, fence: str) -> Note | None:
    """Read the answer to `read`."""
    clock, _, text = answer.text.partition("\n")
    mark = mark_of(text, fence) if answer.code == 0 else None
    words = clock.split()
    if mark is None or len(words) != 2 or not all(word.isdigit() for word in words):
        return None
    now, written = (float(word) for word in words)
    times = _TIMES.search(text)
    # The file's time is that of the home's server, the one in the note the login node's: the later one counts.
    at = max(written, float(times[2] or 0) if times else 0.0)
    return Note(mark, max(now - at, 0.0), float(times[1]) if times else WITHIN, at)
