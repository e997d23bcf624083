"""What the checkpoint gate found."""

from __future__ import annotations

from trainguard.core.fact import Fact


class Checkpoint(Fact):
    """One checkpoint on the job's machine."""

    path: str
    step: int | None = None
    format: str = ""
    size: int = 0
    """Bytes, all files together."""
    at: float | None = None
    """Last modification."""
    good: bool | None = None
    """Complete and readable; None where it could not be read or is still being written."""
    problem: str = ""


def newest_good(checkpoints: tuple[Checkpoint, ...] | None) -> Checkpoint | None:
    """Give what a restart should resume from: the good one of the highest step, else the latest."""
    good = [checkpoint for checkpoint in checkpoints or () if checkpoint.good]
    return max(good, key=lambda c: (c.step is not None, c.step or 0, c.at or 0.0), default=None)


def bad_after(
    checkpoints: tuple[Checkpoint, ...] | None, chosen: Checkpoint | None
) -> tuple[Checkpoint, ...]:
    """Give the bad ones that a training which looks for its newest checkpoint would pick before `chosen`."""
    floor = -1 if chosen is None or chosen.step is None else chosen.step
    return tuple(
        checkpoint
        for checkpoint in checkpoints or ()
        if checkpoint.good is False and (checkpoint.step is None or checkpoint.step > floor)
    )
