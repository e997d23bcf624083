"""What a series of observations means: the signals of one job.

`assess` folds one look into `Health` and gives the signals that began with it, each once an episode.
Unknown is neither healthy nor failed: while nothing can be seen, no clock of silence runs.
"""

from __future__ import annotations

from trainguard.core.fact import Fact
from trainguard.core.job import Watching
from trainguard.core.observation import Observation
from trainguard.core.progress import Reading
from trainguard.core.signal import Signal, SignalKind


class Health(Fact):
    """What was seen of one job so far. Start with `Health()`, keep what `assess` gives back."""

    open: tuple[SignalKind, ...] = ()
    """Signals whose episode goes on."""
    unknown_since: float | None = None
    """When sight was lost; None while the job can be seen."""

    @property
    def uncertain(self) -> bool:
        """Whether the next check should come soon (`cadence.next_check`)."""
        return bool(self.open) or self.unknown_since is not None

    @property
    def degraded(self) -> bool:
        """Whether the guard's status is `Degraded`."""
        return bool(set(self.open) - {SignalKind.WARNING})


def assess(
    health: Health, observation: Observation, reading: Reading, watching: Watching, now: float
) -> tuple[Health, tuple[Signal, ...]]:
    """Fold one look at `now` into `health`; give it back with the signals that began now."""
    raise NotImplementedError


def stall_threshold(health: Health, reading: Reading, watching: Watching) -> float:
    """Seconds of silence after which a running job counts as stale."""
    raise NotImplementedError
