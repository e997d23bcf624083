"""Which of a rule's actions fit this case: a ladder is the same for all, what came before is not."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable

from trainguard.core.action import ActionKind, Scope
from trainguard.core.diagnosis.candidate import Candidate
from trainguard.core.diagnosis.scan import Scanned
from trainguard.core.diagnosis.steps import Point
from trainguard.core.evidence import EvidenceKind
from trainguard.core.verdict import FaultClass

_JOBS_WORDS = frozenset({EvidenceKind.LOG, EvidenceKind.STACKS})
"""What the job itself can write."""
_BEYOND_THE_JOB = frozenset({Scope.NODE, Scope.CLUSTER, Scope.MONEY})
_EARLY_STEPS = 100
"""Steps in which learning rate, precision or initialisation show that they are wrong."""
_EARLY_EPOCHS = 0.05
_SHOWN = 20
"""Finite losses in the log that prove a run which went well, where no counter tells how far it was."""
_EPOCH = re.compile(r"(?i)\bepoch['\"]?\s?[:=]\s?(?P<epoch>\d{1,6}\.\d{1,6})")


def ladder(root: Candidate, one: Scanned | None) -> tuple[ActionKind, ...]:
    """The rule's actions in the order that fits; nothing beyond the job where only the job's own words ask for it.

    `one` is the stream of the root's first line.
    """
    trusted = bool(root.fact) or any(hit.stream_kind not in _JOBS_WORDS for hit in root.hits)
    actions = tuple(a for a in root.rule.actions if trusted or a.scope not in _BEYOND_THE_JOB)
    earlier = ActionKind.RESTART_FROM_EARLIER_CHECKPOINT
    first = root.first
    if root.rule.fault is not FaultClass.NUMERICAL or earlier not in actions or one is None or first is None:
        return actions
    late = _went_well([point for point in one.progress if point.line <= first.line])
    if late is None:
        return actions
    rest = tuple(action for action in actions if action is not earlier)
    return (earlier, *rest) if late else rest


def _went_well(before: Iterable[Point]) -> bool | None:
    """Whether the training had come far before its numbers broke; None where the log does not show.

    Late, going back before the break helps; early, the configuration is wrong and going back repeats it.
    """
    sound = [p for p in before if p.loss is not None and math.isfinite(p.loss) and p.loss != 0]
    if not sound:
        return None
    last = sound[-1]
    epoch = _EPOCH.search(last.text)
    if epoch is not None:
        return float(epoch["epoch"]) >= _EARLY_EPOCHS or len(sound) >= _SHOWN
    if last.key == "step":
        return last.step >= _EARLY_STEPS
    return len(sound) >= _SHOWN
