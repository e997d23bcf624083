"""Looking at checkpoints on volumes that the guard's own machine or pod has mounted too."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path, PurePosixPath

from trainguard.core.checkpoint import Checkpoint
from trainguard.core.errors import ConfigError
from trainguard.core.job import CheckpointSpec
from trainguard.supervisor.checkpoints import find_checkpoints


def look(spec: CheckpointSpec, volumes: Mapping[str, str], *, writing: bool) -> tuple[Checkpoint, ...] | None:
    """Find a job's checkpoints; `volumes` maps folders in its pods to where the guard sees them.

    None where no volume holds the directory or it can't be read. Raises ConfigError for a spec that can't be used.
    """
    directory = PurePosixPath(spec.directory)
    seen = {PurePosixPath(mount): Path(here).expanduser() for mount, here in volumes.items()}
    mounts = [mount for mount in seen if directory.is_relative_to(mount)]
    if not mounts:
        return None
    mount = max(mounts, key=lambda one: len(one.parts))
    here = seen[mount]
    try:
        found = find_checkpoints(
            here / directory.relative_to(mount), spec.format, spec.glob, time.time() if writing else None
        )
    except FileNotFoundError:
        # a volume that is not mounted looks like an empty folder, or like none
        return () if here.is_mount() or (here.is_dir() and any(here.iterdir())) else None
    except OSError:
        return None
    except ValueError as error:
        raise ConfigError("checkpoints", str(error)) from error
    return tuple(
        Checkpoint.model_validate({**asdict(one), "path": str(mount / Path(one.path).relative_to(here))})
        for one in found
    )
