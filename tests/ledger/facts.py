"""Small facts to put into a ledger."""

from __future__ import annotations

from trainguard.core.action import Action, ActionKind, Fence, Outcome, OutcomeStatus
from trainguard.core.decision import (
    Answer,
    ApprovalAnswer,
    ApprovalRequest,
    Decision,
    Intent,
    Lease,
    Plan,
    Verdict,
)
from trainguard.core.evidence import Citation, Evidence, EvidenceKind
from trainguard.core.incident import Incident
from trainguard.core.job import Incarnation, Job, JobRef
from trainguard.core.observation import Liveness, LogSource, Observation, Progress
from trainguard.core.signal import Signal, SignalKind
from trainguard.core.verdict import Diagnosis, FaultClass

NOW = 1_780_000_000.0
REF = JobRef(scheduler="local", cluster="here", id="llama")
JOB = Job(ref=REF, name="llama")
KEY = REF.key
FIRST = Incarnation(job=REF, token="1-boot", attempt=1)
SECOND = Incarnation(job=REF, token="2-boot", attempt=2)


def observation(at: float = NOW, step: int | None = 100, **changes: object) -> Observation:
    progress = None if step is None else Progress(step=step, total=5155, loss=2.5, at=at)
    values: dict[str, object] = {
        "job": REF,
        "at": at,
        "source": "supervisor",
        "liveness": Liveness.RUNNING,
        "native": "running",
        "incarnation": FIRST,
        "progress": progress,
    }
    return Observation.model_validate(values | changes)


def incident(name: str = "inc00001", **changes: object) -> Incident:
    signal = Signal(kind=SignalKind.CRASH, at=NOW, detail="killed", sources=("scheduler", "process"))
    values: dict[str, object] = {
        "id": name,
        "job_key": KEY,
        "incarnation": FIRST,
        "signals": (signal,),
        "detected_at": NOW,
        "step": 100,
    }
    return Incident.model_validate(values | changes)


def evidence(text: str, name: str = "train.log") -> Evidence:
    return Evidence(source=LogSource(name=name, rank=0), kind=EvidenceKind.LOG, text=text, at=NOW)


def diagnosis(fingerprint: str = "f1", fault: FaultClass = FaultClass.HOST_OOM) -> Diagnosis:
    line = Citation(source=LogSource(name="dmesg", kind="kernel"), line=7, text="Out of memory")
    return Diagnosis(fault=fault, cause="killed for memory", citations=(line,), fingerprint=fingerprint)


def action(kind: ActionKind = ActionKind.RESTART) -> Action:
    return Action(kind=kind, incarnation=FIRST)


def plan(name: str = "inc00001", verdict: Verdict = Verdict.ASK, at: float = NOW) -> Plan:
    step = Decision(action=action(), verdict=verdict, basis="policy.allow", at=at)
    return Plan(incident=name, steps=(step,))


def intent(
    lease: Lease,
    number: int = 1,
    at: float = NOW,
    kind: ActionKind = ActionKind.RESTART,
    name: str = "inc00001",
) -> Intent:
    fence = Fence(token=f"tg-{name}-{number}", incident=name, lease=lease.number)
    return Intent(fence=fence, job_key=lease.job_key, action=action(kind), at=at)


def outcome(
    number: int = 1, status: OutcomeStatus = OutcomeStatus.DONE, at: float = NOW, name: str = "inc00001"
) -> Outcome:
    return Outcome(fence=f"tg-{name}-{number}", status=status, at=at)


def request(name: str = "inc00001-1", **changes: object) -> ApprovalRequest:
    values: dict[str, object] = {
        "id": name,
        "incident": "inc00001",
        "job_key": KEY,
        "incarnation": FIRST,
        "plan": plan(),
        "asked_at": NOW,
        "deadline": NOW + 3600,
        "flow_run_id": "run-1",
        "keyset": "keys-1",
    }
    return ApprovalRequest.model_validate(values | changes)


def answer(by: str = "ada", via: str = "cli", says: Answer = Answer.APPROVE) -> ApprovalAnswer:
    return ApprovalAnswer(request="inc00001-1", answer=says, by=by, via=via, at=NOW + 10)
