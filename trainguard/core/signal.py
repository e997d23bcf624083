"""What a series of observations means."""

from __future__ import annotations

from enum import StrEnum

from trainguard.core.fact import Fact
from trainguard.core.job import Incarnation


class SignalKind(StrEnum):
    """Kinds of signals. Stable contract: stored in ledgers, do not rename."""

    CRASH = "crash"
    STALL = "stall"
    DEGRADED = "degraded"
    THROUGHPUT_COLLAPSE = "throughput_collapse"
    NUMERICAL = "numerical"
    LOW_UTILISATION = "low_utilisation"
    STUCK = "stuck"
    """The scheduler will not move the job by itself (held, unschedulable, never satisfied)."""
    EARLY_STOP = "early_stop"
    """A clean exit below the owner's floor of steps: a question, not a crash."""
    BLIND = "blind"
    """No source can be read: nothing is known, nothing may be done."""
    WARNING = "warning"

    @property
    def opens_incident(self) -> bool:
        """Whether it starts a diagnosis. The others are told and watched."""
        return self in {SignalKind.CRASH, SignalKind.STALL, SignalKind.NUMERICAL, SignalKind.STUCK}


class Signal(Fact):
    """One sign of trouble, and which independent sources show it."""

    kind: SignalKind
    at: float
    detail: str
    sources: tuple[str, ...]
    """Independent sources: `scheduler`, `heartbeat`, `log`, `gpu`, `process`. Two allow destruction."""
    incarnation: Incarnation | None = None

    def concerns(self, incarnation: Incarnation | None) -> bool:
        """Whether it may be about this incarnation: what names none is about any."""
        if self.incarnation is None or incarnation is None:
            return True
        return self.incarnation.token == incarnation.token
