"""What it costs to watch Slurm jobs over SSH, and how soon a failure is seen.

    set -a; . "$(tests/labs/slurm/up.sh | tail -n 1)"; set +a
    python -m benchmarks.slurm_poll

Compared with the obvious way: one `ssh` and one `sacct` for each job.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import statistics
import subprocess
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from trainguard.core.job import Job, JobRef
from trainguard.core.observation import Liveness
from trainguard.schedulers.sharing import ClusterWatch
from trainguard.schedulers.slurm import SlurmScheduler
from trainguard.transports.ssh import SshTarget

SIZES = (1, 100, 1_000)
FAILURES = 40
SPREAD = 60.0
"""Seconds over which the failures are spread."""


def facts() -> dict[str, str]:
    path = Path(os.environ["TRAINGUARD_SLURM_LAB"]) / "tgacct" / "facts.env"
    return dict(line.partition("=")[::2] for line in path.read_text().splitlines())


def owner(lab: dict[str, str], *argv: str, **more: Any) -> str:
    home = str(Path(lab["USER_KEY"]).parent.parent / "home" / lab["USER_NAME"])
    env = {"SLURM_CONF": lab["CONF"], "PATH": os.environ["PATH"], "HOME": home}
    call = ("runuser", "-u", lab["USER_NAME"], "--", *argv)
    done = subprocess.run(call, env=env, cwd=home, capture_output=True, text=True, check=True, **more)
    return str(done.stdout)


def job(native: str) -> Job:
    return Job(ref=JobRef(scheduler="slurm", cluster="tgacct", id=native), name=native)


async def median_ms(work: Callable[[], Awaitable[object]], times: int = 15) -> float:
    took = []
    for _ in range(times):
        start = time.perf_counter()
        await work()
        took.append((time.perf_counter() - start) * 1_000)
    return round(statistics.median(took), 1)


def baseline(lab: dict[str, str], ids: list[str]) -> float:
    """One new connection and one sacct a job: seconds a job."""
    ssh = [
        "ssh",
        "-q",
        "-i",
        lab["USER_KEY"],
        "-p",
        lab["PORT"],
        "-o",
        f"UserKnownHostsFile={lab['KNOWN_HOSTS']}",
    ]
    start = time.perf_counter()
    for native in ids:
        call = [
            *ssh,
            f"{lab['USER_NAME']}@{lab['HOST']}",
            "sacct",
            "-X",
            "-n",
            "-P",
            "-o",
            "State,ExitCode",
            "-j",
            native,
        ]
        subprocess.run(call, capture_output=True, check=True)
    return (time.perf_counter() - start) / len(ids)


async def detection(
    lab: dict[str, str], scheduler: SlurmScheduler, held: list[Job]
) -> tuple[list[float], list[float]]:
    """Jobs fail at random moments while all are watched at the default interval.

    Seconds until each is seen: from the job's own last moment, and from the end that Slurm notes (whole seconds).
    """
    folder = Path(lab["USER_KEY"]).parent.parent / "home" / lab["USER_NAME"]
    jobs = []
    for _ in range(FAILURES):
        body = f"sleep {5 + random.random() * SPREAD:.2f}; date +%s.%N >bench-$SLURM_JOB_ID; exit 3"
        jobs.append(
            job(owner(lab, "sbatch", "--parsable", "--mem=10M", "-o", "/dev/null", f"--wrap={body}").strip())
        )
    watch = ClusterWatch(scheduler)
    seen: dict[str, float] = {}
    noted: dict[str, float] = {}

    async def follow(one: Job) -> None:
        looks = 0
        while True:
            looks, observation = await watch.next(one.ref, after=looks)
            if observation.liveness is Liveness.FAILED:
                seen[one.ref.id] = time.time()
                noted[one.ref.id] = (observation.ended_at or 0.0) + 1
                return

    for one in [*held, *jobs]:
        watch.add(one)
    async with asyncio.timeout(SPREAD * 6):
        await asyncio.gather(*(follow(one) for one in jobs))
    for one in [*held, *jobs]:
        await watch.drop(one.ref)
    ids = [one.ref.id for one in jobs]
    own = sorted(seen[name] - float((folder / f"bench-{name}").read_text()) for name in ids)
    return own, sorted(seen[name] - noted[name] for name in ids)


def spread(seconds: list[float]) -> dict[str, float]:
    return {
        "p50": round(statistics.median(seconds), 2),
        "p99": round(seconds[min(len(seconds) - 1, int(len(seconds) * 0.99))], 2),
    }


async def measure() -> dict[str, Any]:
    lab = facts()
    target = SshTarget(
        lab["HOST"], int(lab["PORT"]), lab["USER_NAME"], lab["USER_KEY"], known_hosts=lab["KNOWN_HOSTS"]
    )
    loop = f"for i in $(seq {max(SIZES)}); do sbatch --parsable --hold --wrap true -o /dev/null; done"
    ids = owner(lab, "bash", "-c", loop).split()
    scheduler = SlurmScheduler("tgacct", target)
    held = [job(native) for native in ids]
    try:
        start = time.perf_counter()
        await scheduler.observe(held[:1])
        first = round((time.perf_counter() - start) * 1_000, 1)
        polls = {}
        for size in SIZES:
            chosen = held[:size]

            async def poll(chosen: list[Job] = chosen) -> object:
                return await scheduler.observe(chosen)

            polls[size] = await median_ms(poll)
        one = baseline(lab, ids[:10])
        late, noted = await detection(lab, scheduler, held)
    finally:
        await scheduler.close()
        owner(lab, "scancel", "-u", lab["USER_NAME"])
    return {
        "first_poll_with_login_ms": first,
        "poll_ms_by_jobs": polls,
        "poll_interval_s": scheduler.poll_seconds,
        "watched_while_detecting": len(held) + FAILURES,
        "detection_s_from_the_jobs_last_moment": spread(late),
        "detection_s_from_slurms_end_time": spread(noted),
        "baseline_ssh_sacct_ms_a_job": round(one * 1_000, 1),
        "baseline_ms_for_1000_jobs": round(one * 1_000_000, 0),
    }


def run() -> dict[str, Any]:
    """Measure; where there is no lab, say how to get one."""
    if "TRAINGUARD_SLURM_LAB" not in os.environ:
        return {"skipped": 'needs the lab: set -a; . "$(tests/labs/slurm/up.sh | tail -n 1)"; set +a'}
    return asyncio.run(measure())


if __name__ == "__main__":
    print(json.dumps(run(), indent=1))
