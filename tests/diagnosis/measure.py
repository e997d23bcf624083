"""Accuracy over many generated incidents: python -m tests.diagnosis.measure [incidents]."""

from __future__ import annotations

import sys
from collections import Counter

from tests.diagnosis.generator import generate
from trainguard.core.diagnosis import diagnose
from trainguard.rules import load_catalogue


def measure(incidents: int, first: int = 0) -> dict[str, float]:
    """Shares of incidents whose fault, and whose rank, is named first."""
    catalogue = load_catalogue()
    total, faults, ranked, ranks = 0, 0, 0, 0
    wrong: Counter[str] = Counter()
    for seed in range(first, first + incidents):
        incident = generate(seed)
        diagnosis = diagnose(incident.streams, catalogue)
        total += 1
        right = diagnosis.fault in incident.faults
        faults += right
        if not right:
            wrong[f"{incident.kind}: {diagnosis.fault.value} by {diagnosis.rule}"] += 1
        if incident.rank is not None:
            ranked += 1
            named = diagnosis.suspects[0].rank if diagnosis.suspects else None
            ranks += named == incident.rank
            if named != incident.rank:
                wrong[f"{incident.kind}: rank"] += 1
    for what, times in wrong.most_common():
        print(f"  {times} x {what}")
    return {"incidents": total, "fault": faults / total, "rank_top_1": ranks / ranked}


if __name__ == "__main__":
    print(measure(int(sys.argv[1]) if len(sys.argv) > 1 else 200))
