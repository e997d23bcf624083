"""Looking at checkpoints where they lie: the checkpoint gate's one file, run by the login node's python3."""

from __future__ import annotations

import json
from importlib import resources

from trainguard.core.checkpoint import Checkpoint
from trainguard.core.job import CheckpointSpec
from trainguard.schedulers.slurm.client import SlurmClient
from trainguard.transports.posix_shell import Command


async def look(client: SlurmClient, spec: CheckpointSpec, *, writing: bool) -> tuple[Checkpoint, ...] | None:
    """Run the gate on the login node. None where it could not look (no python3, no such folder)."""
    source = resources.files("trainguard.supervisor").joinpath("checkpoints.py").read_text(encoding="utf-8")
    argv = ["python3", "-", "--json", f"--format={spec.format}", f"--glob={spec.glob}"]
    argv += ["--writing"] if writing else []
    (answer,) = await client.run([Command((*argv, "--", spec.directory), stdin=source, timeout=120)])
    if answer.code != 0:
        return None
    try:
        found = json.loads(answer.text)["checkpoints"]
        return tuple(
            Checkpoint.model_validate({k: v for k, v in one.items() if k in _FIELDS}) for one in found
        )
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


_FIELDS = frozenset(Checkpoint.model_fields)
