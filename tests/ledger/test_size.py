"""What a guarded day costs on disk."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from tests.ledger import facts
from tests.ledger.facts import NOW
from trainguard.core.job import Incarnation, JobRef
from trainguard.core.observation import Progress, Utilisation
from trainguard.ledger.ledger import Ledger

CHECK = 570.0
DAY = 86_400.0


async def guard_for_days(ledger: Ledger, ref: JobRef, days: int) -> None:
    """What a guard of a healthy 8-node job writes at every check, and one incident a day."""
    lease = await ledger.acquire_lease(ref.key, "guard", NOW, 1e9)
    run = Incarnation(job=ref, token="123456+2026-11-22T02:00:00+0", native_id="123456")
    for number in range(int(days * DAY / CHECK)):
        at = NOW + number * CHECK
        seen = facts.observation(
            at,
            job=ref,
            incarnation=run,
            nodes=tuple(f"gpu-node-{n:03}" for n in range(8)),
            heartbeat_age=3.2,
            log_age=1.7,
            progress=Progress(step=number * 90, total=500_000, loss=2.34567, step_seconds=6.31, at=at),
            utilisation=Utilisation(
                gpu_percent=(97.0,) * 8, gpu_memory_percent=(81.0,) * 8, cpu_percent=812.0
            ),
        )
        line = f"2026-11-22T02:00 running attempt 1 ~{number * 90}/500000 gpu 97% mem 81% fix - run https://wandb.example/r/1"
        await ledger.record_observation(lease, seen, line)
        cursor = f'{{"/logs/train.log": [{number * 99999}, 12345678]}}'
        await ledger.save_health(lease, ref.key, '{"baseline": [1.0, 2.0, 3.0]}' * 20, cursor)
        await ledger.renew_lease(lease, at, 1e9)


def used(path: Path) -> int:
    with sqlite3.connect(path) as raw:
        (pages,) = raw.execute("PRAGMA page_count").fetchone()
    raw.close()
    return int(pages) * 4096


async def test_a_day_of_a_healthy_job_costs_little(sqlite: Ledger) -> None:
    path = sqlite.location.path
    assert path is not None
    before = used(path)
    await guard_for_days(sqlite, facts.REF, 1)
    grown = used(path) - before
    assert grown < 150_000, f"{grown} bytes a job and day"
    print(f"{grown} bytes a job and day")
