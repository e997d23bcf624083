"""Prefect Blocks: where things are and how to get in.

Found through the `prefect.collections` entry point, and by `prefect block register -m trainguard.blocks`.
"""

from trainguard.blocks.kubernetes_cluster import KubernetesCluster
from trainguard.blocks.language_model import LanguageModel
from trainguard.blocks.local_host import LocalHost
from trainguard.blocks.notifier import AppriseAddress, SlackWebhook
from trainguard.blocks.slurm_cluster import SlurmCluster

__all__ = [
    "AppriseAddress",
    "KubernetesCluster",
    "LanguageModel",
    "LocalHost",
    "SlackWebhook",
    "SlurmCluster",
]
