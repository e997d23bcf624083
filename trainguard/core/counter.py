"""One counter of a log over time: from printed values to global steps.

A counter may start again with every epoch, go back after a restart, be printed by many ranks at once, or be
forged. A jump, forward or back, is believed once the next value continues it.
"""

from __future__ import annotations

from trainguard.core.fact import Fact
from trainguard.core.log_formats import MAX_STEP, Count, Rank

_NEAR = 1_000
"""How far the second value of a counter may lie from the first."""
_RUN = 4
"""After how many values the usual stride of a counter is known."""
_STRIDES = 20
"""How many usual strides a step may go forward at once and be believed."""


class EpochMark(Fact):
    """The epoch the log is in, as last printed."""

    index: int = 0
    """From 0."""
    total: int | None = None
    from_zero: bool = False
    """The log counts epochs from 0."""


class Counter(Fact):
    """What is known of one counter."""

    name: str
    rank: int
    order: int
    """Which counter of the log it is, by first appearance."""
    value: int | None = None
    """As printed last; None before the first value of an attempt."""
    step: int | None = None
    total: int | None = None
    best: int | None = None
    """The furthest step that a later value confirmed."""
    samples: int = 0
    """Values that went forward, in all."""
    run: int = 0
    """Values that went forward since the last jump."""
    seen: int = 0
    """When it was last seen, in values of all counters."""
    losses: int = 0
    """Losses that were printed with it."""
    offset: int = 0
    """Steps of the epochs before this one."""
    lap: int | None = None
    """Steps of an epoch."""
    relative: bool | None = None
    """Whether it starts again with every epoch; None while that can't be told."""
    epoch: int = -1
    stride: int = 0
    doubt: int | None = None
    """A step that would be a jump, and waits for the next value."""
    rewinds: int = 0
    first_at: float | None = None
    grew_at: float | None = None
    mark_step: int | None = None
    mark_at: float | None = None
    seconds: float | None = None
    """Time of a step as the log says it."""

    @property
    def unfinished(self) -> bool:
        """Whether it has not reached its total."""
        return self.total is None or self.step is None or self.step < self.total

    @property
    def furthest(self) -> int | None:
        """The best step known: confirmed, or the last one."""
        known = [step for step in (self.best, self.step) if step is not None]
        return max(known, default=None)

    @property
    def step_seconds(self) -> float | None:
        """Time of a step: what the log says, else measured between two readings."""
        if self.seconds is not None:
            return self.seconds
        marks = (self.mark_at, self.mark_step, self.grew_at, self.step)
        if None in marks or self.grew_at <= self.mark_at or self.step <= self.mark_step:  # type: ignore[operator]
            return None
        return (self.grew_at - self.mark_at) / (self.step - self.mark_step)  # type: ignore[operator]


def advance(counter: Counter, count: Count, epoch: EpochMark | None, at: float, **also: object) -> Counter:
    """Fold one printed value, read at `at`, into its counter; `also` are further fields to set."""
    # One copy for all changes: a log may hold thousands of values.
    return counter.model_copy(update={**_changes(counter, count, epoch, at), **also})


def _changes(counter: Counter, count: Count, epoch: EpochMark | None, at: float) -> dict[str, object]:
    if count.per_epoch and _is_other_lap(counter, count, epoch):
        return {}
    offset, relative = _offset(counter, count, epoch)
    step = offset + count.value
    if step > MAX_STEP:
        return {}
    placed = {
        "offset": offset,
        "relative": relative,
        "lap": count.total,
        "total": _total(count.total, relative, epoch),
        "epoch": -1 if epoch is None else epoch.index,
        "value": count.value,
    }
    if counter.step is None:
        # A bar shows where it begins before a step is done; a stated step is done.
        first_at = at if count.rank > Rank.LABELLED else None
        samples = counter.samples + 1
        return {**placed, "step": step, "run": 1, "samples": samples, "first_at": first_at, "grew_at": at}
    moved = _moved(counter, step, at, lap=(count.total or 0) if relative else 0)
    return moved if moved["doubt"] is not None else {**placed, **moved}


def _moved(before: Counter, step: int, at: float, lap: int) -> dict[str, object]:
    """Decide whether `step` continues the counter, begins a new run of it, or must wait in doubt."""
    assert before.step is not None
    delta = step - before.step
    if delta == 0:
        return {"doubt": None}
    near = max(_STRIDES * before.stride + 10, _NEAR if before.run < _RUN else 0, lap)
    if 0 < delta <= near:
        return _grown(before, step, at)
    if before.doubt is None or not 0 < step - before.doubt <= max(near, _NEAR):
        return {"doubt": step}
    jump: dict[str, object] = {"step": before.doubt, "run": 1, "stride": 0}
    if delta < 0:
        jump |= {"rewinds": before.rewinds + 1, "first_at": at, "grew_at": at, "mark_at": None}
    return {**jump, **_grown(before.model_copy(update=jump), step, at)}


def _grown(before: Counter, step: int, at: float) -> dict[str, object]:
    assert before.step is not None
    delta = step - before.step
    changes: dict[str, object] = {
        "step": step,
        "doubt": None,
        "run": before.run + 1,
        "first_at": at if before.first_at is None else before.first_at,
        "samples": before.samples + 1,
        "best": max(step, before.best or 0),
        "stride": delta if before.stride == 0 else max(1, (3 * before.stride + delta) // 4),
    }
    if before.grew_at is None or at > before.grew_at:
        changes |= {"mark_step": before.step, "mark_at": before.grew_at, "grew_at": at}
    elif at < before.grew_at:
        # The clock went back: measure anew.
        changes |= {"mark_step": None, "mark_at": None, "grew_at": at}
    return changes


def _is_other_lap(counter: Counter, count: Count, epoch: EpochMark | None) -> bool:
    """Whether a per-epoch counter is that of something else (an evaluation) within the same epoch."""
    index = -1 if epoch is None else epoch.index
    return counter.lap is not None and count.total != counter.lap and index == counter.epoch


def _offset(counter: Counter, count: Count, epoch: EpochMark | None) -> tuple[int, bool | None]:
    """Give the steps of the epochs before, and whether the counter starts again with every epoch."""
    lap = count.total or counter.lap
    index = 0 if epoch is None else epoch.index
    if count.per_epoch and lap:
        return index * lap, True
    if counter.value is None:
        return _first_offset(counter, count, epoch)
    if epoch is not None and index > counter.epoch >= 0:
        if count.value < counter.value:
            return (index * lap if lap else counter.offset + counter.value), True
        return counter.offset, counter.relative or False
    if epoch is not None and index < counter.epoch and counter.relative and lap:
        return index * lap, True
    finished = lap is not None and counter.value <= lap < counter.value + max(counter.stride, 1)
    if finished and count.value <= 2 * max(counter.stride, 1) and count.value < counter.value:
        return counter.offset + (lap or 0), True
    return counter.offset, counter.relative


def _first_offset(counter: Counter, count: Count, epoch: EpochMark | None) -> tuple[int, bool | None]:
    """Tell a global counter from one of an epoch when the log is first read in a later epoch."""
    if epoch is None or count.total is None or epoch.index <= 0:
        return 0, counter.relative
    if counter.relative:
        return epoch.index * count.total, True
    if epoch.total is not None and count.value < count.total * epoch.index // epoch.total:
        return epoch.index * count.total, True
    return 0, None


def _total(lap: int | None, relative: bool | None, epoch: EpochMark | None) -> int | None:
    """Give the exact number of steps, or None where it isn't told."""
    epochs = None if epoch is None else epoch.total
    if relative:
        return lap * epochs if lap and epochs else None
    ambiguous = relative is None and epochs is not None and epochs > 1
    return None if ambiguous else lap
