"""One guard for 90 virtual days: memory, task runs, and how both databases grow.

python -m benchmarks.soak [days]

The guard's own flow, tasks and ledger, and a real Prefect server; cluster and time are simulated. A fault
comes every six days on average and is recovered from. `growth` is the same over fewer days without faults.
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

from benchmarks.lab import ROOT, Lab, lab

DAYS = 90.0
WARM = 10.0
POLL_SECONDS = 190.0
FAULT_DAYS = 6.0


def guarded(lab_: Lab, days: float, fault_days: float) -> dict[str, Any]:
    """Guard one job for so many virtual days; a sample for each and the sizes of the databases."""
    before = lab_.sizes()
    words = [str(days), str(POLL_SECONDS), str(fault_days)]
    command = [sys.executable, "-m", "benchmarks.virtual_guard", *words]
    samples, done = [], {}
    log = lab_.folder / "guard.log"
    with (
        log.open("w") as err,
        subprocess.Popen(
            command, env=lab_.env(), cwd=ROOT, stdout=subprocess.PIPE, stderr=err, text=True
        ) as guard,
    ):
        assert guard.stdout is not None
        for line in guard.stdout:
            found = json.loads(line)
            if "day" in found:
                samples.append({**found, **lab_.sizes(), "server_rss": lab_.used_by_server().rss})
            else:
                done = found
    if guard.returncode:
        tail = log.read_text()[-3000:]
        raise RuntimeError(f"the guard ended with code {guard.returncode} on {samples[-1:]}: {tail}")
    if done["days"] < days:
        raise RuntimeError(f"the guard ended after {done['days']:.1f} days: {done['state']}")
    return {"before": before, "samples": samples, **done}


def run(days: float = DAYS) -> dict[str, Any]:
    """Measure; bytes, seconds."""
    with lab() as lab_:
        found = guarded(lab_, days, FAULT_DAYS)
        task_runs = count(lab_, "SELECT count(*) FROM task_run")
        largest = count(lab_, "SELECT max(n) FROM (SELECT count(*) AS n FROM task_run GROUP BY flow_run_id)")
    samples = found.pop("samples")
    warm = [sample for sample in samples if sample["day"] >= min(WARM, days / 3)]
    rss = [sample["rss"] for sample in warm]
    return {
        "days": days,
        "wall_s": round(samples[-1]["wall"]),
        "rss_mb_first": round(rss[0] / 1e6, 1),
        "rss_mb_last": round(rss[-1] / 1e6, 1),
        "rss_change": round(rss[-1] / rss[0] - 1, 4),
        "rss_largest_deviation": round(max(abs(value / rss[0] - 1) for value in rss), 4),
        "task_runs_a_day": round(task_runs / days, 1),
        "task_runs_in_the_largest_flow_run": largest,
        "mb_a_day": per_day(found["before"], samples[-1], days),
        **{name: found[name] for name in ("flow_runs", "starts", "state")},
        "incidents": len(found["incidents"]),
        "recovered": sum(line.startswith("recovered") for line in found["incidents"]),
        "cpu_s_a_day": round(samples[-1]["cpu"] / days, 2),
        "samples": [
            {name: sample[name] for name in ("day", "rss", "prefect", "ledger", "server_rss")}
            for sample in samples[:: max(1, len(samples) // 30)]
        ],
    }


def per_day(before: dict[str, int], after: dict[str, Any], days: float) -> dict[str, float]:
    """Megabytes a day of each database and of both."""
    grown = {name: (after[name] - before[name]) / 1e6 / days for name in ("prefect", "ledger")}
    return {name: round(value, 3) for name, value in {**grown, "both": sum(grown.values())}.items()}


def count(lab_: Lab, question: str) -> int:
    """Ask Prefect's database for a number."""
    import sqlite3

    with sqlite3.connect(f"file:{lab_.folder / 'prefect' / 'prefect.db'}?mode=ro", uri=True) as database:
        return int(database.execute(question).fetchone()[0] or 0)


if __name__ == "__main__":
    print(json.dumps(run(float(sys.argv[1]) if len(sys.argv) > 1 else DAYS), indent=1))
