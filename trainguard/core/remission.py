"""Trouble of a living job that ended by itself: then there is nothing left to bring back."""

from __future__ import annotations

from trainguard.core.health import Health
from trainguard.core.incident import Incident
from trainguard.core.observation import Liveness, Observation
from trainguard.core.signal import SignalKind

_HEALED_SECONDS = 120.0
"""What failed and runs again for so long has come back."""


def passed(incident: Incident, seen: Observation, health: Health, step: int | None) -> bool:
    """Whether the incident's trouble is over, though nothing was done. `health` and `step` are as of `seen`.

    What can't be seen has not passed.
    """
    kinds = {signal.kind for signal in incident.signals if signal.kind.opens_incident}
    if not kinds or not _same(incident, seen, health):
        return False
    alive = {Liveness.RUNNING, Liveness.PENDING} if kinds == {SignalKind.STUCK} else {Liveness.RUNNING}
    advanced = step is not None and (incident.step is None or step > incident.step)
    return seen.liveness in alive and all(_over(kind, health, advanced) for kind in kinds)


def _same(incident: Incident, seen: Observation, health: Health) -> bool:
    """Whether incident, look and health are about one incarnation."""
    if incident.incarnation is None or seen.incarnation is None:
        return False
    return incident.incarnation.token == seen.incarnation.token == health.token


def _over(kind: SignalKind, health: Health, advanced: bool) -> bool:
    if kind is SignalKind.CRASH:
        # Where pods restart inside one incarnation: one that crashes again and again runs for moments only.
        return advanced or health.running_for >= _HEALED_SECONDS
    if kind is SignalKind.NUMERICAL:
        return kind not in health.open  # a training goes on counting steps with a loss of NaN
    if kind is SignalKind.STALL and health.silence.unseen_looks > 0:
        return advanced  # still silent, and whether it is idle could not be read just now
    return advanced or kind not in health.open
