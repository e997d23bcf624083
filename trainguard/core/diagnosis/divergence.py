"""A loss that jumped and did not come back: no single line shows it, the series does."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import median

from trainguard.core.diagnosis.steps import Point

_JUMP = 1.5
"""Times the loss before; smaller jumps come back by themselves."""
_BACK = 1.05
"""Times the loss before, under which it has come back."""
_CALM = 8
"""Points before the jump from which on its noise can be judged."""
_NOISES = 10.0
"""Median deviations above the loss before."""
_WORSE_THAN_CHANCE = 10.0
"""Nats: a language model of 22,000 words and more that guesses blindly."""
_EARLY = 100
"""Steps in which a loss may do what it likes."""
_AFTER = 3
_BEFORE = 50


def diverged(points: Sequence[Point]) -> Point | None:
    """The point where the loss left its course for good; None where it never did, or came back."""
    series = [p for p in points if p.key == "step" and p.loss is not None and math.isfinite(p.loss)]
    ranks = {p.rank for p in series}
    for rank in sorted(ranks, key=lambda r: -1 if r is None else r):
        found = _jump([p for p in series if p.rank == rank])
        if found is not None:
            return found
    return None


def _jump(series: Sequence[Point]) -> Point | None:
    for index in range(1, len(series) - 1):
        before = [p.loss or 0.0 for p in series[max(0, index - _BEFORE) : index]]
        usual, point = median(before), series[index]
        if usual <= 0 or point.step < _EARLY or (point.loss or 0.0) < _JUMP * usual:
            continue
        end = median(p.loss or 0.0 for p in series[-min(_AFTER, len(series) - index - 1) :])
        return point if end > _BACK * usual and _beyond_noise(point.loss or 0.0, usual, before) else None
    return None


def _beyond_noise(loss: float, usual: float, before: Sequence[float]) -> bool:
    if len(before) < _CALM:
        return loss >= _WORSE_THAN_CHANCE
    noise = median(abs(value - usual) for value in before)
    return loss - usual > _NOISES * max(noise, 0.01 * usual)
