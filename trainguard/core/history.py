"""What the ledger tells about the past: rows that policy, reports and the command line read."""

from __future__ import annotations

from trainguard.core.action import ActionKind, Outcome
from trainguard.core.decision import ApprovalAnswer, Intent
from trainguard.core.fact import Fact
from trainguard.core.incident import IncidentState
from trainguard.core.verdict import FaultClass


class JobStatus(Fact):
    """Where the guard of a job stands, in the words of its Prefect state."""

    status: str
    outcome: str
    at: float


class IntentRecord(Fact):
    """An intended action and what came of it; no outcome means that nobody knows yet."""

    intent: Intent
    outcome: Outcome | None = None


class AnswerResult(Fact):
    """What became of one answer to a request."""

    accepted: bool
    """Whether this answer is the one that counts."""
    reason: str = ""
    """Why not, for the person who gave it."""
    standing: ApprovalAnswer | None = None
    """The answer that counts, this one or an earlier one; None where there is none."""


class RecoveryRecord(Fact):
    """One earlier incident of the same job."""

    incident: str
    fingerprint: str
    """Of the incident, else of its newest diagnosis. Empty where nothing was diagnosed."""
    fault: FaultClass
    actions: tuple[ActionKind, ...]
    """Those that were performed or may have been, in order; refused ones are left out."""
    acted_at: float | None
    """The incident's own, else the time of its newest intent. None where nothing was tried."""
    step_before: int | None
    """The furthest step known before the failure."""
    step_reached: int | None
    """The furthest step seen after `acted_at`, up to now, whichever incarnation made it."""

    @property
    def progressed(self) -> bool:
        """Whether the job got further than before the failure. Unknown progress never counts."""
        if self.step_reached is None:
            return False
        return self.step_before is None or self.step_reached > self.step_before

    state: IncidentState
    detected_at: float = 0.0
    attempts: int = 0


class NodeEvent(Fact):
    """One fault that an incident laid at a node's door."""

    node: str
    job_key: str
    incident: str
    fault: FaultClass
    at: float
