"""An exit code alone explains nothing that a line explains better."""

from __future__ import annotations

from trainguard.core.diagnosis import Stream, diagnose
from trainguard.core.evidence import EvidenceKind
from trainguard.core.job import JobRef
from trainguard.core.observation import Liveness, LogSource, Observation
from trainguard.core.verdict import FaultClass
from trainguard.rules import load_catalogue

LINE = b"ncclRemoteError: A call failed possibly due to a network error or a remote process exiting prematurely.\n"
FAILED = Observation(
    job=JobRef(scheduler="local", cluster="here", id="/job"),
    at=0.0,
    source="supervisor",
    liveness=Liveness.FAILED,
    native="failed",
    exit_code=1,
)


def test_a_consequence_that_is_seen_says_more_than_an_exit_code() -> None:
    stream = Stream(LogSource(name="log"), EvidenceKind.LOG, (b"step 1/9 loss 2.0\n", LINE))
    assert diagnose((stream,), load_catalogue(), FAILED).fault is FaultClass.NCCL_COMM


def test_an_exit_code_alone_is_no_cause() -> None:
    stream = Stream(LogSource(name="log"), EvidenceKind.LOG, (b"step 1/9 loss 2.0\n",))
    assert diagnose((stream,), load_catalogue(), FAILED).fault is FaultClass.UNKNOWN
