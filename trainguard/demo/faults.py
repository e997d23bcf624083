"""Trouble that a training job meets for real, each at its step and once per job.

What has happened is kept on an incident tape in the job's work folder, written before the trouble begins,
so that the next attempt passes the same step unharmed. Nothing here imitates: memory is allocated, files
are cut short by a kill, locks are held. Standard library only.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

TAPE = "incidents.json"


class FaultKind(StrEnum):
    """What can happen. The words of the trainers' `--fault KIND@STEP`."""

    MEMORY_LEAK = "memory-leak"
    """A cache that never forgets grows until something ends the process."""
    TRUNCATED_CHECKPOINT = "truncated-checkpoint"
    """The writer of a checkpoint is killed half-way; reading it back fails and ends the training."""
    DEADLOCK = "deadlock"
    """Two threads take two locks in opposite order."""
    DIVERGENCE = "divergence"
    """The learning rate is a million times too high from this step on."""
    CODE_ERROR = "code-error"
    """A key is misspelt in a part of the code that first runs at this step. It happens every time."""
    RANK_KILLED = "rank-killed"
    """One rank of a distributed job is killed."""


@dataclass(frozen=True)
class Fault:
    """One fault and the step at which it begins."""

    kind: FaultKind
    step: int

    @classmethod
    def parse(cls, text: str) -> Fault:
        """Read `KIND@STEP`. Raises ValueError."""
        kind, _, step = text.partition("@")
        return cls(FaultKind(kind), int(step))

    def __str__(self) -> str:
        """`KIND@STEP`."""
        return f"{self.kind}@{self.step}"


class Tape:
    """Which faults are still to come."""

    def __init__(self, work: Path, faults: tuple[Fault, ...]) -> None:
        self._path = work / TAPE
        self._faults = faults

    def due(self, step: int, kind: FaultKind) -> bool:
        """Whether a fault begins now; a fault that can happen but once is struck off before it does."""
        fault = next((fault for fault in self._faults if fault.kind is kind and fault.step <= step), None)
        if fault is None or str(fault) in self._happened():
            return False
        if kind is not FaultKind.CODE_ERROR:
            self._strike(fault)
        return True

    def _happened(self) -> list[str]:
        if not self._path.exists():
            return []
        happened = json.loads(self._path.read_text())
        return [str(entry) for entry in happened]

    def _strike(self, fault: Fault) -> None:
        draft = self._path.with_suffix(".draft")
        draft.write_text(json.dumps([*self._happened(), str(fault)]))
        draft.replace(self._path)


def write_and_be_killed(path: Path, payload: bytes) -> None:
    """Write half of `payload` straight into `path` in a child process that dies of SIGKILL while it writes.

    Raises ChildProcessError where the child could write everything.
    """
    child = os.fork()
    if child == 0:
        with path.open("wb", buffering=0) as file:
            file.write(payload[: len(payload) // 2])
            os.kill(os.getpid(), 9)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if os.waitstatus_to_exitcode(status) != -9:
        raise ChildProcessError(f"the writer of {path} was not killed: {status}")


def deadlock(say: Callable[[str], None]) -> None:
    """Wait for ever: this thread and another take the same two locks in opposite order."""
    cache, statistics = threading.Lock(), threading.Lock()
    both_hold_one = threading.Barrier(2)

    def refill() -> None:
        with cache:
            both_hold_one.wait()
            with statistics:
                say("refilled the batch cache")

    threading.Thread(target=refill, name="loader", daemon=True).start()
    with statistics:
        both_hold_one.wait()
        with cache:
            say("counted the batch cache")
