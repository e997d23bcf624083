"""What was tried before, as budgets count it."""

from __future__ import annotations

from trainguard.core.action import ActionKind
from trainguard.core.fact import Fact
from trainguard.core.incident import IncidentState
from trainguard.core.verdict import FaultClass


class RecoveryRecord(Fact):
    """One earlier incident of the same job."""

    incident: str
    fingerprint: str
    fault: FaultClass
    actions: tuple[ActionKind, ...]
    """Those that were performed."""
    acted_at: float | None
    step_before: int | None
    step_reached: int | None
    """The furthest step seen after it."""
    state: IncidentState

    @property
    def progressed(self) -> bool:
        """Whether the job got further than before the failure. Unknown progress never counts."""
        if self.step_reached is None:
            return False
        return self.step_before is None or self.step_reached > self.step_before
