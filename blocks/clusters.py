"""Every block a guard can be given as its cluster."""

from __future__ import annotations

from typing import cast

from prefect.blocks.core import Block

from trainguard.blocks.kubernetes_cluster import KubernetesCluster
from trainguard.blocks.local_host import LocalHost
from trainguard.blocks.scheduler_block import SchedulerBlock
from trainguard.blocks.slurm_cluster import SlurmCluster
from trainguard.core.errors import ConfigError

Cluster = LocalHost | SlurmCluster | KubernetesCluster | str
"""A block picked in the UI, or its slug such as `slurm-cluster/lab`."""

THIS_MACHINE = "trainguard-local-host/this-machine"
"""The machine where the guard runs: needs no block of that name, for it needs no settings."""


async def as_block(cluster: Cluster) -> SchedulerBlock:
    """Load a cluster given by its slug. Raises ConfigError where there is no such block."""
    if not isinstance(cluster, str):
        return cluster
    try:
        block = await Block.aload(cluster)
    except ValueError as problem:
        if cluster == THIS_MACHINE:
            return LocalHost()
        raise ConfigError(
            "cluster", f"there is no block {cluster!r}", "make it in Prefect's UI under Blocks"
        ) from problem
    if not isinstance(block, SchedulerBlock):
        raise ConfigError("cluster", f"{cluster!r} is not a cluster's block")
    return cast("SchedulerBlock", block)
