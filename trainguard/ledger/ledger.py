"""The durable record: one class, the same on SQLite and Postgres."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Self

from trainguard.core.action import Outcome
from trainguard.core.decision import ApprovalAnswer, ApprovalRequest, Intent, Lease, Plan
from trainguard.core.evidence import Evidence
from trainguard.core.history import AnswerResult, IntentRecord, JobStatus, NodeEvent, RecoveryRecord
from trainguard.core.incident import Incident
from trainguard.core.job import Job
from trainguard.core.observation import Observation
from trainguard.core.verdict import Diagnosis, FaultClass


class Ledger:
    """Signatures to code against; the bodies follow.

    Every method raises LedgerUnavailableError (locked, full or gone for now) after a bounded retry;
    those with a lease raise LeaseLostError, having changed nothing, once another guard owns the job.
    Lists are newest first unless said otherwise.
    """

    @classmethod
    async def open(cls, url: str | None = None, *, patience: float = 10.0) -> Self:
        raise NotImplementedError

    async def close(self) -> None:
        raise NotImplementedError

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def register_job(self, job: Job, policy: str, at: float) -> None:
        raise NotImplementedError

    async def job(self, key: str) -> Job | None:
        raise NotImplementedError

    async def jobs(self) -> list[Job]:
        raise NotImplementedError

    async def policy(self, key: str) -> str:
        raise NotImplementedError

    async def set_job_status(
        self, key: str, status: str, outcome: str, at: float, lease: Lease | None = None
    ) -> None:
        raise NotImplementedError

    async def job_status(self, key: str) -> JobStatus | None:
        raise NotImplementedError

    async def acquire_lease(
        self, job_key: str, holder: str, at: float, ttl: float, take_over: bool = False
    ) -> Lease:
        raise NotImplementedError

    async def renew_lease(self, lease: Lease, at: float, ttl: float) -> Lease:
        raise NotImplementedError

    async def check_lease(self, lease: Lease) -> None:
        raise NotImplementedError

    async def release_lease(self, lease: Lease) -> None:
        """Never raises LeaseLostError: a lost lease has nothing to release."""
        raise NotImplementedError

    async def lease(self, job_key: str) -> Lease | None:
        """None where nobody holds it; an expired one that nobody else took is still given."""
        raise NotImplementedError

    async def record_observation(self, lease: Lease, observation: Observation, status_line: str) -> None:
        raise NotImplementedError

    async def observations(self, job_key: str, limit: int = 100) -> list[Observation]:
        raise NotImplementedError

    async def latest_observation(self, job_key: str) -> Observation | None:
        raise NotImplementedError

    async def status_lines(self, job_key: str, limit: int = 100) -> list[str]:
        raise NotImplementedError

    async def save_cursor(self, job_key: str, cursor: str, lease: Lease | None = None) -> None:
        raise NotImplementedError

    async def cursor(self, job_key: str) -> str:
        """Empty where none was saved."""
        raise NotImplementedError

    async def save_health(self, lease: Lease, job_key: str, health: str) -> None:
        raise NotImplementedError

    async def health(self, job_key: str) -> str:
        """Empty where none was saved."""
        raise NotImplementedError

    async def open_incident(self, lease: Lease, incident: Incident) -> None:
        """Idempotent; LedgerError for another incident under the same id."""
        raise NotImplementedError

    async def update_incident(self, lease: Lease, incident: Incident) -> None:
        """LedgerError for an unknown incident, and for one that would be reopened after its end."""
        raise NotImplementedError

    async def incident(self, incident_id: str) -> Incident | None:
        raise NotImplementedError

    async def incidents(
        self, job_key: str | None = None, open_only: bool = False, limit: int = 100
    ) -> list[Incident]:
        raise NotImplementedError

    async def add_evidence(self, lease: Lease, incident_id: str, evidence: Sequence[Evidence]) -> None:
        raise NotImplementedError

    async def evidence(self, incident_id: str) -> list[Evidence]:
        """In the order it was added."""
        raise NotImplementedError

    async def add_diagnosis(self, lease: Lease, incident_id: str, diagnosis: Diagnosis, at: float) -> None:
        raise NotImplementedError

    async def diagnosis(self, incident_id: str) -> Diagnosis | None:
        raise NotImplementedError

    async def diagnoses(self, incident_id: str) -> list[Diagnosis]:
        """Oldest first."""
        raise NotImplementedError

    async def add_decisions(self, lease: Lease, incident_id: str, plan: Plan) -> None:
        raise NotImplementedError

    async def plan(self, incident_id: str) -> Plan | None:
        """The newest."""
        raise NotImplementedError

    async def write_intent(self, lease: Lease, intent: Intent) -> None:
        """Durable before it returns.

        Raises IntentExistsError for a token already used, IntentPendingError while another restarting
        intent of the job is unresolved (`find` its fence and write the outcome first) and LeaseLostError
        also for a lease that expired before `intent.at` (renew it first).
        """
        raise NotImplementedError

    async def write_outcome(self, lease: Lease, outcome: Outcome) -> None:
        """An UNKNOWN one may be replaced; a final one never (LedgerError), repeating it changes nothing."""
        raise NotImplementedError

    async def pending_intents(self, job_key: str) -> list[Intent]:
        """Oldest first: no outcome yet, or UNKNOWN."""
        raise NotImplementedError

    async def intents(self, incident_id: str) -> list[IntentRecord]:
        """Oldest first."""
        raise NotImplementedError

    async def ask(self, lease: Lease, request: ApprovalRequest) -> ApprovalRequest:
        """Store a question and give it back as stored.

        Asking the same id again (a successor re-asks) changes only flow_run_id and keyset; the deadline
        stays. Another plan or incarnation under the same id is a LedgerError.
        """
        raise NotImplementedError

    async def answer(
        self, answer: ApprovalAnswer, current_incarnation: str | None, at: float
    ) -> AnswerResult:
        """`current_incarnation` is its token; None where it can't be told."""
        raise NotImplementedError

    async def request(self, request_id: str) -> ApprovalRequest | None:
        raise NotImplementedError

    async def answer_of(self, request_id: str) -> ApprovalAnswer | None:
        raise NotImplementedError

    async def open_requests(self, job_key: str | None = None) -> list[ApprovalRequest]:
        """Unanswered, of incidents that are not closed. The deadline may have passed."""
        raise NotImplementedError

    async def note_notification(
        self, job_key: str, incident_id: str, kind: str, at: float, limit: int
    ) -> bool:
        """Claim the right to send; a claim not marked sent within 60 s may be claimed again."""
        raise NotImplementedError

    async def mark_notified(self, job_key: str, incident_id: str, kind: str, at: float) -> None:
        raise NotImplementedError

    async def add_node_event(
        self, node: str, job_key: str, incident_id: str, fault: FaultClass, at: float
    ) -> None:
        raise NotImplementedError

    async def node_events(self, node: str, since: float) -> list[NodeEvent]:
        raise NotImplementedError

    async def recovery_history(self, job_key: str, limit: int = 50) -> list[RecoveryRecord]:
        raise NotImplementedError
