"""What a guard in a pod can see and do with a block that has no settings: python in_pod.py NAMESPACE/KIND/NAME.

Says so once, and again for each line on standard input.
"""

from __future__ import annotations

import asyncio
import json
import sys

from trainguard.blocks.kubernetes_cluster import KubernetesCluster
from trainguard.core.job import Job, JobRef
from trainguard.schedulers.base import Scheduler
from trainguard.transports.kube_access import in_cluster

JOB = sys.argv[1]


async def told(block: KubernetesCluster, scheduler: Scheduler, job: Job) -> str:
    """Look once."""
    access = await scheduler.validate(job)
    seen = (await scheduler.observe([job]))[job.ref]
    answer = {
        "in_cluster": in_cluster() and block.access().in_cluster,
        "liveness": seen.liveness.value,
        "job_seen": access.job_seen,
        "logs_readable": access.logs_readable,
        "possible": sorted(kind.value for kind in access.possible),
    }
    return json.dumps(answer)


async def main() -> None:
    """Look, and look again."""
    block = KubernetesCluster()
    job = Job(ref=JobRef(scheduler="kubernetes", cluster=block.cluster_name(), id=JOB), name="train")
    scheduler = block.make_scheduler()
    try:
        print(await told(block, scheduler, job), flush=True)
        while await asyncio.to_thread(sys.stdin.readline):
            print(await told(block, scheduler, job), flush=True)
    finally:
        await scheduler.close()


if __name__ == "__main__":
    asyncio.run(main())
