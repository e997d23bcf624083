"""The baseline: a flow that polls its job with one task run a minute, as one would write it first."""

from __future__ import annotations

import time

from prefect import flow, get_run_logger, task


@task
def check_job(number: int) -> str:
    get_run_logger().info("job %d is running", number)
    return "RUNNING"


@flow(log_prints=True)
def poll_job(number: int = 0, every: float = 60.0, polls: int = 1_000_000) -> None:
    for _ in range(polls):
        if check_job(number) != "RUNNING":
            return
        time.sleep(every)
