"""What an incident's signals say beside what its evidence says."""

from __future__ import annotations

import pytest

from trainguard.core.incident import Incident
from trainguard.core.signal import Signal, SignalKind
from trainguard.core.verdict import Diagnosis, FaultClass
from trainguard.tasks.collect import by_signals


def incident(kind: SignalKind) -> Incident:
    signal = Signal(kind=kind, at=1.0, detail="silent", sources=("log", "process"))
    return Incident(id="abcdefgh", job_key="local/x/1", incarnation=None, signals=(signal,), detected_at=1.0)


@pytest.mark.parametrize(
    ("kind", "fault", "confidence", "said"),
    [
        (SignalKind.STALL, FaultClass.UNKNOWN, 0.0, FaultClass.HANG_STALL),
        (SignalKind.STALL, FaultClass.HANG_STALL, 0.4, FaultClass.HANG_STALL),
        (SignalKind.STALL, FaultClass.CODE_BUG, 0.4, FaultClass.HANG_STALL),
        (SignalKind.STALL, FaultClass.NCCL_COMM, 0.8, FaultClass.NCCL_COMM),
        (SignalKind.CRASH, FaultClass.CODE_BUG, 0.4, FaultClass.CODE_BUG),
    ],
)
def test_a_signal_shows_more_than_a_general_word_among_the_last_lines(
    kind: SignalKind, fault: FaultClass, confidence: float, said: FaultClass
) -> None:
    found = by_signals(incident(kind), Diagnosis(fault=fault, cause="x", confidence=confidence))
    assert found.fault is said
    assert found.rule.startswith("signal:") is (kind is SignalKind.STALL and confidence <= 0.4)
