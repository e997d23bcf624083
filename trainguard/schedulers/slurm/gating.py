"""What of a Slurm job may be acted on, by how it stands right now."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from trainguard.core.action import Action, ActionKind
from trainguard.core.errors import NotFoundError, RefusedError, UnreachableError
from trainguard.core.job import Job
from trainguard.core.observation import Liveness, Observation
from trainguard.schedulers.slurm.finding import Begun
from trainguard.schedulers.slurm.ids import JobId
from trainguard.schedulers.slurm.jobs import half_way
from trainguard.schedulers.slurm.marks import Mark
from trainguard.schedulers.slurm.parse import Record
from trainguard.schedulers.slurm.states import STATES, held, plain


@dataclass(frozen=True)
class Target:
    """What is acted on: the job as its guard knows it, and as Slurm shows it now."""

    job: Job
    asked: JobId
    records: tuple[Record, ...]
    seen: Observation
    mark: Mark
    begun: Begun | None
    """The same fence was begun before and stopped half-way."""

    @property
    def failed(self) -> tuple[Record, ...]:
        """The parts that a restart brings back: of an array the failed elements, where none failed those that run."""
        if len(self.records) == 1 or self.records[0].id.offset is not None:
            return self.records[:1]
        for liveness in (Liveness.FAILED, Liveness.RUNNING):
            parts = [r for r in self.records if STATES.get(r.state) is liveness or self.held_up(r)]
            if parts:
                return tuple(parts)
        return self.records

    def held_up(self, record: Record) -> bool:
        """Whether it only waits to be let go: after a failed launch, or in the middle of this very action."""
        return launch_failed(record) or (self.begun is not None and half_way(record, self.mark.token))


def gate(action: Action, seen: Observation, records: Sequence[Record], begun: Begun | None) -> None:
    """Refuse what must not be done to the job as it is now. Raises NotFoundError, RefusedError, UnreachableError."""
    _gate_sight(seen)
    if not _is_meant(action, seen, records, begun):
        raise RefusedError("another incarnation is current than the one this action is meant for")
    if action.kind is ActionKind.DRAIN_NODE:
        return
    if seen.liveness in {Liveness.STOPPED, Liveness.SUCCEEDED}:
        raise RefusedError(f"the job has ended ({seen.native}): it is left as it is")
    if begun is not None:
        return
    if action.kind is ActionKind.CANCEL and seen.liveness is Liveness.FAILED:
        raise RefusedError(f"the job has ended already ({seen.native})")
    if action.kind.restarts:
        _gate_restart(seen, records)


def _gate_sight(seen: Observation) -> None:
    if seen.liveness is Liveness.GONE:
        raise NotFoundError(f"{seen.job.id}: {seen.reason}")
    if seen.liveness is Liveness.UNKNOWN and not seen.restart_underway:
        raise UnreachableError(f"nothing is done to a job that can't be seen: {seen.reason}")


def _is_meant(action: Action, seen: Observation, records: Sequence[Record], begun: Begun | None) -> bool:
    """Whether the action is for what is there: its incarnation, or what it has itself made of that."""
    meant = action.incarnation.token
    if seen.incarnation is not None and seen.incarnation.token == meant:
        return begun is None or begun.mark.token == meant
    if begun is None or begun.mark.token != meant:
        return False
    return begun.born is not None or any(half_way(record, meant) for record in records)


def _gate_restart(seen: Observation, records: Sequence[Record]) -> None:
    if seen.restart_underway:
        raise RefusedError("Slurm is bringing it back by itself")
    if any(held(record) and not launch_failed(record) for record in records):
        raise RefusedError(f"it is held ({seen.reason or seen.native}): whoever holds it decides")
    if seen.liveness is Liveness.PENDING and not all(launch_failed(record) for record in records):
        raise RefusedError(f"it has not run yet ({seen.reason or seen.native}): there is nothing to restart")


def launch_failed(record: Record) -> bool:
    """Whether Slurm itself holds it because the launch failed on the node."""
    return plain(record.reason).startswith("launch failed requeued held")
