"""Slurm behind SSH: the adapter. Rules it keeps, each seen on a real Slurm:

- squeue and scontrol are the truth for live jobs; sacct runs seconds behind and is asked only for ids that
  the controller has forgotten. Missing is not finished.
- A controller that does not answer gives no verdict.
- Slurm's own requeue is left alone; the next incarnation is guarded.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import ClassVar

from trainguard.core.action import Access, Action, ActionKind, Fence, Outcome
from trainguard.core.checkpoint import Checkpoint
from trainguard.core.errors import AccessRefusedError, ConfigError, NotFoundError, UnreachableError
from trainguard.core.evidence import Evidence
from trainguard.core.job import Job, JobRef
from trainguard.core.observation import Liveness, LogBatch, LogSource, Observation
from trainguard.schedulers.base import Scheduler
from trainguard.schedulers.slurm import remote_checkpoints
from trainguard.schedulers.slurm.acting import SUPPORTED, Actor
from trainguard.schedulers.slurm.client import Shell, SlurmClient, check, squeue
from trainguard.schedulers.slurm.detail import controller_details, outputs
from trainguard.schedulers.slurm.discovery import selection
from trainguard.schedulers.slurm.evidence import log_tails, slurm_facts, status
from trainguard.schedulers.slurm.finding import Finder
from trainguard.schedulers.slurm.ids import JobId
from trainguard.schedulers.slurm.journal import Journal
from trainguard.schedulers.slurm.logs import LogReader
from trainguard.schedulers.slurm.observing import Observer, Run
from trainguard.schedulers.slurm.parse import rows
from trainguard.schedulers.slurm.patterns import OutputFile
from trainguard.schedulers.slurm.states import Settings
from trainguard.schedulers.slurm.validation import Validator
from trainguard.transports.posix_shell import new_mark
from trainguard.transports.ssh import SshConnection, SshTarget


class SlurmScheduler(Scheduler):
    """One Slurm cluster as one login sees it."""

    name: ClassVar[str] = "slurm"
    supports: ClassVar[frozenset[ActionKind]] = SUPPORTED

    def __init__(
        self,
        cluster: str,
        target: SshTarget | None = None,
        *,
        path: Sequence[str] = (),
        settings: Settings | None = None,
        shell: Shell | None = None,
    ) -> None:
        """Give a `target` to log in to, or a `shell` that is already there.

        `path` are folders on the login node where squeue, sbatch and scontrol are, if not on PATH.
        """
        super().__init__(cluster)
        if shell is None:
            if target is None:
                raise ConfigError("host", "no login node is named")
            shell = SshConnection(target, path)
        self._shell = shell
        self._client = SlurmClient(shell)
        chosen = settings or Settings()
        self._observer = Observer(self._client, chosen)
        journal = Journal(cluster)
        self._finder = Finder(self._client, self._observer, journal)
        self._actor = Actor(
            self._client, self._observer, self._finder, journal, requeue_delay=chosen.requeue_delay
        )
        self._reader = LogReader(self._client)
        self._files: dict[JobRef, tuple[Run, list[OutputFile]]] = {}
        self._locks: dict[JobRef, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._closed = False

    async def validate(self, job: Job) -> Access:
        """Log in even while a pause after a failure is running, and try what can be tried without harm."""
        self._usable()
        asked = self._observer.followed(job.ref)
        if asked is None:
            raise NotFoundError(f"{job.ref.id!r} is no Slurm job id")
        facts = await Validator(self._client).facts()
        self.poll_seconds = facts.poll_seconds(type(self).poll_seconds)  # type: ignore[misc]
        seen = (await self._observer.observe([job]))[job.ref]
        if seen.liveness is Liveness.GONE:
            raise NotFoundError(f"{job.ref.id}: {seen.reason}")
        readable, problem = await self._readable(job)
        access = facts.access(self._observer.owner(job.ref), seen)
        warnings = access.warnings + ((problem,) if problem else ())
        return access.model_copy(update={"logs_readable": readable, "warnings": warnings})

    async def observe(self, jobs: Sequence[Job]) -> Mapping[JobRef, Observation]:
        """One query of the controller for all jobs, whatever their number."""
        self._usable()
        return await self._observer.observe(jobs)

    async def logs(self, job: Job, cursor: str = "", limit: int = 1_000_000) -> LogBatch:
        """Read the job's output, its ranks' files and its extra logs on the login node."""
        self._usable()
        return await self._reader.read(await self._sources(job), cursor, limit)

    async def collect(self, job: Job, observation: Observation) -> Sequence[Evidence]:
        """Save the ends of all files and what Slurm says; a source that can't be read says so."""
        self._usable()
        asked = self._observer.followed(job.ref)
        if asked is None:
            return [status("job", f"{job.ref.id!r} is no Slurm job id")]
        found: list[Evidence] = []
        try:
            found += await log_tails(self._client, await self._sources(job))
        except (NotFoundError, AccessRefusedError, UnreachableError) as problem:
            found.append(status("log", str(problem)))
        _, records, _ = await self._observer.current(job)
        ids = [record.id.asked for record in records] or [asked.asked]
        return found + await slurm_facts(self._client, list(dict.fromkeys(ids)), observation)

    async def perform(self, job: Job, action: Action, fence: Fence) -> Outcome:
        """Act once; what is asked at the same time for the same job waits."""
        self._usable()
        async with self._locks[job.ref]:
            return await super().perform(job, action, fence)

    async def _perform(self, job: Job, action: Action, fence: Fence) -> Outcome:
        return await self._actor.perform(job, action, fence)

    async def find(self, job: Job, fence: Fence) -> Outcome | None:
        """Look for the fence's mark in comments, its name in nodes' reasons, and its note in the journal."""
        self._usable()
        return await self._finder.find(job, fence)

    async def discover(self, selector: str) -> Sequence[JobRef]:
        """Find live jobs: `user=alice`, `account=ml`, `partition=gpu`, `name=train-*`, joined by commas, or `*`."""
        self._usable()
        chosen, matches = selection(selector)
        mark = new_mark()
        fields = ("JobArrayID", "Name", "Comment")
        (answer,) = await self._client.run([squeue(mark, *chosen, fields=fields)])
        check(answer, f"listing the jobs of {selector!r}")
        return matches(rows(answer.text, fields, mark), self.cluster)

    async def checkpoints(self, job: Job) -> tuple[Checkpoint, ...] | None:
        """Look at the job's checkpoints from the login node; needs a python3 there."""
        self._usable()
        if job.checkpoints is None:
            return None
        _, _, seen = await self._observer.current(job)
        return await remote_checkpoints.look(
            self._client, job.checkpoints, writing=not seen.liveness.terminal
        )

    async def close(self) -> None:
        """Close the connection."""
        self._closed = True
        await self._shell.close()

    def _usable(self) -> None:
        if self._closed:
            raise RuntimeError("this Slurm adapter was closed")

    async def _sources(self, job: Job) -> list[LogSource]:
        asked = self._observer.followed(job.ref)
        if asked is None:
            raise NotFoundError(f"{job.ref.id!r} is no Slurm job id")
        files = await self._output_files(job.ref, asked)
        if not files and not job.extra_logs:
            raise NotFoundError(f"Slurm does not tell any more where the output of {job.ref.id} is")
        extra = [OutputFile(path) for path in job.extra_logs if path.startswith("/")]
        return await self._reader.sources([*files, *extra])

    async def _output_files(self, ref: JobRef, asked: JobId) -> list[OutputFile]:
        """Ask once a run: the next one may have another node in its files' names."""
        run = self._observer.run_of(ref)
        kept = self._files.get(ref)
        if kept is not None and kept[0] == run:
            return kept[1]
        details = await controller_details(self._client, asked, full=True)
        if not details:  # Forgotten: what was told last still stands.
            last = self._actor.details.get(asked)
            return kept[1] if kept is not None else outputs(last) if last is not None else []
        self._actor.details[asked] = details[0]
        files = [file for detail in details for file in outputs(detail)]
        if run is not None:
            self._files[ref] = (run, files)
        return files

    async def _readable(self, job: Job) -> tuple[bool, str]:
        try:
            await self._reader.read(await self._sources(job), "", 4_096)
        except (AccessRefusedError, NotFoundError) as problem:
            return False, str(problem)
        return True, ""
