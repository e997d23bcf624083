"""The whole guard on a real node: a training is killed for memory and evicted in one night, and finishes."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import pytest

from tests.flows.simulation import QUICK
from tests.labs.kubernetes.conftest import CLUSTER, Kubectl, job_of
from tests.labs.kubernetes.test_real_node import NODE, TRAINING, real_node, training
from tests.labs.kubernetes.test_watch import until
from trainguard.blocks.kubernetes_cluster import KubernetesCluster
from trainguard.core.action import ActionKind
from trainguard.core.job import CheckpointSpec, Resume, ResumeBy
from trainguard.core.policy import Allow, Limits, Policy
from trainguard.core.verdict import FaultClass
from trainguard.flows.guard import guard
from trainguard.ledger.ledger import Ledger

__all__ = ["real_node"]
pytestmark = [
    pytest.mark.lab("kubernetes"),
    pytest.mark.usefixtures("prefect_api", "ledger_url", "real_node"),
    pytest.mark.timeout(280),
]
NIGHT = Policy(
    allow=(
        Allow(action=ActionKind.RESTART),
        Allow(action=ActionKind.RESTART_WITH_MORE_MEMORY, faults=(FaultClass.HOST_OOM,)),
    ),
    limits=Limits(memory_factor=3),
)
CHECKPOINTS = CheckpointSpec(
    directory="/ckpt",
    format="glob",
    glob="ckpt-{step}",
    resume=Resume(by=ResumeBy.ENVIRONMENT, name="RESUME_FROM"),
)


async def test_a_night_of_memory_and_eviction_ends_with_a_finished_training(
    kubectl: Kubectl, namespace: str, tmp_path: Path
) -> None:
    for accident in ("full", "dark"):
        (tmp_path / accident).touch()  # not tonight
    manifest: dict[str, Any] = training(namespace, tmp_path)
    container = manifest["spec"]["template"]["spec"]["containers"][0]
    container["command"][-1] = TRAINING.replace("echo $step > tmp", "printf %08d $step > tmp")
    await kubectl.apply(manifest)
    block = KubernetesCluster(
        cluster=CLUSTER,
        kubeconfig_path=os.environ["TG_KUBE_CONFIG"],
        volumes={"/ckpt": str(tmp_path)},
        manifest_folder=tmp_path / "manifests",
    )
    await block.save(CLUSTER, overwrite=True)
    job = job_of(namespace, "Job", "train", checkpoints=CHECKPOINTS)
    slug = f"kubernetes-cluster/{CLUSTER}"

    async def stand() -> Any:
        return await guard(job=job, cluster=slug, policy=NIGHT, cadence=QUICK, return_state=True)

    guarding = asyncio.create_task(stand())
    await until(lambda: _reached(tmp_path, 30), 120)
    evicted = await _pods(kubectl, namespace)
    await kubectl("taint", "node", NODE, "night=yes:NoExecute")
    await until(lambda: _none_left(kubectl, namespace, evicted), 60)
    await kubectl("taint", "node", NODE, "night-")
    state: Any = await asyncio.wait_for(guarding, 120)
    assert (state.name, state.message) == (
        "Completed",
        "succeeded, recovered 1 time",
    )  # Kubernetes replaced the evicted pod
    assert not (tmp_path / "twice").exists()
    async with await Ledger.open() as ledger:
        memory, *_ = reversed(await ledger.incidents(job.key))
        found = await ledger.diagnosis(memory.id)
    assert found is not None
    assert (found.fault, memory.checkpoint_step) == (FaultClass.HOST_OOM, 10)


async def _pods(kubectl: Kubectl, namespace: str) -> set[str]:
    """The pods that run, or may yet run, and are not on their way out."""
    found = (await kubectl.get("pods", "-n", namespace))["items"]
    return {
        str(pod["metadata"]["name"])
        for pod in found
        if not pod["metadata"].get("deletionTimestamp") and pod["status"]["phase"] in ("Pending", "Running")
    }


async def _none_left(kubectl: Kubectl, namespace: str, names: set[str]) -> bool | None:
    return None if names & await _pods(kubectl, namespace) else True


async def _reached(folder: Path, step: int) -> bool | None:
    seen = (folder / "steps").read_text().split() if (folder / "steps").exists() else []
    return True if seen and int(seen[-1]) >= step else None
