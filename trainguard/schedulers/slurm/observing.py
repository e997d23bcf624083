"""Looking at many jobs at once, and what must be remembered between looks to tell gone from missed."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from trainguard.core.job import Job, JobRef
from trainguard.core.observation import Liveness, Observation
from trainguard.schedulers.slurm.client import Accounts, Look, SlurmClient
from trainguard.schedulers.slurm.ids import JobId, job_id
from trainguard.schedulers.slurm.jobs import as_before, belonging, incarnation, token, whole
from trainguard.schedulers.slurm.marks import marks
from trainguard.schedulers.slurm.parse import Record
from trainguard.schedulers.slurm.states import STATES, Settings, read

_SEEK_AGAIN = 30.0
"""Seconds between two looks for a newer submission of a job that stays ended: another process may have made one."""
_LIVE = {Liveness.PENDING, Liveness.RUNNING, Liveness.UNKNOWN}
Run = tuple[str, tuple[str, ...]]
"""An incarnation's token and its nodes."""


@dataclass
class _Memory:
    """What earlier looks saw of one job."""

    records: dict[JobId, Record] = field(default_factory=dict)
    ended: Observation | None = None
    searched: float = float("-inf")
    sought: float = float("-inf")
    """When a newer submission was last looked for, and not found."""
    asked: float = float("-inf")
    """When accounting was last asked for a job whose end is known."""


class Observer:
    """The jobs of one cluster as its controller and its accounting see them."""

    def __init__(self, client: SlurmClient, settings: Settings) -> None:
        self._client = client
        self._settings = settings
        self._follow: dict[JobRef, JobId] = {}
        self._memory: dict[JobRef, _Memory] = {}

    def followed(self, ref: JobRef) -> JobId | None:
        """Give the Slurm id under which the job runs now: its own, or that of its newest submission."""
        return self._follow.get(ref) or job_id(ref.id)

    def follow(self, ref: JobRef, current: JobId) -> None:
        """Remember under which id the job was submitted again."""
        self._follow[ref] = current
        self._memory.pop(ref, None)

    def run_of(self, ref: JobRef) -> Run | None:
        """Name the run that was seen last; None where none was."""
        records = list(self._memory.get(ref, _Memory()).records.values())
        asked = self.followed(ref)
        if asked is None or not records:
            return None
        return token(asked, records), tuple(node for record in records for node in record.nodes)

    def owner(self, ref: JobRef) -> str:
        """Give the user whose job it is, as last seen; empty where that is not known."""
        records = self._memory.get(ref, _Memory()).records.values()
        return next((record.user for record in records if record.user), "")

    async def observe(self, jobs: Sequence[Job]) -> Mapping[JobRef, Observation]:
        """Look at many jobs in one query; accounting is asked only for those the controller has forgotten."""
        asked = {job.ref: job for job in jobs}
        known = [job for job in asked.values() if self.followed(job.ref) is not None]
        answers = {
            ref: Observation(
                job=ref, at=time.time(), source="adapter", liveness=Liveness.GONE,
                reason=f"{ref.id!r} is no Slurm job id",
            )
            for ref in asked if self.followed(ref) is None
        }  # fmt: skip
        if known:
            answers |= await self._observe(known)
        return answers

    async def current(self, job: Job) -> tuple[JobId, list[Record], Observation]:
        """Look at one job now: its id, its records with the controller, and what they mean."""
        memory = self._memory.get(job.ref, _Memory())
        memory.sought = memory.searched = memory.asked = float("-inf")
        observation = (await self.observe([job]))[job.ref]
        asked = self.followed(job.ref)
        if asked is None:
            return JobId(0), [], observation
        records = list(self._memory.get(job.ref, _Memory()).records.values())
        return asked, records, observation

    async def _observe(self, jobs: Sequence[Job]) -> dict[JobRef, Observation]:
        asked = {job.ref: self.followed(job.ref) for job in jobs}
        look = await self._client.look(self._ids(jobs))
        over = [job for job in jobs if self._is_over(job.ref, look) and self._seeks(job.ref)]
        if over and await self._find_successors(over):
            asked = {job.ref: self.followed(job.ref) for job in jobs}
            look = await self._client.look(self._ids(jobs))
        missing = [job for job in jobs if self._needs_accounting(job.ref, look)]
        accounts = await self._accounts(missing, asked) if missing else Accounts()
        # A job that another task submitted again during this look was asked for by its old id: that it does
        # not show says nothing.
        return {
            job.ref: self._observation(job, look, accounts)
            if self.followed(job.ref) == asked[job.ref]
            else _unknown(job, "it was submitted again during this look")
            for job in jobs
        }

    def _ids(self, jobs: Sequence[Job]) -> list[str]:
        return sorted({asked.asked for job in jobs if (asked := self.followed(job.ref)) is not None})

    def _records(self, ref: JobRef, look: Look) -> list[Record]:
        """The controller's records of a job, with those parts of an array that it has forgotten since."""
        asked = self.followed(ref)
        found = belonging(asked, look.by_base.get(asked.base, [])) if asked is not None else []
        before = self._memory.get(ref, _Memory()).records
        if not found or any(_reused(before.get(record.id), record) for record in found):
            return []
        found = [_half_way(_same_incarnation(before.get(record.id), record)) for record in found]
        have = {record.id for record in found}
        return found + [old for name, old in before.items() if name not in have and _over(old)]

    def _is_over(self, ref: JobRef, look: Look) -> bool:
        return all(_over(record) for record in self._records(ref, look))

    def _seeks(self, ref: JobRef) -> bool:
        """Whether to look for a newer submission: when it is first seen ended, and then now and again."""
        memory = self._memory.setdefault(ref, _Memory())
        if memory.ended is not None and time.monotonic() - memory.sought < _SEEK_AGAIN:
            return False
        memory.sought = time.monotonic()
        return True

    def _needs_accounting(self, ref: JobRef, look: Look) -> bool:
        records = self._records(ref, look)
        memory = self._memory.setdefault(ref, _Memory())
        if not records and memory.ended is not None:
            if time.monotonic() - memory.asked < _SEEK_AGAIN:
                return False
            memory.asked = time.monotonic()
        asked = self.followed(ref)
        array = asked is not None and asked.task is None and any(r.id.task is not None for r in records)
        return not records or (array and all(_over(record) for record in records))

    async def _find_successors(self, jobs: Sequence[Job]) -> bool:
        """Find newer submissions of jobs by their marks: made by this process, or before a crash."""
        newer = _successors(await self._client.own_comments(), {job.ref.id for job in jobs})
        moved = False
        for job in jobs:
            name = newer.get(job.ref.id)
            if name is not None and name != self.followed(job.ref):
                self.follow(job.ref, name)
                moved = True
        return moved

    async def _accounts(self, jobs: Sequence[Job], asked_for: dict[JobRef, JobId | None]) -> Accounts:
        accounts = await self._client.accounts(self._ids(jobs))
        now = time.monotonic()
        search: list[JobRef] = []
        since: list[int] = []
        for job in jobs:
            memory = self._memory.setdefault(job.ref, _Memory())
            memory.asked = now
            asked = self.followed(job.ref)
            ended = belonging(asked, accounts.records) if asked is not None else []
            if ended and now - memory.searched >= _SEEK_AGAIN:
                memory.searched = now
                search.append(job.ref)
                since.append(min(record.submit for record in ended))
        if not search:
            return accounts
        later = await self._client.own_accounts(min(since))
        newer = _successors(
            [(record.id, record.comment) for record in later.records], {ref.id for ref in search}
        )
        moved = [ref for ref in search if ref.id in newer and newer[ref.id] != self.followed(ref)]
        for ref in moved:
            self.follow(ref, newer[ref.id])
            asked_for[ref] = newer[ref.id]
        if not moved:
            return accounts
        more = await self._client.accounts(sorted({newer[ref.id].asked for ref in moved}))
        return Accounts(accounts.records + more.records, accounts.on, accounts.problem or more.problem)

    def _observation(self, job: Job, look: Look, accounts: Accounts) -> Observation:
        records = self._records(job.ref, look)
        asked = self.followed(job.ref)
        memory = self._memory.setdefault(job.ref, _Memory())
        told = belonging(asked, accounts.records) if asked is not None else []
        told = [record for record in told if not _anothers(memory.records, record)]
        if not records:
            return self._forgotten(job, memory, told, accounts, look)
        have = {record.id for record in records}
        records = records + [record for record in told if record.id not in have and _over(record)]
        memory.records = {record.id: record for record in records}
        observation = self._describe(job, records, look)
        memory.ended = observation if observation.liveness.terminal else None
        return observation

    def _forgotten(
        self, job: Job, memory: _Memory, told: list[Record], accounts: Accounts, look: Look
    ) -> Observation:
        if told and all(_over(record) for record in told):
            # sacct tells no restarts: the identity that the controller told earlier is kept.
            if memory.ended is not None and _same(told, memory):
                return memory.ended
            memory.records = {record.id: record for record in told}
            memory.ended = self._describe(job, told, look)
            return memory.ended
        if told:
            return _unknown(job, f"the controller has forgotten it; accounting still says {told[0].state}")
        if accounts.problem:
            return _unknown(job, f"the controller does not know it, and {accounts.problem}")
        if memory.ended is not None:
            return memory.ended
        if memory.records:
            how = "accounting is off" if not accounts.on else "accounting has no record of it"
            return _unknown(job, f"it left the controller unseen ({how}): how it ended is not known")
        return Observation(
            job=job.ref,
            at=time.time(),
            source="squeue" if not accounts.on else "sacct",
            liveness=Liveness.GONE,
            reason="Slurm does not know this job" + ("" if accounts.on else "; accounting is off"),
        )

    def _describe(self, job: Job, records: list[Record], look: Look) -> Observation:
        asked = self.followed(job.ref) or records[0].id
        deadline = job.watching.pending_deadline
        reading = whole([(record, read(record, look.now, self._settings, deadline)) for record in records])
        nodes = tuple(dict.fromkeys(node for record in records for node in record.nodes))
        bad = {node.name for node in look.bad_nodes}
        return Observation(
            job=job.ref,
            at=time.time(),
            source=records[0].source,
            liveness=reading.liveness,
            native=reading.native,
            reason=reading.reason,
            incarnation=incarnation(job.ref, asked, records),
            exit_code=reading.exit_code if reading.liveness.terminal else None,
            exit_signal=reading.exit_signal if reading.liveness.terminal else None,
            oom_killed=reading.oom_killed,
            ended_at=records[0].end if reading.liveness.terminal else None,
            memory_limit=None if records[0].memory is None else records[0].memory * 2**20,
            time_limit=None if records[0].time_limit is None else records[0].time_limit * 60.0,
            nodes=nodes,
            bad_nodes=tuple(node for node in nodes if node in bad),
            restart_underway=reading.restart_underway,
            stuck=reading.stuck,
            warning=reading.warning,
        )


def _over(record: Record) -> bool:
    return STATES.get(record.state, Liveness.UNKNOWN) not in _LIVE


def _reused(old: Record | None, new: Record) -> bool:
    """Ids wrap around: a later submission without a further restart is somebody else's job."""
    return (
        old is not None
        and old.source == new.source
        and old.state != "COMPLETING"
        and new.submit > old.submit > 0
        and (new.restarts or 0) <= (old.restarts or 0)
    )


def _anothers(known: Mapping[JobId, Record], told: Record) -> bool:
    """Whether accounting tells of another job than the one that the controller showed under this id before:
    of an older one, while the newest is not stored yet, or of a later one of another user."""
    old = known.get(told.id)
    if old is None or told.submit == 0:
        return False
    return told.submit < old.submit or bool(old.user and told.user and old.user != told.user)


def _same_incarnation(old: Record | None, new: Record) -> Record:
    """While a running job is killed to be requeued, the next restart is counted already, but the submit time
    is still the old one: it is still the old incarnation that ends."""
    if old is None or new.state != "COMPLETING" or old.submit != new.submit:
        return new
    if (new.restarts or 0) <= (old.restarts or 0) and not old.requeueing:
        return new
    return replace(new, restarts=old.restarts, requeueing=True)


def _half_way(record: Record) -> Record:
    """Whoever takes an action up that stopped half-way must find current what it is meant for."""
    found = marks(record.comment)
    waits = found and STATES.get(record.state) is Liveness.PENDING
    return as_before(record, found[-1].token) if waits else record


def _same(told: Sequence[Record], memory: _Memory) -> bool:
    return {record.submit for record in told} <= {record.submit for record in memory.records.values()}


def _successors(comments: Sequence[tuple[JobId, str]], wanted: set[str]) -> dict[str, JobId]:
    best: dict[str, tuple[int, JobId]] = {}
    for name, comment in comments:
        for mark in marks(comment):
            born = mark.base != name.base
            if mark.job in wanted and born and mark.attempt >= best.get(mark.job, (0, name))[0]:
                best[mark.job] = (mark.attempt, name)
    return {job: name for job, (_, name) in best.items()}


def _unknown(job: Job, reason: str) -> Observation:
    return Observation(
        job=job.ref, at=time.time(), source="adapter", liveness=Liveness.UNKNOWN, reason=reason
    )
