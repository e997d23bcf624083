"""A CPU training on a real node: killed for memory, evicted, its node gone; it ends from its checkpoints."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.labs.kubernetes.acting import action, fence
from tests.labs.kubernetes.conftest import Kubectl, job_of
from tests.labs.kubernetes.test_watch import until, until_seen
from trainguard.core.action import ActionKind, Outcome, OutcomeStatus
from trainguard.core.errors import RefusedError
from trainguard.core.job import CheckpointSpec, Job, Resume, ResumeBy
from trainguard.core.observation import Liveness, Observation
from trainguard.schedulers.kubernetes import KubernetesScheduler

pytestmark = [pytest.mark.lab("kubernetes"), pytest.mark.timeout(280)]
HERE = Path(__file__).parent
NODE = "localhost"

# Counts steps, writes a checkpoint every fifth, and has each accident once. `busy` tells two at once.
TRAINING = r"""
cd /ckpt
step=${RESUME_FROM:-0}; step=${step##*-}
mkdir busy 2>/dev/null || echo TWO-AT-ONCE >> twice
trap 'rm -rf busy; exit 143' TERM
echo "resumed from step $step"
while [ $step -lt 60 ]; do
  step=$((step + 1)); echo "step $step/60"; echo "$step" >> steps
  if [ $((step % 5)) = 0 ]; then echo $step > tmp; sync; mv tmp ckpt-$step; fi
  if [ $step = 12 ] && [ ! -e oom ]; then touch oom; rm -rf busy; exec tail /dev/zero; fi
  if [ $step = 27 ] && [ ! -e full ]; then touch full; rm -rf busy; dd if=/dev/zero of=/scratch/x bs=1M count=8; sleep 100; fi
  if [ $step = 42 ] && [ ! -e dark ]; then touch dark; rm -rf busy; sleep 1000; fi
  sleep 0.1
done
rm -rf busy
echo done
"""


async def script(name: str, *words: str) -> None:
    process = await asyncio.create_subprocess_exec(
        str(HERE / name), *words, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE
    )
    _, problem = await asyncio.wait_for(process.communicate(), 120)
    if process.returncode == 3:
        pytest.skip(problem.decode())
    assert process.returncode == 0, problem.decode()


@pytest.fixture
async def real_node(kubectl: Kubectl) -> AsyncIterator[None]:
    await script("node-up.sh")
    yield
    await script("node-down.sh")
    await kubectl("delete", "node", NODE, "--ignore-not-found")


def training(namespace: str, folder: Path) -> dict[str, Any]:
    container = {
        "name": "main",
        "image": "docker.io/lab/busybox:1",
        "imagePullPolicy": "Never",
        "command": ["/bin/sh", "-c", TRAINING],
        "resources": {"limits": {"memory": "24Mi"}},
        "volumeMounts": [
            {"name": "ckpt", "mountPath": "/ckpt"},
            {"name": "scratch", "mountPath": "/scratch"},
        ],
    }
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": "train", "namespace": namespace},
        "spec": {
            "backoffLimit": 0,
            "template": {
                "spec": {
                    "restartPolicy": "Never",
                    "hostNetwork": True,
                    "automountServiceAccountToken": False,
                    "terminationGracePeriodSeconds": 2,
                    "nodeSelector": {"kubernetes.io/hostname": NODE},
                    "containers": [container],
                    "volumes": [
                        {"name": "ckpt", "hostPath": {"path": str(folder)}},
                        {"name": "scratch", "emptyDir": {"sizeLimit": "1Mi"}},
                    ],
                }
            },
        },
    }


def newest(folder: Path) -> str:
    steps = [int(path.name.partition("-")[2]) for path in folder.glob("ckpt-*")]
    return f"/ckpt/ckpt-{max(steps)}"


async def log_of(scheduler: KubernetesScheduler, job: Job) -> str:
    return "".join(chunk.text for chunk in (await scheduler.logs(job)).chunks)


async def test_a_training_survives_memory_eviction_and_its_node(
    scheduler: KubernetesScheduler, kubectl: Kubectl, namespace: str, real_node: None, tmp_path: Path
) -> None:
    resume = Resume(by=ResumeBy.ENVIRONMENT, name="RESUME_FROM")
    job = job_of(namespace, "Job", "train", checkpoints=CheckpointSpec(directory="/ckpt", resume=resume))
    await kubectl.apply(training(namespace, tmp_path))

    async def recover(told: Observation, kind: ActionKind, **more: Any) -> None:
        again = action(kind, told.incarnation, checkpoint=newest(tmp_path), **more)

        async def done() -> Outcome | None:
            try:
                return await scheduler.perform(job, again, fence())
            except RefusedError as error:
                if "NoPods" not in str(error):
                    raise
                return None  # for a moment, between the last pod's end and the Job's

        outcome = await until(done, 60)
        assert outcome.status is OutcomeStatus.DONE, outcome

    # 1. killed for memory, by the kernel
    told = await until_seen(scheduler, job, Liveness.FAILED, seconds=60)
    assert (told.oom_killed, told.exit_code, told.nodes) == (True, 137, (NODE,))
    assert "step 12/60" in await log_of(scheduler, job)
    await recover(told, ActionKind.RESTART_WITH_MORE_MEMORY, memory_bytes=64 * 2**20)

    # 2. evicted, by the kubelet
    await until_seen(scheduler, job, Liveness.RUNNING, seconds=60)
    told = await until_seen(scheduler, job, Liveness.FAILED, seconds=90)
    assert "Evicted" in told.reason
    assert told.oom_killed is not True
    await recover(told, ActionKind.RESTART)

    # 3. its node is gone: kubelet silent, containers dead, nobody can tell from outside
    await until_seen(scheduler, job, Liveness.RUNNING, seconds=60)
    assert "resumed from step 25" in await log_of(scheduler, job)
    await until(lambda: _exists(tmp_path / "dark"), 60)
    await script("node-down.sh", "--kubelet-only")
    told = await until_seen(scheduler, job, Liveness.FAILED, seconds=60)
    assert (told.native, told.bad_nodes) == ("NodeLost", (NODE,))
    with pytest.raises(RefusedError, match="may still run on node"):
        await recover(told, ActionKind.RESTART)
    await script("node-down.sh", "--power-off")
    await kubectl("taint", "node", NODE, "node.kubernetes.io/out-of-service=nodeshutdown:NoExecute")
    await recover(told, ActionKind.RESTART)
    await script("node-up.sh")
    await kubectl("taint", "node", NODE, "node.kubernetes.io/out-of-service-")

    told = await until_seen(scheduler, job, Liveness.SUCCEEDED, Liveness.FAILED, seconds=60)
    assert told.liveness is Liveness.SUCCEEDED, told
    assert told.incarnation is not None
    assert told.incarnation.attempt == 4
    steps = [int(line) for line in (tmp_path / "steps").read_text().split()]
    assert steps == [*range(1, 13), *range(11, 28), *range(26, 43), *range(41, 61)]
    assert not (tmp_path / "twice").exists()
    assert await kubectl("-n", namespace, "get", "job", "train", "-o", "jsonpath={.status.succeeded}") == "1"
    assert os.environ["TG_KUBE_RUN"]


async def _exists(path: Path) -> bool | None:
    return True if path.exists() else None
