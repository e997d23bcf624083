"""What was decided, by whom and on which line of the policy; what was intended; what was asked and answered."""

from __future__ import annotations

from enum import StrEnum

from trainguard.core.action import Action, Fence
from trainguard.core.fact import Fact
from trainguard.core.job import Incarnation


class Verdict(StrEnum):
    """What may be done with a proposed action."""

    RUN = "run"
    ASK = "ask"
    REFUSE = "refuse"


class Decision(Fact):
    """The verdict on one action and its basis."""

    action: Action
    verdict: Verdict
    basis: str
    """The exact policy line, budget or safety rule that says so."""
    would_allow: str = ""
    """For ask and refuse: the policy line that would let it run. Empty where nothing would."""
    by: str = "policy"
    at: float


class Plan(Fact):
    """Proposed actions in order, each with its decision."""

    incident: str
    steps: tuple[Decision, ...]

    @property
    def verdict(self) -> Verdict:
        """The strictest verdict among the steps: one that must be asked makes the plan ask."""
        verdicts = {step.verdict for step in self.steps}
        for strict in (Verdict.REFUSE, Verdict.ASK):
            if strict in verdicts or not self.steps:
                return strict
        return Verdict.RUN


class Intent(Fact):
    """The row written before an action."""

    fence: Fence
    job_key: str
    action: Action
    at: float


class Answer(StrEnum):
    """What a person (or the deadline) says to a request."""

    APPROVE = "approve"
    REFUSE = "refuse"


class ApprovalRequest(Fact):
    """A question to a person. One use: the first valid answer counts."""

    id: str
    """`<incident>-<attempt>`."""
    incident: str
    job_key: str
    incarnation: Incarnation | None
    """If another is current when the answer comes, the answer is refused."""
    plan: Plan
    asked_at: float
    deadline: float
    """Our own, before Prefect's; then the safe answer (refuse) is given."""
    flow_run_id: str = ""
    """The paused recover run, where there is one."""
    keyset: str = ""
    """The key of its stored input in Prefect: how an answer given to a dead process is read back."""
    earlier: tuple[tuple[str, str], ...] = ()
    """Flow run and keyset of each form that showed the question before: one may be filled in and not yet read."""

    @property
    def forms(self) -> tuple[tuple[str, str], ...]:
        """Flow run and keyset of every form of this question, oldest first."""
        return (*self.earlier, (self.flow_run_id, self.keyset)) if self.flow_run_id else self.earlier


CANCEL = "cancel"
"""The `via` of a refusal by cancelling the run that shows the question."""


class ApprovalAnswer(Fact):
    """The one-use decision of a person."""

    request: str
    answer: Answer
    by: str
    via: str
    """ui, cli, slack, mcp, cancel or deadline."""
    at: float
    note: str = ""
    nodes: tuple[str, ...] | None = None
    """Edits: other nodes to exclude, among those the scheduler knows."""
    memory_bytes: int | None = None


class Lease(Fact):
    """The right to guard one job, until it expires."""

    job_key: str
    holder: str
    number: int
    """Fencing number: grows with every change of holder; a smaller one can do nothing."""
    expires_at: float
