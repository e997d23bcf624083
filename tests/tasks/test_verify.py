"""What proves that a job got past its failure, and what does not."""

from __future__ import annotations

from typing import Any, cast

import pytest

from trainguard.core.checkpoint import Checkpoint
from trainguard.core.health import Health
from trainguard.core.incident import Incident
from trainguard.core.job import Incarnation, Job, JobRef
from trainguard.core.observation import Liveness, Observation, Progress
from trainguard.core.progress import Reading
from trainguard.core.signal import Signal, SignalKind
from trainguard.tasks.context import GuardContext
from trainguard.tasks.verify import SETTLE_SECONDS, judge

REF = JobRef(scheduler="local", cluster="here", id="j")
OLD, NEW = Incarnation(job=REF, token="j.1"), Incarnation(job=REF, token="j.2")
ACTED = 1000.0


def incident(kind: SignalKind = SignalKind.CRASH, step: int | None = 95) -> Incident:
    signal = Signal(kind=kind, at=900.0, detail="x", sources=("scheduler",))
    return Incident(
        id="abcdefgh",
        job_key=REF.key,
        incarnation=OLD,
        signals=(signal,),
        detected_at=900.0,
        step=step,
        acted_at=ACTED,
    )


def guard(
    liveness: Liveness = Liveness.RUNNING,
    incarnation: Incarnation = NEW,
    log: int | None = None,
    beat: Progress | None = None,
    now: float = ACTED + 10,
    open_signals: tuple[SignalKind, ...] = (),
) -> GuardContext:
    nothing = cast(Any, None)
    context = GuardContext(
        job=Job(ref=REF, name="j"), policy=nothing, watch=nothing, ledger=nothing, lease=nothing, catalogue=nothing,
        clock=lambda: now,
    )  # fmt: skip
    context.observation = Observation(
        job=REF, at=now, source="supervisor", liveness=liveness, incarnation=incarnation, progress=beat
    )
    context.reading = Reading(progress=None if log is None else Progress(step=log, at=now))
    context.health = Health(token=incarnation.token, open=open_signals)
    return context


def verdict(context: GuardContext, known: Incident, restarted: bool = True, **newest: Any) -> bool | None:
    checkpoint = Checkpoint(path="/c/x", good=True, **newest) if newest else None
    found = judge(context, known, (), restarted=restarted, newest=checkpoint)
    return None if found is None else found.recovered


@pytest.mark.parametrize(
    ("log", "beat", "proven"),
    [
        (95, None, None),
        (96, None, True),
        (None, Progress(step=96, at=ACTED + 5), True),
        (90, Progress(step=96, at=ACTED + 5), True),
        (None, Progress(step=96, at=ACTED - 5), None),
    ],
)
def test_a_step_beyond_the_failures_counts_whether_the_log_or_the_heartbeat_tells_it(
    log: int | None, beat: Progress | None, proven: bool | None
) -> None:
    assert verdict(guard(log=log, beat=beat), incident()) is proven


@pytest.mark.parametrize(
    ("step", "newest", "proven"),
    [
        (95, {"step": 90, "at": ACTED + 5}, None),
        (95, {"step": 100, "at": ACTED + 5}, True),
        (None, {"step": 100, "at": ACTED + 5}, True),
        (None, {"step": 100, "at": ACTED - 5}, None),
        (95, {"at": ACTED + 5}, True),
        (95, {"at": ACTED - 5}, None),
    ],
)
def test_a_checkpoint_beyond_the_failures_counts_where_no_step_can_be_read(
    step: int | None, newest: dict[str, Any], proven: bool | None
) -> None:
    assert verdict(guard(), incident(step=step), **newest) is proven


def test_a_checkpoint_without_a_step_proves_nothing_while_the_steps_say_otherwise() -> None:
    assert verdict(guard(log=92), incident(), at=ACTED + 5) is None


@pytest.mark.parametrize(
    ("context", "known", "restarted", "proven"),
    [
        (guard(incarnation=OLD, log=200), incident(), True, None),
        (guard(incarnation=OLD), incident(SignalKind.STUCK, None), False, True),
        (
            guard(Liveness.PENDING, OLD, open_signals=(SignalKind.STUCK,)),
            incident(SignalKind.STUCK),
            False,
            None,
        ),
        (guard(Liveness.FAILED, OLD), incident(), False, None),
        (guard(Liveness.FAILED, OLD, now=ACTED + SETTLE_SECONDS), incident(), False, False),
        (guard(Liveness.FAILED), incident(), True, False),
        (guard(Liveness.SUCCEEDED), incident(), True, True),
    ],
)
def test_what_was_not_restarted_is_judged_as_the_incarnation_it_was(
    context: GuardContext, known: Incident, restarted: bool, proven: bool | None
) -> None:
    assert verdict(context, known, restarted) is proven
