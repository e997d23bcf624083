"""One guard over virtual days: the real flow, tasks, ledger and Prefect server; only the cluster and time are not real."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import psutil

from trainguard.core.policy import Policy, Preset
from trainguard.flows.guard import guard
from trainguard.ledger.ledger import Ledger
from trainguard.tasks.prefect_view import cancellation_is_watched
from trainguard.testing.simulated import FaultKind
from trainguard.testing.simulated_clock import VirtualClock
from trainguard.testing.simulated_fleet import DAY, SimulatedFleet

Sample = Callable[[float], None]


async def stand_guard(
    fleet: SimulatedFleet, days: float, sample: Sample, **parameters: Any
) -> dict[str, Any]:
    """Guard the fleet's first job for so many virtual days; `sample` is told when another day has passed."""
    clock = VirtualClock()
    began, end = clock(), clock() + days * DAY
    cluster, job = fleet.build(clock), fleet.job(0)
    await fleet.save(fleet.cluster, overwrite=True)
    parameters = {"policy": Policy(preset=Preset.AUTONOMOUS), **parameters}
    flow_runs, state = 0, None
    watching = asyncio.create_task(_each_day(clock, sample))
    try:
        while clock() < end:
            flow_runs += 1
            state = await guard(
                job=job,
                cluster=f"simulated-fleet/{fleet.cluster}",
                until=datetime.fromtimestamp(end, UTC),
                take_over=flow_runs > 1,
                return_state=True,
                **parameters,
            )
            if state.name != "HandedOver":
                break
    finally:
        watching.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await watching
    async with await Ledger.open() as ledger:
        incidents = await ledger.incidents(job.key)
    return {
        "days": (clock() - began) / DAY,
        "flow_runs": flow_runs,
        "state": f"{state.name}: {state.message}" if state else "",
        "starts": cluster.starts[job.ref.id],
        "incidents": [f"{incident.state}: {incident.outcome}" for incident in incidents],
        "queries": cluster.queries,
        "log_reads": cluster.log_reads,
    }


async def _each_day(clock: VirtualClock, sample: Sample) -> None:
    began, days = clock(), 0
    while True:
        await asyncio.sleep(0.05)
        passed = (clock() - began) / DAY
        if passed >= days:
            sample(passed)
            days = int(passed) + 1


def main(days: float, poll: float, fault_days: float) -> None:
    """Guard, and print a line of JSON a virtual day."""
    process, began = psutil.Process(), time.monotonic()

    def sample(passed: float) -> None:
        used = process.cpu_times()
        line = {
            "day": round(passed, 2),
            "rss": process.memory_info().rss,
            "cpu": used.user + used.system,
            "wall": time.monotonic() - began,
        }
        print(json.dumps(line), flush=True)

    fleet = SimulatedFleet(
        cluster="soak",
        jobs=1,
        seed=5,
        poll_seconds=poll,
        fault_seconds=fault_days * DAY,
        healthy_seconds=DAY,
        faults=(FaultKind.NCCL,),
        virtual=True,
    )
    cancellation_is_watched()  # by whoever started this; as under the worker
    done = asyncio.run(stand_guard(fleet, days, sample))
    sample(done["days"])
    print(json.dumps(done), flush=True)


if __name__ == "__main__":
    main(*(float(word) for word in sys.argv[1:4]))
