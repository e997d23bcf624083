"""Starting a job on this machine, so that it outlives whoever started it."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import sys
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from trainguard.core.errors import ConfigError, UnreachableError
from trainguard.core.job import CheckpointSpec, Job, JobRef, Watching
from trainguard.supervisor import supervisor

START_SECONDS = 60.0
_LONGEST = 255
"""Bytes of a file's name (NAME_MAX on Linux)."""
SUPERVISOR = str(Path(supervisor.__file__).resolve())


def default_root() -> Path:
    """Give the folder below which jobs keep their state unless told otherwise."""
    base = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
    return Path(base).expanduser() / "trainguard" / "jobs"


class LocalJob(BaseModel):
    """Everything needed to start and guard one job on this machine."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    command: tuple[str, ...] = ()
    """The training command, word by word; no shell reads it."""
    state: Path | None = None
    """State folder; by default `~/.local/state/trainguard/jobs/NAME`."""
    name: str
    project: str = ""
    cwd: Path | None = None
    """Working directory of the command; by default the present one."""
    env: dict[str, str] = Field(default_factory=dict)
    """Added to the environment of whoever starts it."""
    checkpoints: CheckpointSpec | None = None
    watching: Watching = Watching()
    max_steps: int | None = None
    extra_logs: tuple[str, ...] = ()
    supervisor: dict[str, Any] = Field(default_factory=dict)
    """Further settings of the supervisor (docs/supervisor.md): gate, memory, eval, free_disk, install, log …"""

    @field_validator("name")
    @classmethod
    def _is_a_folders_name(cls, name: str, values: ValidationInfo) -> str:
        if values.data.get("state") is None and (
            name in {"", ".", ".."} or {"/", "\0"} & set(name) or len(os.fsencode(name)) > _LONGEST
        ):
            raise PydanticCustomError(
                "name", "can't be a folder's name: choose another, or give a state folder"
            )
        return name

    @property
    def folder(self) -> Path:
        """The state folder."""
        return (self.state or default_root() / self.name).expanduser().resolve()

    def job(self, cluster: str = "") -> Job:
        """Name the job as the guard knows it."""
        ref = JobRef(scheduler="local", cluster=cluster or socket.gethostname(), id=str(self.folder))
        return Job(
            ref=ref,
            name=self.name,
            project=self.project,
            checkpoints=self.checkpoints,
            watching=self.watching,
            max_steps=self.max_steps,
            extra_logs=self.extra_logs,
        )

    def settings(self) -> dict[str, Any]:
        """Give the supervisor's configuration."""
        cwd = (self.cwd or Path.cwd()).expanduser().resolve()
        settings = {"name": self.name, "project": self.project, "cwd": str(cwd), **self.supervisor}
        settings["env"] = {**settings.get("env", {}), **self.env}
        if self.checkpoints is not None:
            resume = self.checkpoints.resume
            settings.setdefault("checkpoints", {"directory": self.checkpoints.directory})
            settings.setdefault("resume", {"by": resume.by.value, "name": resume.name})
        return settings


async def start_job(config: LocalJob, cluster: str = "") -> Job:
    """Start the command under a detached supervisor; it runs when this returns.

    A new attempt is made in a folder whose job is over. Raises ConfigError where the gate or the settings
    say no (also: the folder is supervised already), UnreachableError where no supervisor could be started.
    """
    argv = [sys.executable, "-I", "-S", SUPERVISOR, "start", "--config", "-"]
    argv += ["--state", str(config.folder), "--", *config.command]
    process = await asyncio.create_subprocess_exec(
        *argv,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    settings = json.dumps(config.settings()).encode()
    try:
        output, errors = await asyncio.wait_for(process.communicate(settings), START_SECONDS)
    except TimeoutError as error:
        process.kill()
        raise UnreachableError(f"{config.folder}: no supervisor within {START_SECONDS:.0f} s") from error
    if process.returncode != 0:
        raise _refusal(output, errors)
    job = config.job(cluster)
    await asyncio.to_thread(supervisor.write_json, config.folder / "job.json", job.model_dump(mode="json"))
    return job


def _refusal(output: bytes, errors: bytes) -> ConfigError | UnreachableError:
    try:
        error = json.loads(output.decode())["error"]
        return ConfigError(error["field"], error["problem"], error["remedy"])
    except (ValueError, KeyError, TypeError):
        return UnreachableError(errors.decode("utf-8", "replace").strip() or "the supervisor did not start")


def load_job(folder: Path, cluster: str = "") -> Job:
    """Give the job that runs in a state folder, as it was declared when it was started.

    A folder that was started by the bare supervisor has no job.json: then name, project and checkpoints are
    those of its configuration. Raises ConfigError where the folder holds no job.
    """
    folder = folder.expanduser().resolve()
    ref = JobRef(scheduler="local", cluster=cluster or socket.gethostname(), id=str(folder))
    try:
        declared, spec = supervisor.read_json(folder / "job.json"), supervisor.read_json(folder / "spec.json")
    except supervisor.StateError as error:
        raise ConfigError("state", str(error)) from error
    if spec is None:
        raise ConfigError(
            "state",
            f"{folder} holds no supervised job",
            "give the folder that --state named, or --cluster for a job of a cluster",
        )
    try:
        if declared is not None:
            return Job.model_validate({**declared, "ref": ref})
        config = spec["config"]
        directory = config["checkpoints"]["directory"]
        checkpoints = (
            CheckpointSpec.model_validate({"directory": directory, "resume": config["resume"]})
            if directory
            else None
        )
        return Job(ref=ref, name=spec["name"], project=config["project"], checkpoints=checkpoints)
    except (ValidationError, KeyError, TypeError) as error:
        raise ConfigError("state", f"{folder}: its job can't be read: {error}") from error
