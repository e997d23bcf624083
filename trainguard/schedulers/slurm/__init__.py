"""Slurm, reached over SSH."""

from trainguard.schedulers.slurm.adapter import SlurmScheduler
from trainguard.schedulers.slurm.states import Settings

__all__ = ["Settings", "SlurmScheduler"]
