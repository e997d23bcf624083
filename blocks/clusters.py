"""Every block a guard can be given as its cluster."""

from __future__ import annotations

from trainguard.blocks.kubernetes_cluster import KubernetesCluster
from trainguard.blocks.loading import find_block, load_block
from trainguard.blocks.local_host import LocalHost
from trainguard.blocks.scheduler_block import SchedulerBlock
from trainguard.blocks.slurm_cluster import SlurmCluster
from trainguard.core.errors import ConfigError

Cluster = LocalHost | SlurmCluster | KubernetesCluster | str
"""A block picked in the UI, or its slug such as `slurm-cluster/lab`."""

THIS_MACHINE = "trainguard-local-host/this-machine"
"""The machine where the guard runs: needs no block of that name, for it needs no settings."""


async def as_block(cluster: Cluster) -> SchedulerBlock:
    """Load a cluster given by its slug. Raises ConfigError where there is no such block, or it can't be used."""
    if not isinstance(cluster, str):
        return cluster
    if cluster == THIS_MACHINE:
        block = await find_block("cluster", cluster) or LocalHost()
    else:
        block = await load_block("cluster", cluster)
    if not isinstance(block, SchedulerBlock):
        raise ConfigError("cluster", f"{cluster!r} is not a cluster's block")
    return block
