"""Trouble that ended by itself is told from trouble that goes on, and from what can't be seen."""

from __future__ import annotations

from typing import Any

import pytest

from trainguard.core.health import Health
from trainguard.core.incident import Incident
from trainguard.core.job import Incarnation, JobRef
from trainguard.core.observation import Liveness, Observation
from trainguard.core.remission import passed
from trainguard.core.signal import Signal, SignalKind
from trainguard.core.silence import Silence

REF = JobRef(scheduler="slurm", cluster="lab", id="7")
RUN = Incarnation(job=REF, token="7.1")
STALL, NAN, STUCK, CRASH = SignalKind.STALL, SignalKind.NUMERICAL, SignalKind.STUCK, SignalKind.CRASH


def incident(*kinds: SignalKind, step: int | None = 100) -> Incident:
    signals = tuple(Signal(kind=kind, at=1.0, detail="x", sources=("log", "gpu")) for kind in kinds)
    return Incident(
        id="abcdefgh", job_key=REF.key, incarnation=RUN, signals=signals, detected_at=1.0, step=step
    )


def seen(liveness: Liveness = Liveness.RUNNING, token: str = "7.1") -> Observation:
    named = RUN.model_copy(update={"token": token})
    return Observation(job=REF, at=2.0, source="squeue", liveness=liveness, incarnation=named)


def health(*still: SignalKind, **changes: Any) -> Health:
    return Health(token="7.1", open=still, **changes)


@pytest.mark.parametrize(
    ("kinds", "still", "step", "over"),
    [
        ((STALL,), (STALL,), 100, False),
        ((STALL,), (), 100, True),
        ((STALL,), (STALL,), 5000, True),
        ((STUCK,), (STUCK,), None, False),
        ((STUCK,), (), None, True),
        ((NAN,), (NAN,), 5000, False),
        ((NAN,), (), 5000, True),
        ((STALL, NAN), (NAN,), 5000, False),
        ((STALL, NAN), (), 100, True),
        ((CRASH,), (), 100, False),
        ((CRASH,), (), 5000, True),
        ((CRASH, STALL), (STALL,), 100, False),
        ((CRASH, STALL), (), 5000, True),
    ],
)
def test_trouble_is_over_when_its_signal_is_or_the_job_got_further(
    kinds: tuple[SignalKind, ...], still: tuple[SignalKind, ...], step: int | None, over: bool
) -> None:
    assert passed(incident(*kinds), seen(), health(*still), step) is over


@pytest.mark.parametrize(
    ("look", "known"),
    [
        (seen(Liveness.FAILED), health()),
        (seen(Liveness.UNKNOWN), health()),
        (seen(Liveness.GONE), health()),
        (seen(Liveness.PENDING), health()),
        (seen(token="7.2"), health()),
        (seen(), Health()),
        (seen(), health(silence=Silence(unseen_looks=1))),
    ],
)
def test_a_stall_is_not_over_while_nothing_shows_it(look: Observation, known: Health) -> None:
    assert not passed(incident(STALL), look, known, 100)


def test_a_crashed_incarnation_that_runs_again_for_long_has_come_back() -> None:
    assert not passed(incident(CRASH), seen(), health(running_for=5.0), 100)
    assert passed(incident(CRASH), seen(), health(running_for=300.0), 100)
    assert not passed(incident(CRASH), seen(Liveness.FAILED), health(running_for=300.0), 5000)


def test_a_stuck_job_that_may_wait_its_turn_is_no_longer_stuck() -> None:
    assert passed(incident(STUCK), seen(Liveness.PENDING), health(), None)
