"""The contract suite on a real Slurm, with accounting and without."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import ClassVar

import pytest

from tests.labs.slurm.lab_cluster import HERE, Cluster, Proxy
from trainguard.core.job import Job, Resume, ResumeBy
from trainguard.schedulers.base import Scheduler
from trainguard.schedulers.slurm import SlurmScheduler
from trainguard.testing.scheduler_contract import SchedulerContract
from trainguard.testing.scheduler_lab import CRASH_LINE, Ability, Lab, Workload

pytestmark = pytest.mark.lab("slurm")

SCRIPT = f"""#!/bin/bash
echo $$ >>pids
echo start >>starts
resume=${{TG_RESUME-}}
[ "$2" = --resume ] && resume=$3
[ -L ckpt/latest ] && resume=$(readlink ckpt/latest)
printf %s "$resume" >resumed
n=0
case $1 in
healthy) while :; do n=$((n + 1)); echo "step $n/100000"; sleep 0.2; done ;;
quiet) while :; do sleep 0.5; done ;;
crashing) echo "{CRASH_LINE}"; exit 3 ;;
finishing) echo "step 1/1" ;;
esac
"""


class SlurmLab(Lab):
    """One of the lab's clusters, reached through a proxy that can be cut."""

    patience: ClassVar[float] = 60.0
    settle: ClassVar[float] = 2.0
    tick: ClassVar[float] = 0.3
    lacks: ClassVar[dict[Ability, str]] = {
        Ability.RECREATE: "Slurm's ids come again only after millions of jobs; tested on parsed text",
        Ability.ROTATE_LOG: "slurmstepd keeps its file open: a job's output is not rotated",
    }
    resume_ways: ClassVar[frozenset[ResumeBy]] = frozenset(
        {ResumeBy.ARGUMENT, ResumeBy.ENVIRONMENT, ResumeBy.SYMLINK}
    )

    def __init__(self, cluster: Cluster, proxy: Proxy, shims: Path) -> None:
        self.cluster, self.proxy, self.shims = cluster, proxy, shims
        self._folders: dict[str, Path] = {}
        self._unheard = 4_000_000 + os.getpid()
        self._adapter = self.twin()

    @property
    def scheduler(self) -> Scheduler:
        return self._adapter

    def twin(self) -> SlurmScheduler:
        return self.cluster.scheduler(port=self.proxy.port, path=(self.cluster.within(self.shims),))

    async def start(self, workload: Workload, resume: Resume | None = None) -> Job:
        folder = self.cluster.job_folder()
        native = self.cluster.submit(folder, SCRIPT, "--output=out.txt", args=(workload,))
        self._folders[native] = folder
        return self.cluster.job(native, folder if resume is not None else None, resume)

    def unheard_of(self) -> Job:
        self._unheard += 1
        return self.cluster.job(str(self._unheard))

    def _pids(self, job: Job) -> list[int]:
        path = self._folders[job.ref.id] / "pids"
        pids = [int(line) for line in path.read_text().split()] if path.exists() else []
        return [pid for pid in pids if self._is_ours(pid)]

    @staticmethod
    def _is_ours(pid: int) -> bool:
        try:
            stat = Path(f"/proc/{pid}/stat").read_text()
            return b"slurm_script" in Path(f"/proc/{pid}/cmdline").read_bytes() and ") Z " not in stat
        except OSError:
            return False

    async def crash(self, job: Job) -> None:
        async def look() -> list[int] | None:
            return self._pids(job) or None  # Slurm says RUNNING before the script has begun

        for pid in await self.until(look, "the job's process"):
            os.kill(pid, signal.SIGSEGV)

    async def stop_by_owner(self, job: Job) -> None:
        self.cluster.run("scancel", job.ref.id)

    async def append_log(self, job: Job, data: bytes) -> None:
        with (self._folders[job.ref.id] / "out.txt").open("ab") as file:
            file.write(data)

    async def starts(self, job: Job) -> int:
        path = self._folders[job.ref.id] / "starts"
        counted = 0
        for _ in range(50):  # Slurm says RUNNING a moment before the script begins
            state = self.cluster.run(
                "squeue", "-h", "-j", job.ref.id, "-O", "State: ,RestartCnt:", check=False
            ).split()
            counted = len(path.read_text().splitlines()) if path.exists() else 0
            if not state or state[0] != "RUNNING" or counted > int(state[1]):
                break
            await asyncio.sleep(0.1)
        return counted

    async def alive(self, job: Job) -> int:
        return len(self._pids(job))

    async def resumed_from(self, job: Job) -> str | None:
        path = self._folders[job.ref.id] / "resumed"
        return (path.read_text() or None) if path.exists() else None

    @asynccontextmanager
    async def unreachable(self) -> AsyncIterator[None]:
        self.proxy.cut()
        try:
            yield
        finally:
            self.proxy.open()

    @asynccontextmanager
    async def answers_lost(self) -> AsyncIterator[None]:
        flag = self.shims / "lose"
        flag.touch()
        try:
            yield
        finally:
            flag.unlink()

    async def say(self, job: Job, word: str) -> None:
        (self.shims / f"say.{job.ref.id}").write_text(word)

    async def begin_own_restart(self, job: Job) -> None:
        self.cluster.run("scontrol", "requeue", job.ref.id)

    async def hold_by_owner(self, job: Job) -> None:
        self.cluster.run("scontrol", "requeuehold", job.ref.id)

    async def truncate_log(self, job: Job) -> None:
        os.truncate(self._folders[job.ref.id] / "out.txt", 0)

    async def make_log_unreadable(self, job: Job) -> None:
        path = self._folders[job.ref.id] / "out.txt"

        async def look() -> bool | None:
            return path.exists() or None

        await self.until(look, "the output file")
        os.chown(path, 0, 0)
        path.chmod(0o600)

    def selector(self) -> str:
        return f"user={self.cluster.facts['USER_NAME']},partition=main,name=job*"


class TestSlurm(SchedulerContract):
    """Every test of the suite, on both clusters."""

    @pytest.fixture
    async def lab(self, cluster: Cluster, tmp_path: Path) -> AsyncIterator[Lab]:
        proxy = Proxy("127.0.0.1", int(cluster.facts["PORT"]))
        proxy.open()
        shims = cluster.home / f"shims-{tmp_path.name}-{os.getpid()}"
        shims.mkdir(exist_ok=True)
        for name in ("squeue", "sbatch", "scancel", "scontrol"):
            shutil.copy(HERE / "shim.sh", shims / name)
            (shims / name).chmod(0o755)
        lab = SlurmLab(cluster, proxy, shims)
        yield lab
        await cluster.close()
        proxy.cut()
        shutil.rmtree(shims)
