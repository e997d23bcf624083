"""The job's own throughput, and when it collapses."""

from __future__ import annotations

from statistics import median

from trainguard.core.fact import Fact
from trainguard.core.job import Watching
from trainguard.core.progress import Reading

_BASELINE = 200
_ENOUGH = 20
"""Samples before a baseline is believed."""
_RECENT = 5


class Pace(Fact):
    """Step times of one job over all its incarnations, in seconds."""

    baseline: tuple[float, ...] = ()
    recent: tuple[float, ...] = ()
    """Of this incarnation, the last five; they join the baseline when newer ones push them out."""

    def restarted(self) -> Pace:
        """Begin with a new incarnation; the baseline stays."""
        return Pace(baseline=self.baseline)

    @property
    def slowdown(self) -> float | None:
        """How many times slower than its baseline the job is; None while that can't be told."""
        if len(self.baseline) < _ENOUGH or len(self.recent) < _RECENT:
            return None
        usual = median(self.baseline)
        return median(self.recent) / usual if usual > 0 else None

    def collapsed(self, watching: Watching) -> bool:
        """Whether throughput is under `collapse_ratio` of the baseline."""
        return self.slowdown is not None and self.slowdown * watching.collapse_ratio > 1

    def looked(self, reading: Reading, watching: Watching) -> Pace:
        """Take in the step time of a look that saw progress."""
        seconds = reading.progress.step_seconds if reading.progress else None
        if seconds is None or seconds <= 0:
            return self
        recent = (*self.recent, seconds)
        if len(recent) <= _RECENT:
            return self.model_copy(update={"recent": recent})
        # What is slow during a collapse must not become the new normal.
        baseline = self.baseline if self.collapsed(watching) else (*self.baseline, recent[0])[-_BASELINE:]
        return Pace(baseline=baseline, recent=recent[1:])
