"""Runs the owner's recovery scripts through prefect-shell, without ever putting data into a command."""

from __future__ import annotations

import asyncio
import base64
import os
import signal
from contextlib import suppress
from pathlib import Path
from time import monotonic

import yaml
from prefect_shell import ShellOperation

from trainguard.core.errors import ConfigError
from trainguard.core.fact import Fact
from trainguard.core.handlers import DEFAULT_TIMEOUT, FailureHandler, HandlerRule, handlers_from
from trainguard.core.masking import mask

OUTPUT_BYTES = 65_536
"""The end of a script's output that is kept."""
_COMMAND = (
    f'"$TRAINGUARD_SCRIPT" </dev/null 2>&1 | tail -c {OUTPUT_BYTES} | base64; code=${{PIPESTATUS[0]}}; '
    'if [ -n "$TRAINGUARD_MARK" ]; then { printf %s "$code" >"$TRAINGUARD_MARK.new" && '
    'mv "$TRAINGUARD_MARK.new" "$TRAINGUARD_MARK"; } 2>/dev/null; fi; exit "$code"'
)
"""The whole command: the script's path reaches the shell as a variable, never as text to be parsed.

The mark tells a guard that comes after a dead one how the script ended. Base64, because prefect-shell makes a line
break wherever a read ends: a secret in two halves would not be masked.
"""
STOPPED = "stopped"
"""What the mark says of a script that was ended before its time."""


class ScriptResult(Fact):
    """What came of a recovery script."""

    exit_code: int | None
    """None where it was stopped or could not be started."""
    timed_out: bool = False
    seconds: float = 0.0
    output: str = ""
    """The end of what it printed, masked."""

    @property
    def succeeded(self) -> bool:
        """Whether it ended by itself with exit code 0."""
        return self.exit_code == 0 and not self.timed_out


def load_handlers(path: Path) -> tuple[FailureHandler, ...]:
    """Read the handlers of a rules file. Scripts are found from the file's folder.

    Raises ConfigError for a file that can't be read or used, and for a script that can't be run.
    """
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as problem:
        raise ConfigError(
            str(path), f"can't be read: {problem}", "check the path and its rights"
        ) from problem
    except yaml.YAMLError as problem:
        raise ConfigError(str(path), f"is no valid YAML: {problem}", "") from problem
    return tuple(
        handler.model_copy(update={"rules": tuple(_located(rule, path.parent) for rule in handler.rules)})
        for handler in handlers_from({} if data is None else data)
    )


def _located(rule: HandlerRule, folder: Path) -> HandlerRule:
    script = (folder / Path(rule.recovery_script).expanduser()).resolve()
    if not script.is_file():
        raise ConfigError(
            "recovery_script", f"{script} is no file", "paths are taken from the rules file's folder"
        )
    if not os.access(script, os.X_OK):
        raise ConfigError("recovery_script", f"{script} can't be executed", f"chmod +x {script}")
    return rule.model_copy(update={"recovery_script": str(script)})


async def run_recovery_script(
    script: str,
    *,
    job_key: str,
    incident: str,
    exit_code: int,
    attempt: int,
    checkpoint: str = "",
    timeout: float = DEFAULT_TIMEOUT,
    folder: Path | None = None,
    mark: Path | None = None,
) -> ScriptResult:
    """Run one recovery script to its end. It learns what it needs from TRAINGUARD_* variables.

    A failure, a timeout or a script that can't be started is told in the result. How it ended is also
    written to `mark`.
    """
    environment = {
        "TRAINGUARD_SCRIPT": script,
        "TRAINGUARD_JOB": job_key,
        "TRAINGUARD_INCIDENT": incident,
        "TRAINGUARD_EXIT_CODE": str(exit_code),
        "TRAINGUARD_ATTEMPT": str(attempt),
        "TRAINGUARD_CHECKPOINT": checkpoint,
        "TRAINGUARD_MARK": str(mark or ""),
    }
    operation = ShellOperation(
        commands=[_COMMAND],
        env={name: value.replace("\x00", "") for name, value in environment.items()},
        working_dir=folder or Path(script).parent,
        stream_output=False,  # unmasked otherwise
    )
    return await _run(operation, timeout, mark)


async def _run(operation: ShellOperation, timeout: float, mark: Path | None) -> ScriptResult:
    started = monotonic()
    ended = False
    async with operation:
        process = await operation.atrigger()
        try:
            async with asyncio.timeout(timeout):
                with suppress(RuntimeError):  # prefect-shell's word for an exit code other than 0
                    await process.await_for_completion()
            ended = True
        except TimeoutError:
            pass
        finally:
            if not ended:
                _kill_group(process.pid)
                _leave(mark)
        output = _decoded("".join(await process.afetch_result()))
    return ScriptResult(
        exit_code=process.return_code if ended else None,
        timed_out=not ended,
        seconds=monotonic() - started,
        output=mask(output),
    )


def _decoded(output: str) -> str:
    try:
        return base64.b64decode(output).decode("utf-8", "replace").rstrip()
    except ValueError:  # stopped in the middle
        return ""


def _leave(mark: Path | None) -> None:
    if mark is not None:
        mark.write_text(STOPPED)


def _kill_group(leader: int) -> None:
    """Leave nothing of the script behind: prefect-shell asks politely, which a script may ignore."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(leader, signal.SIGKILL)
