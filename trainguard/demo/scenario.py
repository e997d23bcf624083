"""What the demo's job meets, and what a guard should make of it. Plain data."""

from __future__ import annotations

from dataclasses import dataclass

from trainguard.core.verdict import FaultClass
from trainguard.demo.faults import Fault, FaultKind


@dataclass(frozen=True)
class PlannedIncident:
    """One fault and what should come of it."""

    fault: Fault
    expected: FaultClass
    story: str
    """What happens, in a sentence for the person who watches."""
    asks: bool = False
    """It waits for a person's approval."""
    recovers: bool = True
    """The job goes on afterwards."""


@dataclass(frozen=True)
class Scenario:
    """One demo: a job, its limits and its incidents in order."""

    module: str
    """What `python -m` runs."""
    steps: int
    save_every: int
    step_seconds: float
    memory_limit: int
    """Bytes for the whole process tree; 0 for none."""
    stall_after: float
    """For `Watching.stall_after`, seconds."""
    incidents: tuple[PlannedIncident, ...]
    checkpoint_glob: str

    @property
    def arguments(self) -> tuple[str, ...]:
        """The trainer's options, but for `--work` and `--resume`."""
        faults = [word for incident in self.incidents for word in ("--fault", str(incident.fault))]
        return (
            "--steps",
            str(self.steps),
            "--save-every",
            str(self.save_every),
            "--step-seconds",
            str(self.step_seconds),
            *faults,
        )


MEBIBYTE = 2**20

SCENARIO = Scenario(
    module="trainguard.demo.trainer",
    steps=600,
    save_every=20,
    step_seconds=0.04,
    memory_limit=300 * MEBIBYTE,
    stall_after=5.0,
    checkpoint_glob="step-{step}.npz",
    incidents=(
        PlannedIncident(
            Fault(FaultKind.MEMORY_LEAK, 110),
            FaultClass.HOST_OOM,
            "a data cache that is never emptied grows into the memory limit, and the kernel kills the job",
        ),
        PlannedIncident(
            Fault(FaultKind.TRUNCATED_CHECKPOINT, 240),
            FaultClass.CHECKPOINT_CORRUPTION,
            "the writer of a checkpoint is killed half-way: the newest checkpoint is a stump",
        ),
        PlannedIncident(
            Fault(FaultKind.DEADLOCK, 330),
            FaultClass.HANG_STALL,
            "two threads wait for each other's lock: the job lives and does nothing",
        ),
        PlannedIncident(
            Fault(FaultKind.DIVERGENCE, 430),
            FaultClass.NUMERICAL,
            "the learning rate is far too high: the loss becomes NaN",
            asks=True,
        ),
        PlannedIncident(
            Fault(FaultKind.CODE_ERROR, 541),
            FaultClass.CODE_BUG,
            "a misspelt key in code that first runs near the end: no restart can mend that",
            recovers=False,
        ),
    ),
)
"""The demo on one machine, in numpy."""

TORCH_SCENARIO = Scenario(
    module="trainguard.demo.torch_trainer",
    steps=300,
    save_every=20,
    step_seconds=0.05,
    memory_limit=0,
    stall_after=10.0,
    checkpoint_glob="step-{step}.pt",
    incidents=(
        PlannedIncident(
            Fault(FaultKind.RANK_KILLED, 130),
            FaultClass.HOST_OOM,  # what a SIGKILL that nobody explains mostly is
            "rank 1 is killed with SIGKILL; the other rank fails in its next all-reduce",
        ),
    ),
)
"""The same as two ranks under torchrun, on gloo."""
