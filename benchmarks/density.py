"""How many guards fit on this machine: processor time and memory of worker and server, questions to the cluster.

python -m benchmarks.density [guards ...]

All guards run in one worker of type `trainguard`, on a simulated cluster in that worker's process. The jobs
are healthy and their guards in steady rhythm from the start, so that the window need not wait for it; but
every check is shown in Prefect as for a young job, which costs more than an old one's. The baseline is the
stock `process` worker with a flow that polls its job with one task run a minute.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from typing import Any

import psutil

from benchmarks.lab import Lab, Usage, lab, until

CORES = 2
SETTLE = 60.0
"""Seconds in which the server works off what the start left it."""
BASELINE_RUNS = 8
PATIENCE = 900.0
STEADY_SECONDS = 570.0
POLL_SECONDS = 5.0


def fleet(jobs: int, **more: Any) -> dict[str, Any]:
    """Settings of the simulated cluster."""
    return {"cluster": "bench", "jobs": jobs, "seed": 11, "poll_seconds": POLL_SECONDS, **more}


def guards(count: int, window: float) -> dict[str, Any]:
    """Start so many guards, then watch them for `window` seconds."""
    with lab() as lab_:
        began = time.monotonic()
        lab_.start_worker("guards", "trainguard", TRAINGUARD_WORKER_STARTS_A_SECOND="5")
        started = start(lab_, fleet(count), count, {})
        took = time.monotonic() - began
        states = lab_.client("states", {})
        time.sleep(SETTLE)
        result = watched(lab_, window, count)
        return {
            "guards": count,
            "all_started_s": None if started is None else round(took),
            "states": states,
            "states_at_the_end": lab_.client("states", {}),
            "trouble": lab_.trouble()[:20],
            "server_errors": lab_.server_errors(),
            **result,
        }


def start(lab_: Lab, fleet: dict[str, Any], count: int, parameters: dict[str, Any]) -> float | None:
    """Ask for a guard for each job and wait until all stand; the seconds it took, None where not all did."""
    wanted = {"fleet": fleet, "runs": count, "parameters": parameters, "steady_seconds": STEADY_SECONDS}
    asking = lab_.begin("guards", wanted)
    started = until(lambda: running(lab_) >= count, PATIENCE, every=3.0)
    try:
        asking.wait(60)
    except subprocess.TimeoutExpired:
        asking.kill()
    return started


def running(lab_: Lab) -> int:
    """Guards that have begun to show their job, as the ledger counts."""
    return lab_.ledger_count("SELECT count(DISTINCT job_key) FROM tg_observations")


def watched(lab_: Lab, window: float, count: int) -> dict[str, Any]:
    """What worker and server use in a window."""
    worker, server, asked = lab_.used_by_workers(), lab_.used_by_server(), lab_.asked()
    idle, began = psutil.cpu_times(), time.monotonic()
    time.sleep(window)
    took = time.monotonic() - began
    end = psutil.cpu_times()
    worker_now, server_now, asked_now = lab_.used_by_workers(), lab_.used_by_server(), lab_.asked()

    def share(before: Usage, after: Usage) -> float:
        return (after.cpu - before.cpu) / took / CORES

    both = share(worker, worker_now) + share(server, server_now)
    busy = 1 - (end.idle - idle.idle) / took / (psutil.cpu_count() or 1)
    return {
        "window_s": round(took, 1),
        "cpu_share": round(both, 4),
        "cpu_share_worker": round(share(worker, worker_now), 4),
        "cpu_share_server": round(share(server, server_now), 4),
        "cpu_share_of_everybody_on_the_machine": round(busy, 4),
        "cpu_ms_a_second_and_guard": round(both * CORES * 1000 / count, 3),
        "worker_rss_mb": round(worker_now.rss / 1e6, 1),
        "server_rss_mb": round(server_now.rss / 1e6, 1),
        "worker_processes": worker_now.processes,
        "cluster_queries_a_minute": round((asked_now["queries"] - asked["queries"]) * 60 / took, 1),
        "log_reads_a_minute": round((asked_now["log_reads"] - asked["log_reads"]) * 60 / took, 1),
    }


def baseline(runs: int, window: float) -> dict[str, Any]:
    """The stock worker, a process for each run; what the idle worker and server use is taken off."""
    with lab() as lab_:
        lab_.client("naive", {"runs": 0, "parameters": {}})
        lab_.start_worker("naive", "process")
        time.sleep(SETTLE)
        idle = watched(lab_, 20.0, 1)
        base = lab_.used_by_workers()
        lab_.client("naive", {"runs": runs, "parameters": {}})
        started = until(lambda: lab_.client("states", {}).get("RUNNING", 0) >= runs, 300.0)
        time.sleep(SETTLE)
        found = watched(lab_, window, runs)
        rss = lab_.used_by_workers().rss - base.rss
    cpu = (found["cpu_share"] - idle["cpu_share"]) * CORES * 1000 / runs
    return {
        "runs": runs,
        "all_started_s": None if started is None else round(started),
        "cpu_ms_a_second_and_guard": round(cpu, 3),
        "rss_mb_a_guard": round(rss / runs / 1e6, 1),
        "guards_on_two_cores_by_cpu": round(0.6 * CORES * 1000 / cpu) if cpu > 0 else None,
        "extrapolated_rss_mb_for_1000": round(rss / runs / 1e6 * 1000),
        "idle": idle,
        **{name: found[name] for name in ("window_s", "cpu_share", "cpu_share_of_everybody_on_the_machine")},
    }


def run(sizes: tuple[int, ...] = (100, 1000), window: float = 90.0) -> dict[str, Any]:
    """Measure each size and the baseline."""
    return {"sizes": [guards(size, window) for size in sizes], "baseline": baseline(BASELINE_RUNS, 60.0)}


if __name__ == "__main__":
    asked_for = tuple(int(word) for word in sys.argv[1:])
    print(json.dumps([guards(size, 90.0) for size in asked_for] if asked_for else run(), indent=1))
