"""How soon a failure is detected and answered while many guards run, and whether any is answered twice or never.

python -m benchmarks.latency [guards]

The simulated cluster writes down when each job really failed and when a restart really arrived; the ledger
says when each guard noticed and what it did.
"""

from __future__ import annotations

import asyncio
import json
import math
import sys
import time
from collections import Counter
from typing import Any

from benchmarks.density import fleet, start
from benchmarks.lab import Lab, lab
from trainguard.ledger.ledger import Ledger

NO_STORM = {"storm_jobs": 1_000_000}
"""Many jobs that fail alike are one cause, and a person is asked: here they are many on purpose."""
FAILURES = 200
"""About so many, spread over the window."""
LAST_ANSWERS = 40.0
"""Seconds after the window in which what failed at its end is still answered."""


def run(guards: int = 1000, window: float = 300.0) -> dict[str, Any]:
    """Let jobs fail under so many guards; seconds."""
    with lab() as lab_:
        journal = lab_.folder / "journal"
        healthy = guards / 3 + 60.0
        settings = fleet(
            guards,
            journal=str(journal),
            healthy_seconds=healthy,
            fault_seconds=guards * window / FAILURES,
            faults=["nccl"],
            step_seconds=0.5,
        )
        parameters = {"policy": {"preset": "autonomous", "budgets": NO_STORM}}
        lab_.start_worker("guards", "trainguard", TRAINGUARD_WORKER_STARTS_A_SECOND="5")
        started = start(lab_, settings, guards, parameters)
        began = time.time()
        time.sleep(window)
        ended = time.time()
        time.sleep(LAST_ANSWERS)
        happened = [json.loads(line) for line in journal.read_text().splitlines()]
        found = asyncio.run(_answers(lab_))
        return {
            "guards": guards,
            "all_started": started is not None,
            "window_s": round(window),
            "poll_s": settings["poll_seconds"],
            **compared(happened, found, began, ended),
            "trouble": lab_.trouble()[:20],
            "server_errors": lab_.server_errors(),
        }


async def _answers(lab_: Lab) -> dict[tuple[str, str], list[dict[str, Any]]]:
    """All incidents by the job and incarnation that they answer."""
    answers: dict[tuple[str, str], list[dict[str, Any]]] = {}
    async with await Ledger.open(lab_.environment["TRAINGUARD_LEDGER_URL"]) as ledger:
        for job in await ledger.jobs():
            for incident in await ledger.incidents(job.key):
                token = incident.incarnation.token if incident.incarnation else ""
                answers.setdefault((job.ref.id, token.rpartition(".")[2]), []).append(
                    {"detected": incident.detected_at, "state": incident.state.value}
                )
    return answers


def compared(
    happened: list[dict[str, Any]],
    answers: dict[tuple[str, str], list[dict[str, Any]]],
    began: float,
    ended: float,
) -> dict[str, Any]:
    """Put what happened beside what the guards made of it."""
    restarts = Counter((line["job"], str(line["run"])) for line in happened if line["event"] == "restart")
    issued = {(line["job"], str(line["run"])): line["at"] for line in happened if line["event"] == "restart"}
    detection, restart, lost, unseen = [], [], 0, 0
    for line in happened:
        if line["event"] != "failed" or not began <= line["at"] <= ended:
            continue
        key = (line["job"], str(line["run"]))
        seen = answers.get(key, [])
        unseen += not seen
        lost += key not in issued
        if seen:
            detection.append(seen[0]["detected"] - line["at"])
        if seen and key in issued:
            restart.append(issued[key] - seen[0]["detected"])
    return {
        "failures": len(detection) + unseen,
        "detection_s": spread(detection),
        "detection_to_restart_s": spread(restart),
        "duplicate_restarts": sum(count - 1 for count in restarts.values()),
        "duplicate_incidents": sum(len(found) - 1 for found in answers.values()),
        "lost_recoveries": lost,
        "states": dict(Counter(one["state"] for found in answers.values() for one in found)),
    }


def spread(seconds: list[float]) -> dict[str, float]:
    """Median, 99th percentile and maximum."""
    if not seconds:
        return {}
    ordered = sorted(seconds)
    at = {"p50": 0.5, "p99": 0.99, "max": 1.0}
    return {name: round(ordered[max(0, math.ceil(len(ordered) * part) - 1)], 2) for name, part in at.items()}


if __name__ == "__main__":
    print(json.dumps(run(int(sys.argv[1]) if len(sys.argv) > 1 else 1000), indent=1))
