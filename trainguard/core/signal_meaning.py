"""What a signal means where no line of evidence shows a cause."""

from __future__ import annotations

from trainguard.core.action import ActionKind
from trainguard.core.incident import Incident
from trainguard.core.signal import Signal, SignalKind
from trainguard.core.verdict import Diagnosis, FaultClass, SaidBy

_MEANS: dict[SignalKind, tuple[FaultClass, tuple[ActionKind, ...], bool | None]] = {
    SignalKind.STALL: (FaultClass.HANG_STALL, (ActionKind.RESTART,), True),
    SignalKind.NUMERICAL: (FaultClass.NUMERICAL, (ActionKind.RESTART_FROM_EARLIER_CHECKPOINT,), None),
    SignalKind.STUCK: (FaultClass.SCHEDULING, (ActionKind.WAIT_EXTERNAL,), None),
}
_LOOK_NEXT = {
    SignalKind.STALL: "the stacks of the hung ranks (py-spy dump, NCCL flight recorder)",
    SignalKind.NUMERICAL: "the data and the learning rate around the last finite loss",
    SignalKind.STUCK: "the scheduler's reason for this job",
}


def meaning_of(incident: Incident) -> Diagnosis | None:
    """Give the diagnosis that the incident's first telling signal stands for; None for a bare crash."""
    for signal in incident.signals:
        if signal.kind in _MEANS:
            return _diagnosis(incident, signal)
    return None


def _diagnosis(incident: Incident, signal: Signal) -> Diagnosis:
    fault, actions, transient = _MEANS[signal.kind]
    return Diagnosis(
        fault=fault,
        cause=signal.detail,
        rule=f"signal:{signal.kind}",
        by=SaidBy.RULE,
        confidence=0.5 + 0.15 * min(len(signal.sources), 3),
        transient=transient,
        actions=actions,
        look_next=(_LOOK_NEXT[signal.kind],),
        fingerprint=f"{fault}:signal:{signal.kind}",
    )
