"""The last manifest of each job that is about to be deleted, so that a crash in between loses nothing.

Files of mode 0600 in a folder of the owner's choice: manifests may hold secrets in their variables.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

from trainguard.schedulers.kubernetes.kinds import KINDS, JobName
from trainguard.transports.kube import Object


@dataclass(frozen=True)
class Saved:
    """A job that is being made again: what by, from what, as what."""

    job_id: str
    """As its guard names it: a CronJob stands for its newest Job."""
    uid: str
    """Of the object that is replaced."""
    fence: str
    manifest: Object
    born: float = 0.0
    """When the object that is replaced was created."""

    @property
    def name(self) -> JobName:
        """Of the object itself."""
        own = self.manifest["metadata"]
        return JobName(own["namespace"], KINDS[self.manifest["kind"]], own["name"])


class ManifestStore:
    """Keeps manifests on disk where a folder is given, else in memory. Blocking calls, small files."""

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder
        self._memory: dict[str, Saved] = {}

    def save(self, saved: Saved) -> None:
        """Keep it; on disk before this returns."""
        if self._folder is None:
            self._memory[saved.job_id] = saved
            return
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        handle, name = tempfile.mkstemp(dir=self._folder, prefix=".new-")
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(asdict(saved), file)
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(self._path(saved.job_id))

    def load(self, job_id: str) -> Saved | None:
        """Give what is kept for a job; a damaged file is as good as none."""
        if self._folder is None:
            return self._memory.get(job_id)
        try:
            read = json.loads(self._path(job_id).read_text("utf-8"))
            saved = Saved(**read)
        except (OSError, ValueError, TypeError):
            return None
        return saved if saved.job_id == job_id and isinstance(saved.manifest, dict) else None

    def drop(self, job_id: str) -> None:
        """Forget a job that was made again, or that is not to be."""
        self._memory.pop(job_id, None)
        if self._folder is not None:
            with contextlib.suppress(OSError):
                self._path(job_id).unlink()

    def _path(self, job_id: str) -> Path:
        assert self._folder is not None
        return self._folder / f"{hashlib.sha256(job_id.encode()).hexdigest()[:32]}.json"
