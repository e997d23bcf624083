"""Workers that die as by kill -9, at a cost of milliseconds: python -m tests.worker.nursery

Imports everything once and forks a worker for each line on stdin: {"pool", "point", "notes", "environment"}.
The child counts its durable writes (ledger, Prefect, cluster) and kills itself right after number `point`;
0 never, a negative one right before the incident is opened. Each is noted in the file `notes`. Answers with
the child's pid, and its exit status once it has ended.
"""

from __future__ import annotations

import asyncio
import functools
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from prefect.client.orchestration import PrefectClient
from prefect.utilities import engine as _engine  # noqa: F401 - imported before the fork
from prefect.workers import server as _server  # noqa: F401

import trainguard.flows.patrol
import trainguard.worker.host
import trainguard.worker.overseer  # noqa: F401
from trainguard.blocks.local_host import LocalHost  # noqa: F401
from trainguard.ledger.ledger import Ledger
from trainguard.schedulers.local import LocalScheduler
from trainguard.worker import GuardWorker

LEDGER = (
    "acquire_lease",
    "release_lease",
    "register_job",
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
CLUSTER = ("perform", "collect")
PREFECT = (
    "set_flow_run_state",
    "create_flow_run",
    "create_task_run",
    "create_flow_run_input",
    "resume_flow_run",
)


class Points:
    """Counts and, at the chosen one, kills."""

    def __init__(self, fatal: int, notes: Path) -> None:
        self.fatal, self.notes, self.count = fatal, notes, 0

    def after(self, name: str) -> None:
        self.count += 1
        with self.notes.open("a") as notes:
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


def live(wanted: dict[str, Any]) -> None:
    """Be a worker until killed or stopped."""
    os.environ.update(wanted["environment"])
    points = Points(wanted["point"], Path(wanted["notes"]))
    for owner, names in ((Ledger, LEDGER), (LocalScheduler, CLUSTER), (PrefectClient, PREFECT)):
        for name in names:
            counted(points, owner, name)

    async def work() -> None:
        worker = GuardWorker(wanted["pool"])
        task = asyncio.ensure_future(worker.start(printer=lambda *_: None))
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(work())


def main() -> None:
    """Fork a worker for each line."""
    for line in sys.stdin:
        wanted = json.loads(line)
        child = os.fork()
        if child == 0:
            status = 1
            try:
                live(wanted)
                status = 0
            finally:
                sys.stderr.flush()
                os._exit(status)
        print(child, flush=True)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    main()
