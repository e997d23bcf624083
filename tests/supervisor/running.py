"""A supervised job for tests: real processes in a folder of their own, ended by pid afterwards."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from trainguard.supervisor import supervisor

T = TypeVar("T")
SCRIPT = str(Path(supervisor.__file__).resolve())


def until(look: Callable[[], T], what: str, seconds: float = 20.0) -> T:
    """Wait until the answer is true; fail with what was last seen."""
    deadline = time.monotonic() + seconds
    while True:
        answer = look()
        if answer:
            return answer
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}; last: {answer!r}"
        time.sleep(0.03)


class Supervised:
    """One state folder."""

    def __init__(self, folder: Path) -> None:
        self.home = folder
        self.state = folder / "state"

    def call(self, *words: str, env: Mapping[str, str] | None = None, input_: str = "") -> Any:
        """Run the supervisor's command line."""
        return subprocess.run(
            [sys.executable, SCRIPT, *words],
            input=input_,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            cwd=self.home,
            env={**os.environ, **(env or {})},
        )

    def start(self, *command: str, config: Mapping[str, Any] | None = None, **env: str) -> Any:
        """Start a command; gives the finished starter."""
        settings = {"sample_seconds": 0.2, "stop_seconds": 2, **(config or {})}
        words = ("start", "--config", "-", "--state", str(self.state), "--", *command)
        return self.call(*words, input_=json.dumps(settings), env=env)

    def start_python(self, code: str, config: Mapping[str, Any] | None = None, **env: str) -> Any:
        """Start a Python program that is given as text."""
        script = self.home / "train.py"
        script.write_text(code)
        return self.start(sys.executable, str(script), config=config, **env)

    def tell(self, *words: str, **more: Any) -> dict[str, Any]:
        """Send a command and give its result."""
        extra = ("--json", json.dumps(more)) if more else ()
        done = self.call("tell", str(self.state), *words, *extra)
        assert done.stdout, done
        result: dict[str, Any] = json.loads(done.stdout)
        return result

    def view(self) -> dict[str, Any]:
        """Give the state as it is now."""
        return supervisor.view(self.state)

    def until_status(self, *wanted: str, seconds: float = 20.0) -> dict[str, Any]:
        """Wait for a status."""
        last: dict[str, Any] = {}

        def look() -> bool:
            last.clear()
            last.update(self.view())
            return last["status"] in wanted

        until(look, f"status {' or '.join(wanted)}, last {last}", seconds)
        return last

    def log(self, attempt: int = 0) -> str:
        """Give an attempt's whole log; of the newest by default."""
        number = attempt or supervisor.attempt_numbers(self.state)[-1]
        pieces = supervisor.pieces(self.state / "logs", number)
        return b"".join(path.read_bytes() for _, path in pieces).decode("utf-8", "replace")

    def lines(self, name: str) -> list[str]:
        """Give the lines of a file that the command writes in its home."""
        path = self.home / name
        return path.read_text().splitlines() if path.exists() else []

    def kill_supervisor(self) -> None:
        """End the supervisor as the kernel would, and wait until it is gone."""
        pid = json.loads((self.state / "state.json").read_text())["supervisor"]["pid"]
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        until(lambda: supervisor.start_of(pid) is None, "the supervisor is dead")

    def attempt(self, number: int = 0) -> supervisor.Attempt:
        """Give an attempt; the newest by default."""
        return supervisor.Attempt(self.state, number or supervisor.attempt_numbers(self.state)[-1])

    def end(self) -> None:
        """End everything that was started here, by pid."""
        if not (self.state / "state.json").exists():
            return
        with contextlib.suppress(OSError, ValueError, supervisor.StateError):
            self.kill_supervisor()
        for number in supervisor.attempt_numbers(self.state):
            attempt = supervisor.Attempt(self.state, number)
            supervisor.signal_all(attempt.processes(), signal.SIGKILL)
            shim = (attempt.read("started") or {}).get("shim")
            if shim and attempt.shim_alive():
                supervisor.signal_all([shim], signal.SIGKILL)


def words(state: Mapping[str, Any], names: Sequence[str]) -> list[Any]:
    """Pick some fields."""
    return [state.get(name) for name in names]
