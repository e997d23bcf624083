"""When to look again."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from trainguard.core.fact import Fact


class Cadence(Fact):
    """How often a job is checked. Seconds."""

    settle: float = Field(default=120.0, gt=0)
    """The first check after a start or restart."""
    young: tuple[Annotated[float, Field(gt=0)], ...] = (60.0, 120.0, 240.0, 480.0)
    """The waits that follow it."""
    steady: float = Field(default=570.0, gt=0)
    """Every further wait."""
    uncertain: float = Field(default=180.0, gt=0)
    """The longest wait while something is wrong or can't be seen."""
    least: float = Field(default=1.0, gt=0)
    """The shortest wait: a check that comes a moment early does not cause another at once."""


def next_check(cadence: Cadence, *, since_start: float, uncertain: bool) -> float:
    """Give the seconds to wait until the next check, `since_start` seconds after the (re)start.

    It depends on the time alone, so a guard that comes back keeps the rhythm without remembering it.
    """
    wait = cadence.steady
    due = cadence.settle
    for pause in (*cadence.young, 0.0):
        if since_start + cadence.least <= due:
            wait = due - max(since_start, 0.0)
            break
        due += pause
    return min(wait, cadence.uncertain) if uncertain else wait
