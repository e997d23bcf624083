"""One failure of one incarnation, from first signal to verified end."""

from __future__ import annotations

from enum import StrEnum

from trainguard.core.errors import TrainguardError
from trainguard.core.fact import Fact
from trainguard.core.job import Incarnation
from trainguard.core.signal import Signal


class IncidentState(StrEnum):
    """Where an incident stands. Stable contract: stored in ledgers, do not rename."""

    OPEN = "open"
    DIAGNOSED = "diagnosed"
    AWAITING_APPROVAL = "awaiting_approval"
    ACTING = "acting"
    VERIFYING = "verifying"
    RECOVERED = "recovered"
    """Progress beyond the failure was seen."""
    UNRECOVERABLE = "unrecoverable"
    """Reported with its cause and with what would have been done."""
    DISMISSED = "dismissed"
    """It passed by itself, the owner took over, or the job was stopped."""

    @property
    def closed(self) -> bool:
        """Whether nothing more happens to it."""
        return self in {IncidentState.RECOVERED, IncidentState.UNRECOVERABLE, IncidentState.DISMISSED}


_CLOSED = {IncidentState.UNRECOVERABLE, IncidentState.DISMISSED}
ALLOWED: dict[IncidentState, frozenset[IncidentState]] = {
    IncidentState.OPEN: frozenset({IncidentState.DIAGNOSED} | _CLOSED),
    IncidentState.DIAGNOSED: frozenset(
        {IncidentState.AWAITING_APPROVAL, IncidentState.ACTING, IncidentState.DIAGNOSED} | _CLOSED
    ),
    IncidentState.AWAITING_APPROVAL: frozenset({IncidentState.ACTING, IncidentState.DIAGNOSED} | _CLOSED),
    IncidentState.ACTING: frozenset({IncidentState.VERIFYING, IncidentState.DIAGNOSED} | _CLOSED),
    IncidentState.VERIFYING: frozenset({IncidentState.RECOVERED, IncidentState.DIAGNOSED} | _CLOSED),
    IncidentState.RECOVERED: frozenset(),
    IncidentState.UNRECOVERABLE: frozenset(),
    IncidentState.DISMISSED: frozenset(),
}


class IncidentStateError(TrainguardError):
    """A step that an incident can't take from where it stands."""


class Incident(Fact):
    """What is known of one failure. Times are seconds since the epoch."""

    id: str
    """Eight characters [a-z0-9], unique in a ledger."""
    job_key: str
    incarnation: Incarnation | None
    """The one that failed; None where the scheduler never named one."""
    signals: tuple[Signal, ...]
    state: IncidentState = IncidentState.OPEN
    failed_at: float | None = None
    """When the scheduler or the log says it failed."""
    detected_at: float
    step: int | None = None
    """The furthest step known before the failure: recovery must pass it."""
    checkpoint_step: int | None = None
    """The step of the checkpoint that the recovery resumed from."""
    fingerprint: str = ""
    attempt: int = 0
    """Fixes tried in this incident."""
    acted_at: float | None = None
    recovered_at: float | None = None
    closed_at: float | None = None
    outcome: str = ""
    """One sentence for people, once closed."""

    @property
    def question(self) -> str:
        """The id of the question that this attempt may ask."""
        return f"{self.id}-{self.attempt}"

    def advanced(self, state: IncidentState, **changes: object) -> Incident:
        """Give the incident one step further. Raises IncidentStateError for a step that can't be."""
        if state is not self.state and state not in ALLOWED[self.state]:
            raise IncidentStateError(f"incident {self.id} can't go from {self.state} to {state}")
        return self.model_copy(update={"state": state, **changes})
