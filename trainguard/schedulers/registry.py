"""Which adapters there are, imported only when used: their client libraries are optional extras."""

from __future__ import annotations

from importlib import import_module
from typing import cast

from trainguard.core.errors import ConfigError
from trainguard.schedulers.base import Scheduler

SCHEDULERS: dict[str, str] = {
    "local": "trainguard.schedulers.local:LocalScheduler",
    "slurm": "trainguard.schedulers.slurm:SlurmScheduler",
    "kubernetes": "trainguard.schedulers.kubernetes:KubernetesScheduler",
    "simulated": "trainguard.testing.simulated:SimulatedScheduler",
}


def scheduler_class(name: str) -> type[Scheduler]:
    """Import the adapter class of a scheduler. Raises ConfigError for a name that is none."""
    try:
        module, _, attribute = SCHEDULERS[name].partition(":")
    except KeyError:
        raise ConfigError("scheduler", f"{name!r} is none of {', '.join(sorted(SCHEDULERS))}") from None
    return cast("type[Scheduler]", getattr(import_module(module), attribute))
