"""A NaN after a run that went well asks for an earlier checkpoint; one after the first steps for a mended configuration."""

from __future__ import annotations

import pytest

from trainguard.core.action import ActionKind
from trainguard.core.diagnosis import Catalogue, Stream, diagnose
from trainguard.core.evidence import EvidenceKind
from trainguard.core.observation import LogSource

BACK, MEND = ActionKind.RESTART_FROM_EARLIER_CHECKPOINT, ActionKind.FIX_CODE_OR_CONFIG
LATE = "".join(f"step {n}/9000 | loss {3 - n / 9000:.3f}\n" for n in range(4000, 4010))
EARLY = "".join(f"step {n}/9000 | loss {11 - n / 10:.3f}\n" for n in range(4))
TRAINER = "{'loss': 1.9, 'grad_norm': 0.4, 'learning_rate': 2e-05, 'epoch': %s}\n"


@pytest.mark.parametrize(
    ("log", "actions"),
    [
        (LATE + "step 4010/9000 | loss nan\n", (BACK, MEND)),
        (EARLY + "step 4/9000 | loss nan\n", (MEND,)),
        ("step 4010/9000 | loss nan\n", (MEND, BACK)),
        (TRAINER % 1.91 + "{'loss': nan, 'grad_norm': nan, 'epoch': 1.92}\n", (BACK, MEND)),
        (TRAINER % 0.01 + "{'loss': nan, 'grad_norm': nan, 'epoch': 0.02}\n", (MEND,)),
    ],
)
def test_what_helps_against_a_nan_depends_on_what_came_before(
    log: str, actions: tuple[ActionKind, ...], catalogue: Catalogue
) -> None:
    found = diagnose([Stream(LogSource(name="job.log"), EvidenceKind.LOG, (log,))], catalogue)
    assert found.fault == "numerical"
    assert found.actions == actions
