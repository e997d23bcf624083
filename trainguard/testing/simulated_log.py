"""A simulated job's log: for each incarnation its steps, computed, and then what else it wrote."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from trainguard.testing.simulated_cluster import FaultKind, Run, SimulatedCluster, SimulatedJob

LINE_BYTES = 60
"""No line of a step is longer."""
_CURSOR = re.compile(r"(\d{1,9})\.(-?\d{1,18})\.(\d{1,18})")
_NOTHING_READ = -1


@dataclass(frozen=True)
class Place:
    """How far a log was read: in which incarnation, to which step, to which byte of what it wrote."""

    run: int
    step: int = _NOTHING_READ
    byte: int = 0

    def __str__(self) -> str:
        return f"{self.run}.{self.step}.{self.byte}"


def read(cluster: SimulatedCluster, job: SimulatedJob, cursor: str, limit: int) -> tuple[str, str, bool]:
    """Give whole lines since the cursor, at most `limit` bytes, the next cursor, and whether there is more."""
    place = _place(cursor, job) or _near_the_end(cluster, job, limit)
    data, more = bytearray(), False
    for run in job.runs[place.run - 1 :]:
        if run.number != place.run:
            place = Place(run.number)
        more = True
        if len(data) + LINE_BYTES > limit:
            break
        piece, place, more = _steps(cluster, job, run, place, limit - len(data))
        data += piece
        if more:
            break
        piece, place, more = _written(run, place, limit - len(data), alone=not data)
        data += piece
        if more:
            break
    return data.decode("utf-8", "replace"), str(place), more


def tail(cluster: SimulatedCluster, job: SimulatedJob, steps: int, limit: int) -> str:
    """Give the last steps of the newest incarnation and what else it wrote."""
    run = job.run
    reached = cluster.step(job, run)
    lines = [step_line(job, run, at) for at in range(max(run.from_step, reached - steps), reached + 1)]
    shown = "".join(f"{line}\n" for line in lines) if job.print_steps else ""
    return shown + run.written[-limit:].decode("utf-8", "replace")


def step_line(job: SimulatedJob, run: Run, step: int) -> str:
    """What the trainer prints at a step."""
    bad = run.fault is not None and run.fault.kind is FaultKind.NAN and step >= run.fault.at_step
    loss = float("nan") if bad else 2.0 + 8.0 / (1 + step / 500)
    return f"step {step}/{job.total} loss {loss:.4f}"


def _place(cursor: str, job: SimulatedJob) -> Place | None:
    found = _CURSOR.fullmatch(cursor)
    if found is None or not 1 <= int(found[1]) <= len(job.runs):
        return None
    return Place(int(found[1]), int(found[2]), int(found[3]))


def _near_the_end(cluster: SimulatedCluster, job: SimulatedJob, limit: int) -> Place:
    run = job.run
    half = limit // 2
    step = max(run.from_step, cluster.step(job, run) - half // LINE_BYTES) - 1
    begin = max(0, len(run.written) - half)
    if begin:
        begin = run.written.find(b"\n", begin) + 1 or begin
    return Place(run.number, step, run.dropped + begin)


def _steps(
    cluster: SimulatedCluster, job: SimulatedJob, run: Run, place: Place, limit: int
) -> tuple[bytes, Place, bool]:
    reached = cluster.step(job, run) if job.print_steps and cluster.clock() >= run.began else _NOTHING_READ
    first = max(place.step + 1, run.from_step)
    last = min(reached, first + limit // LINE_BYTES - 1)
    lines = "".join(f"{step_line(job, run, at)}\n" for at in range(first, last + 1))
    return lines.encode(), replace(place, step=max(place.step, last)), last < reached


def _written(run: Run, place: Place, limit: int, *, alone: bool) -> tuple[bytes, Place, bool]:
    """A line longer than the limit is cut only where it is `alone` in its batch."""
    begin = max(place.byte, run.dropped)
    data = bytes(run.written[begin - run.dropped :][:limit])
    more = begin - run.dropped + len(data) < len(run.written)
    if run.ended is None or more:
        data = data[: _whole(data, full=more and alone)]
    return data, replace(place, byte=begin + len(data)), more


def _whole(data: bytes, *, full: bool) -> int:
    """Where the last whole line ends; a line longer than the limit comes in pieces, no character torn."""
    end = max(data.rfind(b"\n"), data.rfind(b"\r")) + 1
    if end or not full:
        return end
    torn = len(data) - len(data.decode("utf-8", "ignore").encode())
    return len(data) - (torn if torn < 4 else 0)
