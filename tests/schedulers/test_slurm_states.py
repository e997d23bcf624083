"""What Slurm's words mean, and how records become one job."""

from __future__ import annotations

from dataclasses import replace

import pytest

from trainguard.core.job import JobRef
from trainguard.core.observation import Liveness
from trainguard.schedulers.slurm.ids import JobId
from trainguard.schedulers.slurm.jobs import attempt, belonging, incarnation, token, whole
from trainguard.schedulers.slurm.marks import Mark, mark_of, marked, marks, without_marks
from trainguard.schedulers.slurm.parse import Record
from trainguard.schedulers.slurm.states import STATES, Settings, held, read

NOW = 1_700_000_100.0
REF = JobRef(scheduler="slurm", cluster="c", id="47")


def record(state: str, **more: object) -> Record:
    given = {
        "id": JobId(47),
        "source": "squeue",
        "state": state,
        "submit": 1_700_000_000,
        "end": 1_700_000_050,
    }
    return Record(**(given | more))  # type: ignore[arg-type]


@pytest.mark.parametrize("state", ["FAILED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "BOOT_FAIL"])
def test_failures_fail(state: str) -> None:
    assert read(record(state), NOW, Settings()).liveness is Liveness.FAILED


@pytest.mark.parametrize("state", ["CANCELLED", "PREEMPTED", "DEADLINE", "REVOKED"])
def test_what_was_ended_on_purpose_is_stopped(state: str) -> None:
    reading = read(record(state), NOW, Settings())
    assert (reading.liveness, reading.native) == (Liveness.STOPPED, state)


@pytest.mark.parametrize("state", ["TG_NOVEL", "", "UPDATE_DB", "OUT_OF_ME"])
def test_a_word_not_known_is_unknown(state: str) -> None:
    assert read(record(state), NOW, Settings()).liveness is Liveness.UNKNOWN


def test_no_state_is_unknown_by_table() -> None:
    assert Liveness.UNKNOWN not in STATES.values()
    assert Liveness.GONE not in STATES.values()


@pytest.mark.parametrize("state", ["NODE_FAIL", "PREEMPTED", "BOOT_FAIL"])
def test_a_job_that_slurm_may_requeue_is_given_a_moment(state: str) -> None:
    """Only where it may be requeued, only just after the end, only by the controller's word."""
    just = record(state, requeue=True, end=int(NOW) - 2)
    reading = read(just, NOW, Settings())
    assert (reading.liveness, reading.restart_underway) == (Liveness.UNKNOWN, True)
    for other in (
        replace(just, requeue=False),
        replace(just, end=int(NOW) - 60),
        replace(just, source="sacct"),
    ):
        assert read(other, NOW, Settings()).liveness is not Liveness.UNKNOWN


@pytest.mark.parametrize(
    ("reason", "stuck"),
    [
        ("launch failed requeued held", True),
        ("launch_failed_requeued_held", True),
        ("DependencyNeverSatisfied", True),
        ("JobHeldAdmin", True),
        ("JobHeldUser", False),
        ("Resources", False),
        ("Priority", False),
        ("Dependency", False),
        ("BeginTime", False),
    ],
)
def test_reasons_that_will_not_pass_by_themselves(reason: str, stuck: bool) -> None:
    reading = read(record("PENDING", reason=reason, end=None), NOW, Settings())
    assert bool(reading.stuck) is stuck
    assert reading.liveness is Liveness.PENDING


@pytest.mark.parametrize(("waited", "stuck"), [(5, False), (290, False), (310, True)])
def test_nodes_that_are_away_for_a_while_leave_nothing_stuck(waited: int, stuck: bool) -> None:
    """Slurm 22.05 says so of a job that comes while a controller which has just started knows no node yet."""
    waits = record("PENDING", reason="ReqNodeNotAvail, UnavailableNodes:n4", eligible=int(NOW) - waited)
    assert bool(read(waits, NOW, Settings()).stuck) is stuck


def test_pending_past_the_owners_deadline_is_stuck_but_not_while_it_is_held() -> None:
    waits = record("PENDING", reason="Resources", eligible=int(NOW) - 100)
    assert "100 s" in read(waits, NOW, Settings(), 50.0).stuck
    assert not read(waits, NOW, Settings(), 500.0).stuck
    assert not read(replace(waits, reason="JobHeldUser"), NOW, Settings(), 50.0).stuck


@pytest.mark.parametrize("state", ["SUSPENDED", "STOPPED"])
def test_a_job_that_was_paused_does_not_wait_for_its_start(state: str) -> None:
    """Its owner's deadline is for waiting in the queue; it was eligible when it began."""
    paused = record(state, eligible=int(NOW) - 100)
    assert not read(paused, NOW, Settings(), 50.0).stuck


def test_a_running_element_of_a_held_array_is_not_held() -> None:
    assert held(record("PENDING", reason="JobHeldUser"))
    assert not held(record("RUNNING", reason="JobHeldUser"))


def test_long_completing_is_stuck() -> None:
    assert read(record("COMPLETING", end=int(NOW) - 500), NOW, Settings()).stuck
    assert not read(record("COMPLETING", end=int(NOW) - 5), NOW, Settings()).stuck


@pytest.mark.parametrize(
    ("code", "signal", "told"),
    [(3, 0, (3, None, None)), (137, 0, (137, None, None)), (0, 9, (None, 9, None)), (0, 125, (None, None, True)),
     (0, 53, (None, None, None))],
)  # fmt: skip
def test_exit_codes(code: int, signal: int, told: tuple[int | None, int | None, bool | None]) -> None:
    reading = read(record("FAILED", code=code, signal=signal), NOW, Settings())
    assert (reading.exit_code, reading.exit_signal, reading.oom_killed) == told


def elements(*states: str) -> list[Record]:
    return [record(state, id=JobId(47, task), reason="", code=0) for task, state in enumerate(states, 1)]


@pytest.mark.parametrize(
    ("states", "liveness"),
    [
        (("RUNNING", "COMPLETED", "PENDING"), Liveness.RUNNING),
        (("PENDING", "COMPLETED"), Liveness.PENDING),
        (("COMPLETED", "COMPLETED"), Liveness.SUCCEEDED),
        (("COMPLETED", "CANCELLED"), Liveness.STOPPED),
        (("RUNNING", "FAILED"), Liveness.FAILED),
        (("RUNNING", "TG_NOVEL"), Liveness.UNKNOWN),
    ],
)
def test_an_array_as_a_whole(states: tuple[str, ...], liveness: Liveness) -> None:
    parts = [(one, read(one, NOW, Settings())) for one in elements(*states)]
    assert whole(parts).liveness is liveness


def test_an_element_is_not_its_neighbour() -> None:
    parts = elements("RUNNING", "FAILED")
    assert [one.state for one in belonging(JobId(47, 2), parts)] == ["FAILED"]
    assert len(belonging(JobId(47), parts)) == 2
    assert belonging(JobId(4), parts) == []


def test_a_token_changes_with_each_restart_and_stays_over_states() -> None:
    one = record("RUNNING")
    assert token(JobId(47), [one]) == token(JobId(47), [replace(one, state="FAILED", end=1)])
    again = replace(one, submit=one.submit + 9, restarts=1)
    assert token(JobId(47), [one]) != token(JobId(47), [again])


def test_an_arrays_token_does_not_change_when_its_elements_start_or_are_forgotten() -> None:
    parts = elements("PENDING", "RUNNING", "COMPLETED")
    assert token(JobId(47), parts) == token(JobId(47), parts[:2])
    parts[0] = replace(parts[0], restarts=1, submit=parts[0].submit + 5)
    assert token(JobId(47), parts) != token(JobId(47), parts[1:])


def test_no_incarnation_is_named_where_the_submit_time_is_not_told() -> None:
    assert incarnation(REF, JobId(47), [record("RUNNING", submit=0)]) is None


def mark(number: int = 1, token: str = "47+1700000000+0", attempt: int = 2) -> Mark:
    return Mark(f"tg-abc-{number}", "restart", token, "47", attempt)


def test_a_mark_is_found_behind_the_owners_words_which_stay() -> None:
    comment = marked(marked("my, own [words] | x", mark(1)), mark(2))
    assert without_marks(comment) == "my, own [words] | x"
    assert marks(comment) == [mark(1), mark(2)]
    assert mark_of(comment, "tg-abc-1") == mark(1)
    assert mark_of(comment, "tg-abc-3") is None
    assert marked(comment, mark(2)) == comment


def test_a_comment_does_not_grow_without_end() -> None:
    comment = "own"
    for number in range(100):
        comment = marked(comment, mark(number))
    assert len(comment.encode()) <= 1_000
    assert mark_of(comment, "tg-abc-99")


def test_the_mark_that_tells_where_a_job_came_from_is_not_dropped() -> None:
    comment = marked("é" * 200, mark(1))
    for number in range(2, 40):
        comment = marked(comment, mark(number, "99+1700000300+0", number))
        assert len(comment.encode()) <= 1_000
    assert [one.fence for one in marks(comment)][:: len(marks(comment)) - 1] == ["tg-abc-1", "tg-abc-39"]


def test_owners_words_that_leave_no_room_keep_the_newest_mark() -> None:
    comment = marked(marked("x" * 990, mark(1)), mark(2))
    assert marks(comment) == [mark(2)]


def test_attempts_are_counted_over_requeues_and_submissions() -> None:
    assert attempt(REF, [record("RUNNING")]) == 1
    assert attempt(REF, [record("RUNNING", restarts=2)]) == 3
    born = record("RUNNING", id=JobId(99), comment=str(mark(attempt=3)))
    assert attempt(REF, [born]) == 3
    requeued = replace(born, restarts=1, comment=marked(born.comment, mark(2, "99+1700000300+0", 4)))
    assert attempt(REF, [requeued]) == 4
