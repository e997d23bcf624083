"""What one guarded job adds to Prefect's and the ledger's database in a day.

The guard stands for several virtual days at a real server; its first day, with the hour in which every
check is shown, is left out of the steady figure and given beside it. The baseline is a flow with one task
run a minute: its bytes a poll, measured over fewer polls, times the polls of a day.
"""

from __future__ import annotations

import json
import time
from typing import Any

from benchmarks.lab import lab, until
from benchmarks.soak import count, guarded, per_day

DAYS = 4.0
POLLS = 120
MINUTES_A_DAY = 1440


def run(days: float = DAYS) -> dict[str, Any]:
    """Measure; megabytes."""
    with lab() as lab_:
        found = guarded(lab_, days, 0.0)
        time.sleep(5)
        task_runs = count(lab_, "SELECT count(*) FROM task_run")
        last = {**found["samples"][-1], **lab_.sizes()}
    samples = found["samples"]
    first_day = next(sample for sample in samples if sample["day"] >= 1)
    return {
        "days": days,
        "mb_the_first_day": per_day(found["before"], first_day, first_day["day"]),
        "mb_a_steady_day": per_day(first_day, last, last["day"] - first_day["day"]),
        "task_runs_a_day": round(task_runs / days, 1),
        "baseline": baseline(),
    }


def baseline() -> dict[str, Any]:
    """Bytes a poll of the naive flow under the stock worker, and a day's worth of them."""
    with lab() as lab_:
        lab_.client("naive", {"runs": 0, "parameters": {}})
        lab_.start_worker("naive", "process")
        before = lab_.sizes()["prefect"]
        lab_.client("naive", {"runs": 1, "parameters": {"every": 0.05, "polls": POLLS}})
        until(lambda: lab_.client("states", {}).get("COMPLETED", 0) == 1, 200.0, every=2.0)
        time.sleep(5)
        task_runs = count(lab_, "SELECT count(*) FROM task_run")
        each = (lab_.sizes()["prefect"] - before) / task_runs
    return {
        "polls_measured": task_runs,
        "kb_a_poll": round(each / 1e3, 1),
        "mb_a_day": round(each * MINUTES_A_DAY / 1e6, 1),
        "task_runs_a_day": MINUTES_A_DAY,
    }


if __name__ == "__main__":
    print(json.dumps(run(), indent=1))
