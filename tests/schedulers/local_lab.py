"""Real jobs on this machine under real supervisors, driven behind the adapter's back."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, ClassVar

from trainguard.core.job import CheckpointSpec, Job, JobRef, Resume, ResumeBy
from trainguard.schedulers.local import LocalJob, LocalScheduler, start_job
from trainguard.supervisor import supervisor
from trainguard.testing.scheduler_lab import CRASH_LINE, Ability, Lab, Workload

WORKLOAD = f"""
import json, os, signal, sys, time
kind, folder = sys.argv[1:3]
resume = os.environ.get("TG_RESUME", "")
if "--resume" in sys.argv:
    resume = sys.argv[sys.argv.index("--resume") + 1]
if os.path.islink(folder + "/checkpoints/latest"):
    resume = os.readlink(folder + "/checkpoints/latest")
signal.signal(signal.SIGUSR1, lambda *_: os._exit(75))
with open(folder + "/starts", "a") as file:
    file.write(json.dumps([os.getpid(), resume]) + "\\n")
if kind == "crashing":
    print("step 1/100000\\n{CRASH_LINE}", flush=True)
    sys.exit(3)
if kind == "finishing":
    print("step 1/100000", flush=True)
    sys.exit(0)
step = 0
inbox = os.open(folder + "/say", os.O_RDWR) if kind == "quiet" else None
while True:
    if inbox is None:
        step += 1
        print(f"step {{step}}/100000", flush=True)
        time.sleep(0.05)
    else:
        data = os.read(inbox, 65536)
        while data:
            data = data[os.write(1, data):]
"""


class LocalLab(Lab):
    """One machine; a job's own folder holds what its workload says of itself."""

    lacks: ClassVar[Mapping[Ability, str]] = {
        Ability.OWNER_HOLD: "a supervised command can't be held",
    }
    settle: ClassVar[float] = 0.3
    resume_ways: ClassVar[frozenset[ResumeBy]] = frozenset(
        {ResumeBy.ARGUMENT, ResumeBy.ENVIRONMENT, ResumeBy.SYMLINK}
    )

    def __init__(self, folder: Path) -> None:
        # The adapter sees the jobs by a way that the test can cut; the jobs themselves do not use it.
        self.folder, self.way = folder / "jobs", folder / "way"
        self.folder.mkdir()
        self.way.symlink_to(self.folder)
        self.script = folder / "workload.py"
        self.script.write_text(WORKLOAD)
        self.started: list[Path] = []
        self.twins: list[LocalScheduler] = []
        self.own = self._adapter()

    def _adapter(self) -> LocalScheduler:
        adapter = LocalScheduler("here", roots=(self.way,), answer_seconds=4.0)
        self.twins.append(adapter)
        return adapter

    @property
    def scheduler(self) -> LocalScheduler:
        return self.own

    def twin(self) -> LocalScheduler:
        return self._adapter()

    async def start(self, workload: Workload, resume: Resume | None = None) -> Job:
        return await self.start_as(f"{workload}-{uuid.uuid4().hex[:6]}", workload, resume)

    async def start_as(self, name: str, workload: Workload, resume: Resume | None = None) -> Job:
        home = self.folder / name / "home"
        (home / "checkpoints").mkdir(parents=True, exist_ok=True)
        if not (home / "say").exists():
            os.mkfifo(home / "say")
        checkpoints = CheckpointSpec(directory=str(home / "checkpoints"), resume=resume) if resume else None
        command = (sys.executable, str(self.script), workload.value, str(home))
        return await self.start_command(name, command, {}, checkpoints, home)

    async def start_command(
        self,
        name: str,
        command: tuple[str, ...],
        settings: Mapping[str, Any],
        checkpoints: CheckpointSpec | None = None,
        cwd: Path | None = None,
    ) -> Job:
        """Start any command as a job of this lab."""
        job = await start_job(
            LocalJob(
                name=name,
                state=self.folder / name,
                command=command,
                cwd=cwd or self.folder,
                checkpoints=checkpoints,
                supervisor={
                    **settings,
                    "retry": {"max": 1, "delay_seconds": 600, "exit_codes": [75]},
                    "log": {"max_bytes": 200_000, "keep": 1000},
                    "sample_seconds": 0.3,
                    "heartbeat": {"step_pattern": r"^step (?P<step>\d+)/(?P<total>\d+)$"},
                    "stop_seconds": 3,
                },
            ),
            cluster="here",
        )
        self.started.append(self.folder / name)
        return job.model_copy(update={"ref": job.ref.model_copy(update={"id": str(self.way / name)})})

    def real(self, job: Job) -> Path:
        """Give the state folder by the way that is never cut."""
        return self.folder / Path(job.ref.id).name

    def unheard_of(self) -> Job:
        ref = JobRef(scheduler="local", cluster="here", id=str(self.way / uuid.uuid4().hex))
        return Job(ref=ref, name="unheard of")

    def said(self, job: Job) -> list[list[Any]]:
        """Give what each start of the workload wrote down: its pid, and what it resumes from."""
        path = self.real(job) / "home" / "starts"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    async def until_said(self, job: Job) -> int:
        """Wait until the workload has begun; give its pid."""

        async def look() -> int | None:
            said = self.said(job)
            return int(said[-1][0]) if said else None

        return await self.until(look, "the workload begins")

    async def crash(self, job: Job) -> None:
        os.kill(await self.until_said(job), signal.SIGKILL)

    async def stop_by_owner(self, job: Job) -> None:
        await self.tell(job, "stop")

    async def tell(self, job: Job, *words: str) -> None:
        """Use the supervisor's own command line, as the owner does."""
        argv = [sys.executable, supervisor.__file__, "tell", str(self.real(job)), *words]
        done = await asyncio.to_thread(subprocess.run, argv, capture_output=True, timeout=60, check=False)
        assert done.returncode == 0, done

    async def append_log(self, job: Job, data: bytes) -> None:
        await self.until_said(job)

        def write() -> None:
            with (self.real(job) / "home" / "say").open("wb", buffering=0) as pipe:
                left = data
                while left:
                    left = left[pipe.write(left) :]

        await asyncio.to_thread(write)

    async def starts(self, job: Job) -> int:
        return len(self.said(job))

    async def alive(self, job: Job) -> int:
        return sum(supervisor.start_of(int(pid)) is not None for pid, _ in self.said(job))

    async def resumed_from(self, job: Job) -> str | None:
        said = self.said(job)
        return str(said[-1][1]) if len(said) > 1 else None

    @asynccontextmanager
    async def unreachable(self) -> AsyncIterator[None]:
        self.way.unlink()
        self.way.write_text("not a folder")
        try:
            yield
        finally:
            self.way.unlink()
            self.way.symlink_to(self.folder)

    def supervisor_of(self, folder: Path) -> int:
        """Give the pid of a folder's supervisor."""
        return int((folder / "lock").read_text().split()[1])

    async def kill_supervisor(self, job: Job) -> None:
        """End a job's supervisor as the kernel would, and wait until it is gone."""
        pid = self.supervisor_of(self.real(job))
        os.kill(pid, signal.SIGKILL)

        async def look() -> bool | None:
            return True if supervisor.start_of(pid) is None else None

        await self.until(look, "the supervisor is dead")

    @asynccontextmanager
    async def answers_lost(self) -> AsyncIterator[None]:
        pids = [self.supervisor_of(folder) for folder in self.started]
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            for pid in pids:
                os.kill(pid, signal.SIGCONT)

    async def say(self, job: Job, word: str) -> None:
        folder = self.real(job)
        await self.kill_supervisor(job)
        state = json.loads((folder / "state.json").read_text())
        supervisor.write_json(folder / "state.json", {**state, "status": word})

    async def recreate(self, job: Job) -> None:
        folder = self.real(job)
        await self.end(folder)
        shutil.rmtree(folder)
        await self.start_as(folder.name, Workload.HEALTHY)

    async def begin_own_restart(self, job: Job) -> None:
        os.kill(await self.until_said(job), signal.SIGUSR1)

    def current_log(self, job: Job) -> Path:
        """Give the piece of log that is being written."""
        return (self.real(job) / "logs" / "current.log").resolve()

    async def truncate_log(self, job: Job) -> None:
        os.truncate(self.current_log(job), 0)

    async def rotate_log(self, job: Job) -> None:
        before = self.current_log(job)
        filler = b"filler " * 8_000 + b"\n"

        async def look() -> bool | None:
            await self.append_log(job, filler)
            await asyncio.sleep(0.05)
            return True if self.current_log(job) != before else None

        await self.until(look, "the log is rotated")

    async def make_log_unreadable(self, job: Job) -> None:
        logs = self.real(job) / "logs"
        logs.rename(logs.with_name("logs-hidden"))
        logs.write_text("not a folder")

    async def end(self, folder: Path) -> None:
        """End everything that belongs to a job: by pid, and only what this lab started."""
        for number in supervisor.attempt_numbers(folder):
            with contextlib.suppress(supervisor.StateError):
                attempt = supervisor.Attempt(folder, number)
                started = attempt.read("started") or {}
                supervisor.signal_all([self.supervisor_of(folder)] if number == 1 else [], signal.SIGKILL)
                supervisor.signal_all(attempt.processes(), signal.SIGKILL)
                if attempt.shim_alive():
                    supervisor.signal_all([int(started["shim"])], signal.SIGKILL)

    async def close(self) -> None:
        """End all jobs and adapters."""
        for folder in self.started:
            with contextlib.suppress(OSError, ValueError):
                await self.end(folder)
        for adapter in self.twins:
            await adapter.close()
