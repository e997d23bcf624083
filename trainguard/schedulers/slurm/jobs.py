"""A guarded job as one or several of Slurm's records: identity, and arrays and heterogeneous jobs as a whole. Pure."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import replace

from trainguard.core.job import Incarnation, JobRef
from trainguard.core.observation import Liveness
from trainguard.schedulers.slurm.ids import JobId
from trainguard.schedulers.slurm.marks import marks
from trainguard.schedulers.slurm.parse import Record
from trainguard.schedulers.slurm.states import Reading, requeued_and_held

_TOKEN = re.compile(r"(?P<id>\d+(?:_\d+)?)\+(?P<submit>\d+)\+(?P<restarts>\d+)")
_ORDER = (Liveness.UNKNOWN, Liveness.RUNNING, Liveness.PENDING, Liveness.STOPPED, Liveness.SUCCEEDED)


def belonging(asked: JobId, records: Sequence[Record]) -> list[Record]:
    """Pick the records of one id: itself, an array's elements, a heterogeneous job's components."""
    if asked.task is not None or asked.offset is not None:
        return [record for record in records if record.id == asked]
    return [record for record in records if record.id.base == asked.base]


def token(asked: JobId, records: Sequence[Record]) -> str:
    """Name the incarnation: id, submit time (a requeue rewrites it), restarts; never twice the same.

    For a whole array it also depends on which elements were restarted how often.
    """
    first = min(record.submit for record in records)
    restarts = sum(record.restarts or 0 for record in records)
    if asked.task is None and any(record.id.task is not None for record in records):
        # Elements share the array's submit time until they are requeued.
        again = sorted((r.id.task or 0, r.submit, r.restarts or 0) for r in records if r.restarts)
        kind = hashlib.sha256(repr(again).encode()).hexdigest()[:12] if again else "0"
        return f"{asked.base}+{first}+{kind}"
    return f"{asked}+{first}+{restarts}"


def half_way(record: Record, token: str) -> bool:
    """Whether it is requeued and held in the middle of an action that was meant for an incarnation.

    Exactly one requeue lies between: after more it is somebody else who holds it.
    """
    match = _TOKEN.fullmatch(token)
    if not requeued_and_held(record):
        return False
    if match is None or match["id"] != str(
        record.id
    ):  # part of an array, whose token names no part's restarts
        return True
    before = int(match["restarts"])
    return record.restarts == before + 1 or (record.restarts, record.submit) == (before, int(match["submit"]))


def as_before(record: Record, token: str) -> Record:
    """Show a job that stands half-way as the incarnation that the action is meant for: it is not the next one yet."""
    match = _TOKEN.fullmatch(token)
    if match is None or match["id"] != str(record.id) or not half_way(record, token):
        return record
    return replace(record, submit=int(match["submit"]), restarts=int(match["restarts"]))


def incarnation(ref: JobRef, asked: JobId, records: Sequence[Record]) -> Incarnation | None:
    """Name the incarnation for the guard; None where Slurm told no submit time."""
    if not records or any(record.submit == 0 for record in records):
        return None
    starts = [record.start for record in records if record.start]
    return Incarnation(
        job=ref,
        token=token(asked, records),
        attempt=attempt(ref, records),
        native_id=str(asked),
        started_at=min(starts) if starts else None,
    )


def attempt(ref: JobRef, records: Sequence[Record]) -> int:
    """Count incarnations from 1; a job that was submitted again goes on counting from its mark."""
    own = [mark for record in records for mark in marks(record.comment) if mark.job == ref.id]
    restarts = max((record.restarts or 0) for record in records)
    born = [mark.attempt for mark in own if mark.base != records[0].id.base]
    return restarts + max(born, default=1)


def whole(readings: Sequence[tuple[Record, Reading]]) -> Reading:
    """Join the readings of an array's elements or a het job's components.

    Any failure is the whole's failure, though others may still run: a restart then brings back the failed
    elements alone. Otherwise it lives as long as any part does.
    """
    if len(readings) == 1:
        return readings[0][1]
    failed = [(record, one) for record, one in readings if one.liveness is Liveness.FAILED]
    stuck = next((f"{record.id}: {one.stuck}" for record, one in readings if one.stuck), "")
    warning = next((f"{record.id}: {one.warning}" for record, one in readings if one.warning), "")
    if failed:
        record, reading = failed[0]
        names = ", ".join(str(one.id) for one, _ in failed[:10])
        return replace(
            reading,
            reason=f"{len(failed)} of {len(readings)} failed ({names}): {reading.reason or record.state}",
            oom_killed=True if any(one.oom_killed for _, one in failed) else None,
            stuck=stuck,
            warning=warning,
        )
    for liveness in _ORDER:
        parts = [(record, one) for record, one in readings if one.liveness is liveness]
        if parts:
            return replace(
                parts[0][1],
                restart_underway=any(one.restart_underway for _, one in readings),
                stuck=stuck,
                warning=warning,
            )
    return readings[0][1]
