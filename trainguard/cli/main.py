"""The command line. Commands import what they need when they run: `diagnose` must start in a blink."""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.metadata import version
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command

from trainguard.cli.terminal import say_problem
from trainguard.core.errors import TrainguardError, UserError

COMMANDS: dict[str, tuple[str, str]] = {
    "run": ("trainguard.cli.run:run", "Start a training command and guard it."),
    "watch": ("trainguard.cli.run:watch", "Guard a job that already runs."),
    "patrol": ("trainguard.cli.run:patrol", "Guard every job of a cluster that a selector finds."),
    "status": ("trainguard.cli.record:status", "Show the guarded jobs and how they are."),
    "incidents": ("trainguard.cli.record:incidents", "List incidents, or show one with its evidence."),
    "approve": ("trainguard.cli.approve:approve", "Answer a question that a guard asks."),
    "diagnose": ("trainguard.cli.diagnose:diagnose", "Find the root cause in log files."),
    "rules": ("trainguard.cli.rules:rules_app", "List, explain, test and lint the fault catalogue."),
    "doctor": ("trainguard.cli.doctor:doctor", "Say what can be reached and done, what can't, and why."),
    "supervise": ("trainguard.cli.supervise:supervise", "Run a command under the supervisor alone."),
    "demo": ("trainguard.cli.demo:demo", "Watch a training job die for real reasons and come back."),
}


class LazyCommands(TyperGroup):
    """Loads a command's module only when that command is asked for."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Name the commands in the order of a user's day."""
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Import the command; its help line alone does not need that."""
        if cmd_name not in COMMANDS:
            return None
        target, summary = COMMANDS[cmd_name]
        if ctx.resilient_parsing or _only_help():
            return TyperCommand(name=cmd_name, help=summary)
        return load_command(cmd_name, target)


def load_command(name: str, target: str) -> Any:
    """Import `module:attribute` and make it a command."""
    module, _, attribute = target.partition(":")
    found: Any = getattr(import_module(module), attribute)
    if not isinstance(found, typer.Typer):
        app = typer.Typer(add_completion=False, rich_markup_mode=None)
        app.command(name)(found)
        found = app
    command = get_command(found)
    command.name = name
    return command


def _only_help() -> bool:
    return not [word for word in sys.argv[1:] if word not in {"--help", "-h"}]


app = typer.Typer(
    cls=LazyCommands, no_args_is_help=True, add_completion=False, rich_markup_mode=None, name="trainguard"
)


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"trainguard {version('trainguard')}")
        raise typer.Exit


@app.callback(
    epilog="Exit codes: 0 done; 1 the job or what was asked failed; 2 you must act (see the message); 130 or 143 interrupted, the job goes on."
)
def root(
    asked: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Guard long training jobs: detect, diagnose, and recover from the last good checkpoint."""


def main() -> None:
    """Run the command line; what the user must mend is said in a sentence, without a traceback."""
    try:
        app()
    except UserError as problem:
        say_problem(problem, problem.remedy)
        sys.exit(2)
    except TrainguardError as problem:
        say_problem(problem, getattr(problem, "remedy", ""))
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
