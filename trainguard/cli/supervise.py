"""`trainguard supervise`: the supervisor alone, without a guard."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from trainguard.supervisor import supervisor


def supervise(
    command: Annotated[
        list[str] | None,
        typer.Argument(help="The training command, after --; by default the configured one."),
    ] = None,
    config: Annotated[
        Path | None, typer.Option("--config", help="supervisor.toml or supervisor.json.")
    ] = None,
    state: Annotated[Path | None, typer.Option("--state", help="State folder of the job.")] = None,
    foreground: Annotated[
        bool,
        typer.Option("--foreground", help="Do not detach; show the command's output and end with its code."),
    ] = False,
) -> None:
    """Run a training command so that it outlives this terminal, without a guard.

    The state folder is the job: `trainguard watch STATE` guards it, `python supervisor.py tell STATE stop` ends
    it. Exit code 2 means that the gate or a setting said no, with the reason.
    """
    words = ["start"]
    words += ["--config", str(config)] if config else []
    words += ["--state", str(state)] if state else []
    words += ["--foreground"] if foreground else []
    # The supervisor forks: it must do so in a process that has no threads and holds nothing of ours.
    script = str(Path(supervisor.__file__).resolve())
    os.execv(sys.executable, [sys.executable, "-I", "-S", script, *words, "--", *(command or ())])  # noqa: S606
