"""A guard that dies as by kill -9: python crashing_guard.py STATE POINT PRESET

Counts the durable writes and outside actions of an incident (from its opening on) and kills itself right
after number POINT; 0 never. Each is noted in the file named by TRAINGUARD_TEST_POINTS.
"""

from __future__ import annotations

import asyncio
import functools
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from trainguard.blocks.local_host import LocalHost
from trainguard.core.cadence import Cadence
from trainguard.core.policy import Policy, Preset
from trainguard.flows.guard import guard
from trainguard.ledger.ledger import Ledger
from trainguard.schedulers.local import LocalScheduler
from trainguard.schedulers.local.starting import load_job

WRITES = (
    "open_incident",
    "update_incident",
    "add_evidence",
    "add_diagnosis",
    "add_decisions",
    "write_intent",
    "write_outcome",
    "ask",
    "answer",
    "save_health",
    "record_observation",
    "set_job_status",
)


class Points:
    """Counts and, at the chosen one, kills."""

    def __init__(self, fatal: int) -> None:
        self.fatal, self.count, self.begun = fatal, 0, False

    def after(self, name: str) -> None:
        self.begun = self.begun or name == "open_incident"
        if not self.begun:
            return
        self.count += 1
        with Path(os.environ["TRAINGUARD_TEST_POINTS"]).open("a") as notes:
            notes.write(f"{self.count} {name}\n")
        if self.count == self.fatal:
            os.kill(os.getpid(), signal.SIGKILL)


def counted(points: Points, owner: type, name: str) -> None:
    """Make `owner.name` report to `points` when it is done."""
    original: Callable[..., Any] = getattr(owner, name)

    @functools.wraps(original)
    async def reporting(*arguments: Any, **named: Any) -> Any:
        result = await original(*arguments, **named)
        points.after(name)
        return result

    setattr(owner, name, reporting)


async def main() -> None:
    state, point, preset = sys.argv[1:]
    points = Points(int(point))
    for name in WRITES:
        counted(points, Ledger, name)
    counted(points, LocalScheduler, "perform")
    counted(points, LocalScheduler, "collect")
    block = LocalHost()
    await block.save("this-machine", overwrite=True)
    ended = await guard(
        job=load_job(Path(state), block.cluster_name()),
        cluster="trainguard-local-host/this-machine",
        policy=Policy(preset=Preset(preset)),
        cadence=Cadence(settle=1, young=(1, 2), steady=2, uncertain=1, least=0.1),
        return_state=True,
    )
    print(ended.name, ended.message, flush=True)


if __name__ == "__main__":
    asyncio.run(main())
