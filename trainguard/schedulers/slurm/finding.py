"""Whether a fence's action happened: by the mark in a comment, a node's reason, and the note in the journal."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from trainguard.core.action import ActionKind, Fence, Outcome, OutcomeStatus
from trainguard.core.errors import UnreachableError
from trainguard.core.job import Incarnation, Job
from trainguard.core.observation import Liveness, Observation
from trainguard.schedulers.slurm import parse
from trainguard.schedulers.slurm.client import SlurmClient, node_states
from trainguard.schedulers.slurm.ids import JobId
from trainguard.schedulers.slurm.jobs import belonging, half_way, incarnation, token
from trainguard.schedulers.slurm.journal import NONE, Journal, Note, note
from trainguard.schedulers.slurm.marks import FENCE, Mark, mark_of
from trainguard.schedulers.slurm.observing import Observer
from trainguard.schedulers.slurm.parse import Record
from trainguard.schedulers.slurm.states import STATES, held, requeued_and_held
from trainguard.transports.posix_shell import KILL_AFTER, new_mark

SETTLED = 20.0
"""Seconds for which the controller must have answered after the last moment of a request whose answer was
lost, before its absence means anything: an sbatch that printed `Socket timed out` has been seen to be
accepted later, and a controller that was silent has the request before it when it speaks again."""
_SKEW = 30.0
"""Seconds by which the login node's clock and the controller's may differ."""
_RUNS = {Liveness.RUNNING, Liveness.PENDING}


@dataclass(frozen=True)
class Begun:
    """An action that was begun and is to be taken up with the same fence."""

    mark: Mark
    born: JobId | None = None
    """The job that was submitted in place of the old one, which still lives."""


class Finder:
    """Looks for the traces of actions on one cluster."""

    def __init__(self, client: SlurmClient, observer: Observer, journal: Journal) -> None:
        self._client = client
        self._observer = observer
        self._journal = journal
        self._lost: dict[str, float] = {}
        """Until when each request whose answer did not come may still be at work."""
        self._calm: dict[str, float] = {}
        """When the controller was first seen to answer after that."""
        self.half_way: dict[str, Begun] = {}

    def lost(self, fence: str, within: float) -> None:
        """Remember that a request was sent whose answer did not come; it may take so many seconds."""
        self._lost[fence] = time.monotonic() + within + KILL_AFTER

    async def find(self, job: Job, fence: Fence) -> Outcome | None:
        """Say what became of a fence. None: it did not happen, or stopped half-way and can be taken up.

        Raises UnreachableError where that can't be told, or can't be told yet.
        """
        self.half_way.pop(fence.token, None)
        if FENCE.fullmatch(fence.token) is None:
            return None
        asked, records, seen = await self._observer.current(job)
        if seen.liveness is Liveness.UNKNOWN and not seen.restart_underway:
            raise UnreachableError(f"whether {fence.token} happened can't be told: {seen.reason}")
        mark = new_mark()
        noted, nodes = await self._client.run([self._journal.read(fence.token), node_states(mark)])
        if nodes.code != 0:
            raise UnreachableError(f"the Slurm controller does not answer: {nodes.problem}")
        if noted.code not in {0, NONE}:
            raise UnreachableError(f"whether {fence.token} was begun can't be read: {noted.problem}")
        drained = [n.name for n in parse.nodes(nodes.text, mark) if n.bad and fence.token in n.reason.split()]
        if drained:
            return _done(fence, f"drained: {', '.join(drained)}")
        written = note(noted, fence.token)
        marked = [(record, found) for record in records if (found := mark_of(record.comment, fence.token))]
        ending = any(requeued_and_held(record) and record.state == "COMPLETING" for record in records)
        if ending and (marked or written is not None) and not seen.stuck:
            raise UnreachableError(
                f"{fence.token}: {asked} is requeued, but its old processes still end", 10.0
            )
        if marked:
            return self._by_marks(job, fence, asked, records, marked, written)
        return await self._elsewhere(job, fence, asked, records, seen, written)

    def _by_marks(
        self,
        job: Job,
        fence: Fence,
        asked: JobId,
        records: Sequence[Record],
        marked: Sequence[tuple[Record, Mark]],
        written: Note | None,
    ) -> Outcome | None:
        mark = marked[0][1]
        if mark.kind in {ActionKind.HOLD, ActionKind.RELEASE}:
            return _done(fence, f"{mark.kind} of {asked}")
        if mark.kind == ActionKind.CANCEL:
            if all(
                STATES.get(record.state) not in _RUNS or record.state == "COMPLETING" for record, _ in marked
            ):
                return _done(fence, f"cancelled {asked}")
            return self._take_up(fence, mark, written)
        if any(half_way(record, mark.token) for record, _ in marked):
            self.half_way[fence.token] = Begun(mark)
            return None
        moved = token(asked, records) != mark.token or any(record.requeueing for record in records)
        if not moved:
            if all(_let_go(record, written) for record, _ in marked):
                return _done(fence, f"{mark.kind}: {asked} was let go", incarnation(job.ref, asked, records))
            return self._take_up(fence, mark, written)
        return _done(fence, f"{mark.kind}: {asked} came of it", incarnation(job.ref, asked, records))

    async def _elsewhere(
        self,
        job: Job,
        fence: Fence,
        asked: JobId,
        records: Sequence[Record],
        seen: Observation,
        written: Note | None,
    ) -> Outcome | None:
        """Look at the login's other jobs, with the controller and with accounting, and at the journal."""
        since = min((record.submit for record in records), default=0) or time.time() - 30 * 86400
        others = await self._client.own()
        accounts = await self._client.own_accounts(since)
        born = next(
            (record for record in [*others, *accounts.records] if mark_of(record.comment, fence.token)), None
        )
        if born is not None:
            mark = mark_of(born.comment, fence.token)
            if (
                mark is not None
                and any(STATES.get(record.state) in _RUNS for record in records)
                and asked != born.id
            ):
                if STATES.get(born.state) not in _RUNS:
                    return _refused(
                        fence, f"{born.id}, submitted to follow {asked}, has ended: {asked} goes on"
                    )
                self.half_way[fence.token] = Begun(mark, born.id)
                return None
            return self._born(job, fence, born, [*others, *accounts.records])
        if accounts.problem:
            raise UnreachableError(f"whether {fence.token} happened can't be told: {accounts.problem}")
        if written is None:
            self._wait_for_late(fence, None)
            return None
        return self._by_note(job, fence, asked, records, seen, written)

    def _born(self, job: Job, fence: Fence, born: Record, records: Sequence[Record]) -> Outcome:
        self._observer.follow(job.ref, born.id)
        return _done(
            fence, f"submitted again as {born.id}", incarnation(job.ref, born.id, belonging(born.id, records))
        )

    def _by_note(
        self,
        job: Job,
        fence: Fence,
        asked: JobId,
        records: Sequence[Record],
        seen: Observation,
        written: Note,
    ) -> Outcome | None:
        mark = written.mark
        if mark.kind == ActionKind.CANCEL and seen.liveness.terminal:
            return _done(fence, f"cancelled {asked}")
        same_id = asked.base == mark.base and bool(records)
        again = token(asked, records) != mark.token if same_id else False
        moved = again or any(record.requeueing for record in records)
        if moved and ActionKind(mark.kind).restarts:
            if any(half_way(record, mark.token) for record in records):
                self.half_way[fence.token] = Begun(mark)
                return None
            return _done(fence, f"{mark.kind}: {asked} was requeued", incarnation(job.ref, asked, records))
        return self._take_up(fence, mark, written)

    def _take_up(self, fence: Fence, mark: Mark, written: Note | None) -> Outcome | None:
        self._wait_for_late(fence, written)
        self.half_way[fence.token] = Begun(mark)
        return None

    def _wait_for_late(self, fence: Fence, written: Note | None) -> None:
        """Before acting again: give a request that may still be under way the time to show."""
        now = time.monotonic()
        waits = [] if written is None else [written.within + KILL_AFTER - written.age]
        if fence.token in self._lost:
            waits.append(self._lost[fence.token] - now)
        if not waits:
            return
        if (wait := max(waits)) > 0:
            self._calm.pop(fence.token, None)
            wait += SETTLED
        else:
            wait = self._calm.setdefault(fence.token, now) + SETTLED - now
        if wait > 0:
            raise UnreachableError(
                f"{fence.token} was begun and may still be carried out; to be told in {wait:.0f} s", wait
            )


def _let_go(record: Record, written: Note | None) -> bool:
    """Whether a marked job whose identity is still the old one was held after a failed launch, and let go.

    Letting go changes no identity. Such a job waits or has started since; a hung one that was to be killed
    has run from before the note. Where no note tells that, what runs is left alone.
    """
    if record.state == "COMPLETING" or held(record):
        return False
    if STATES.get(record.state) is Liveness.PENDING:
        return True
    started = record.start or 0
    return STATES.get(record.state) is Liveness.RUNNING and (written is None or started >= written.at - _SKEW)


def _refused(fence: Fence, detail: str) -> Outcome:
    return Outcome(fence=fence.token, status=OutcomeStatus.REFUSED, at=time.time(), detail=detail)


def _done(fence: Fence, detail: str, made: Incarnation | None = None) -> Outcome:
    return Outcome(
        fence=fence.token, status=OutcomeStatus.DONE, at=time.time(), detail=detail, incarnation=made
    )
