"""How the command line shows tables and says what is wrong."""

from __future__ import annotations

import os
import shutil
import sys
import textwrap
from typing import TYPE_CHECKING

import typer

from trainguard.core.messages import span

if TYPE_CHECKING:
    from rich.table import Table


def table(*heads: str) -> Table:
    """Begin a table without frames: what does not fit a narrow terminal is folded, never cut."""
    from rich.table import Table  # a tenth of a second

    made = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for head in heads:
        made.add_column(head, overflow="fold")
    return made


def print_table(shown: Table, *, wide: int = 1000) -> None:
    """Print a table; a file or a pipe gets each row on one line, up to `wide` columns, for grep and awk."""
    from rich.console import Console

    fits = sys.stdout.isatty() or "COLUMNS" in os.environ
    Console(width=None if fits else wide, highlight=False).print(shown)


def age(at: float | None, now: float) -> str:
    """Say roughly how long ago something was."""
    return "-" if at is None else " ".join([*span(now - at).split()[:2], "ago"])


def say_problem(problem: Exception, remedy: str) -> None:
    """Say on standard error what is wrong, and below it what to do; on a terminal broken between words."""
    _say(f"trainguard: {problem}", "")
    if remedy:
        _say(remedy, "  ")


def _say(text: str, indent: str) -> None:
    if sys.stderr.isatty():
        width = shutil.get_terminal_size().columns
        lines = text.splitlines() or [""]
        text = "\n".join(
            textwrap.fill(
                line,
                width,
                initial_indent=indent,
                subsequent_indent="  ",
                break_long_words=False,
                break_on_hyphens=False,
            )
            for line in lines
        )
    else:
        text = indent + text
    typer.echo(text, err=True)
