"""`trainguard supervise` is the supervisor itself."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

from tests.supervisor.running import Supervised


def supervise(job: Supervised, *words: str) -> Any:
    program = "from trainguard.cli.main import main; main()"
    argv = [sys.executable, "-c", program, "supervise", "--state", str(job.state), *words]
    return subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False, cwd=job.home)


def test_it_starts_and_returns(job: Supervised) -> None:
    done = supervise(job, "--", "sh", "-c", "echo --foreground; exit 3")
    assert done.returncode == 0, done
    assert job.until_status("failed")["exit_code"] == 3
    assert job.log() == "--foreground\n"


def test_in_the_foreground_it_ends_as_the_command_does(job: Supervised) -> None:
    done = supervise(job, "--foreground", "--", "sh", "-c", "echo hello; exit 3")
    assert (done.returncode, done.stdout) == (3, "hello\n")


def test_a_refusal_has_exit_code_2_and_no_traceback(job: Supervised) -> None:
    done = supervise(job, "--", "no-such-program")
    assert done.returncode == 2
    assert done.stderr == "command: no-such-program was not found\n  check PATH and spelling\n"
