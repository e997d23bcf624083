"""Commands for a POSIX shell at the other end of a connection, framed so that nothing can be taken for their output.

The far login shell gets one constant command, `exec sh -s`; what is to be run arrives on its standard input:

- every argument list is quoted by `shlex.join`; no other text is built from outside data;
- the whole stands between braces, so a script that arrives cut off is a syntax error and runs nothing
  (a bare shell would run half a line: `scontrol requeue 12` of `scontrol requeue 1234`);
- a random word marks where each command's output begins and ends, on both streams: what a login script
  prints is dropped, and a log can't forge an end;
- a broken connection does not stop a sequence half-way: HUP and PIPE are ignored.
"""

from __future__ import annotations

import re
import secrets
import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from trainguard.core.errors import UnreachableError

ENTRY = "exec sh -s"
"""The one command that the far login shell sees."""

_SCRUB = (
    r"unset $(env | sed -n 's/^\(\(SQUEUE\|SACCT\|SBATCH\|SRUN\|SALLOC\|SINFO\|SCANCEL\|SCONTROL\|SLURM\)"
    r"_[A-Z0-9_]*\)=.*/\1/p' | grep -v -e '^SLURM_CONF' -e '^SLURM_JWT$')"
)
"""Owners set SQUEUE_STATES, SBATCH_PARTITION and the like: they change what commands print and do."""


class AnswerLostError(UnreachableError):
    """The commands were sent and no complete answer came: whether they ran is not known."""


@dataclass(frozen=True)
class Command:
    """One program with its arguments."""

    argv: tuple[str, ...]
    stdin: str | None = None
    timeout: float = 45.0
    """Seconds until it is ended over there. A frozen Slurm controller answers after 20."""
    if_ok: bool = False
    """Run only where the command before it ended with 0; else its result repeats that code."""
    if_first: bool = False
    """Run only where the first command of all ended with 0; else its result repeats that code."""


@dataclass(frozen=True)
class Result:
    """What a command printed, and its exit code; 124 means that its time was over, or that of all commands."""

    code: int
    out: bytes
    err: bytes

    @property
    def text(self) -> str:
        """Standard output as text."""
        return self.out.decode("utf-8", "replace")

    @property
    def problem(self) -> str:
        """What it complained about, in one line of at most 500 characters."""
        words = self.err.decode("utf-8", "replace") or self.text
        return " ".join(words.split())[:500] or f"exit code {self.code}"


def new_mark() -> str:
    """Make a word that nothing on the far side can know."""
    return f"tg-{secrets.token_hex(16)}"


KILL_AFTER = 5.0
"""Seconds between the polite and the hard end of a command whose time is over."""


def compose(
    commands: Sequence[Command], mark: str, path: Sequence[str] = (), within: float | None = None
) -> bytes:
    """Write the script that runs the commands one after another.

    `path` are folders to look for programs in before those of the login environment. `within` bounds all
    commands together, whether or not anybody still waits for their answers: that many seconds after the
    script began nothing more is started, and KILL_AFTER later nothing runs.
    """
    prefix = "".join(f"{folder}:" for folder in path)
    lines = ["{", "trap '' HUP PIPE", _SCRUB, f"PATH={shlex.quote(prefix)}$PATH", "export PATH", "rc=0"]
    lines.append(f"printf '\\n{mark} 0\\n'; printf '\\n{mark} 0\\n' >&2")
    if within is not None:
        lines.append(f"end=$(($(date +%s) + {within:.0f}))")
    for number, command in enumerate(commands):
        lines += _lines(command, mark, bounded=within is not None)
        lines += ["first=$rc"] if number == 0 else []
    lines += ["exit 0", "}", ""]
    return "\n".join(lines).encode("utf-8", "surrogateescape")


def given(text: str) -> str:
    """Write a shell command that prints a text, for a pipe; nobody else sees it, as printf is the shell's own.

    A here-document is not exact: dash drops a byte of a line that begins like its delimiter and goes on with
    what is not ASCII.
    """
    return f"printf '%s\\n' {shlex.quote(text.removesuffix(chr(10)))} 2>/dev/null"


def _lines(command: Command, mark: str, *, bounded: bool) -> list[str]:
    seconds = '"$left"' if bounded else f"{command.timeout:.0f}"
    call = f"timeout -k {KILL_AFTER:.0f} {seconds} {shlex.join(command.argv)}"
    run = [f"{call} </dev/null" if command.stdin is None else f"{given(command.stdin)} | {call}", "rc=$?"]
    if bounded:
        most = f"{command.timeout:.0f}"
        left = f'left=$((end - $(date +%s))); [ "$left" -le {most} ] || left={most}'
        run = [left, 'if [ "$left" -le 0 ]; then rc=124; else', *run, "fi"]
    if command.if_ok:
        run = ['if [ "$rc" -eq 0 ]; then', *run, "fi"]
    if command.if_first:
        run = ['if [ "$first" -eq 0 ]; then', *run, "else", "rc=$first", "fi"]
    return [*run, f"printf '\\n{mark} %s\\n' \"$rc\"; printf '\\n{mark} %s\\n' \"$rc\" >&2"]


def split(out: bytes, err: bytes, mark: str, count: int) -> list[Result]:
    """Take the answers of `count` commands apart.

    Raises UnreachableError where the shell never began, AnswerLostError where not all answers are there.
    """
    fence = re.compile(rb"\n" + mark.encode() + rb" (\d+)\n")
    outs, errs = fence.split(out), fence.split(err)
    if len(outs) < 3:
        said = " ".join((out + b" " + err).decode("utf-8", "replace").split())[:300]
        raise AnswerLostError(f"the far shell did not begin to run commands: {said or 'it said nothing'}")
    if len(outs) != 2 * count + 3 or len(errs) != len(outs):
        raise AnswerLostError("the connection ended before the commands had answered")
    return [Result(int(outs[index + 1]), outs[index], errs[index]) for index in range(2, 2 * count + 2, 2)]
