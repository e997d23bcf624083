"""Words that no rule knows: what they speak of in general, where they count, and where they never do."""

from __future__ import annotations

import pytest

from trainguard.core.diagnosis import Stream, diagnose
from trainguard.core.evidence import EvidenceKind
from trainguard.core.observation import LogSource
from trainguard.core.verdict import Diagnosis, FaultClass
from trainguard.rules import load_catalogue

CATALOGUE = load_catalogue()
STEPS = "".join(f"step {n} loss 2.{n}\n" for n in range(10, 60, 10))
STRANGE = "orchestrator: the accelerator behind rank 3 is unhealthy\n"


def said(text: str, kind: EvidenceKind = EvidenceKind.LOG) -> Diagnosis:
    return diagnose((Stream(LogSource(name="x"), kind, (text,)),), CATALOGUE)


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        (STRANGE, FaultClass.GPU_HARDWARE),
        ("supervisor: stopping, the run exceeded its time budget", FaultClass.TIME_LIMIT),
        ("restore: found a damaged weights file and no other", FaultClass.CHECKPOINT_CORRUPTION),
        ("writer: the volume behind /data is not responding", FaultClass.STORAGE_IO),
        ("ValueError: the driver of this host is too old for the runtime", FaultClass.DEPENDENCY),
    ],
)
def test_last_words_tell_the_kind_of_failure_and_are_never_certain(line: str, fault: FaultClass) -> None:
    found = said(f"{STEPS}{line}\n")
    assert (found.fault, found.citations[0].text) == (fault, line.strip())
    assert found.confidence <= 0.4


def test_words_before_the_last_progress_tell_nothing() -> None:
    assert said(STRANGE + STEPS).fault is FaultClass.HEALTHY


def test_a_rule_that_knows_a_line_goes_before_words_that_only_suggest() -> None:
    found = said(f"{STEPS}torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB\n{STRANGE}")
    assert found.fault is FaultClass.GPU_OOM


def test_an_exception_whose_words_tell_nothing_stays_the_programs_own() -> None:
    assert said(f"{STEPS}RuntimeError: odd\n").fault is FaultClass.CODE_BUG


@pytest.mark.parametrize(
    "line",
    [
        "WARNING: GPU 3 was reported unhealthy, ignored",
        "INFO storage: 2 requests failed",
        "GPU faults: 0",
        "no errors on any GPU",
        "dcgm: falling back, GPU 3 unhealthy",
    ],
)
def test_a_line_that_calls_itself_harmless_tells_nothing(line: str) -> None:
    assert said(f"{STEPS}{line}\n").fault is FaultClass.HEALTHY


def test_what_the_system_prints_counts_only_where_it_is_grave() -> None:
    boot = "[ 3.1] amdgpu 0000:08:00.0: No more image in the PCI ROM\n[ 3.2] ACPI: could not resolve symbol\n"
    assert said(boot, EvidenceKind.KERNEL).fault in {FaultClass.HEALTHY, FaultClass.UNKNOWN}
