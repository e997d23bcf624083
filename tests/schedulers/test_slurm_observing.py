"""Looking at many jobs: how many questions are asked, and what is told apart. The far side is scripted."""

from __future__ import annotations

import pytest

from tests.schedulers.slurm_far import Far, job
from trainguard.core.errors import UnreachableError
from trainguard.core.observation import Liveness
from trainguard.schedulers.slurm import SlurmScheduler
from trainguard.schedulers.slurm.ids import JobId
from trainguard.schedulers.slurm.marks import Mark


@pytest.fixture
def far() -> Far:
    far = Far()
    far.sacct_problem = ""
    return far


@pytest.fixture
def slurm(far: Far) -> SlurmScheduler:
    return SlurmScheduler("c", shell=far)


async def liveness(slurm: SlurmScheduler, native: str) -> Liveness:
    return (await slurm.observe([job(native)]))[job(native).ref].liveness


async def test_a_thousand_live_jobs_are_one_round_trip_and_one_squeue(
    far: Far, slurm: SlurmScheduler
) -> None:
    for native in range(1, 1001):
        far.put(str(native), "RUNNING")
    seen = await slurm.observe([job(str(native)) for native in range(1, 1001)])
    assert {one.liveness for one in seen.values()} == {Liveness.RUNNING}
    assert (far.rounds, far.asked.count("squeue")) == (1, 1)


async def test_jobs_that_stay_ended_or_forgotten_cost_no_more_than_the_first_time(
    far: Far, slurm: SlurmScheduler
) -> None:
    """A hundred that failed, a hundred that the controller has forgotten."""
    jobs = [job(str(native)) for native in range(1, 201)]
    for native in range(1, 101):
        far.put(str(native), "FAILED", exit_code="768")
        far.account(str(native + 100), "FAILED", ExitCode="3:0")
    await slurm.observe(jobs)
    assert far.rounds <= 4
    far.rounds = 0
    seen = await slurm.observe(jobs)
    assert far.rounds == 1
    assert {one.liveness for one in seen.values()} == {Liveness.FAILED}


async def test_accounting_is_not_believed_while_the_controller_knows_the_job(
    far: Far, slurm: SlurmScheduler
) -> None:
    """After a node failure sacct says NODE_FAIL for seconds while Slurm has requeued the job."""
    far.put("7", "PENDING", RestartCnt="1", Reason="BeginTime")
    far.account("7", "NODE_FAIL")
    seen = (await slurm.observe([job("7")]))[job("7").ref]
    assert (seen.liveness, seen.restart_underway) == (Liveness.PENDING, True)
    assert "sacct" not in far.asked


async def test_accounting_that_lags_behind_is_no_verdict(far: Far, slurm: SlurmScheduler) -> None:
    far.account("7", "RUNNING")
    assert await liveness(slurm, "7") is Liveness.UNKNOWN


@pytest.mark.parametrize(
    ("problem", "expected"),
    [
        ("", Liveness.GONE),
        ("Slurm accounting storage is disabled", Liveness.GONE),
        ("Connection refused", Liveness.UNKNOWN),
    ],
)
async def test_missing_is_gone_only_where_both_have_answered(
    far: Far, slurm: SlurmScheduler, problem: str, expected: Liveness
) -> None:
    far.sacct_problem = problem
    assert await liveness(slurm, "7") is expected


async def test_a_live_job_that_vanishes_without_accounting_is_not_guessed(
    far: Far, slurm: SlurmScheduler
) -> None:
    far.sacct_problem = "Slurm accounting storage is disabled"
    far.put("7", "RUNNING")
    assert await liveness(slurm, "7") is Liveness.RUNNING
    far.queue.clear()
    assert await liveness(slurm, "7") is Liveness.UNKNOWN


async def test_a_reused_id_is_another_job(far: Far, slurm: SlurmScheduler) -> None:
    """Submitted later without a further restart; a requeue has one more."""
    far.put("7", "RUNNING", RestartCnt="0")
    assert await liveness(slurm, "7") is Liveness.RUNNING
    far.put("7", "RUNNING", RestartCnt="1", SubmitTime="1700000500")
    assert await liveness(slurm, "7") is Liveness.RUNNING
    far.put("7", "RUNNING", RestartCnt="0", SubmitTime="1700000700")
    assert await liveness(slurm, "7") is not Liveness.RUNNING


async def test_a_job_that_is_submitted_again_during_a_look_is_not_gone(
    far: Far, slurm: SlurmScheduler
) -> None:
    """It was asked for by its old id; that the new one does not show says nothing."""
    far.put("7", "RUNNING")
    assert await liveness(slurm, "7") is Liveness.RUNNING

    def submitted() -> None:
        far.put("901", "PENDING")
        slurm._observer.follow(job("7").ref, JobId(901))
        far.during = lambda: None

    far.during = submitted
    assert await liveness(slurm, "7") is Liveness.UNKNOWN
    assert await liveness(slurm, "7") is Liveness.PENDING


@pytest.mark.parametrize(
    "other", [{"User": "bob", "Submit": "1700090000"}, {"Submit": "1600000000"}], ids=["later", "earlier"]
)
async def test_the_end_of_another_job_with_the_same_id_is_not_this_ones(
    far: Far, slurm: SlurmScheduler, other: dict[str, str]
) -> None:
    """Ids come again; and for a moment accounting still tells the old job's end."""
    far.put("7", "FAILED", exit_code="768")
    first = (await slurm.observe([job("7")]))[job("7").ref]
    far.put("8", "RUNNING")
    assert await liveness(slurm, "8") is Liveness.RUNNING
    far.queue.clear()
    for native in ("7", "8"):
        far.account(native, "COMPLETED", **other)
    for _ in range(2):
        slurm._observer._memory[job("7").ref].asked = float("-inf")
        seen = (await slurm.observe([job("7")]))[job("7").ref]
        assert (seen.liveness, seen.incarnation) == (Liveness.FAILED, first.incarnation)
    assert await liveness(slurm, "8") is Liveness.UNKNOWN


async def test_while_a_job_is_killed_to_be_requeued_it_is_the_old_incarnation_that_ends(
    far: Far, slurm: SlurmScheduler
) -> None:
    """Slurm counts the next restart already; then the submit time moves. Seen on 22.05."""
    far.put("7", "RUNNING", RestartCnt="0")
    first = (await slurm.observe([job("7")]))[job("7").ref]
    far.put("7", "COMPLETING", RestartCnt="1")
    ends = (await slurm.observe([job("7")]))[job("7").ref]
    far.put("7", "PENDING", RestartCnt="1", SubmitTime="1700000500")
    again = (await slurm.observe([job("7")]))[job("7").ref]
    assert first.incarnation is not None
    assert ends.incarnation is not None
    assert again.incarnation is not None
    assert ends.incarnation.token == first.incarnation.token
    assert (ends.restart_underway, again.restart_underway) == (True, True)
    assert again.incarnation.token != first.incarnation.token


async def test_a_job_that_was_submitted_again_is_followed_by_its_mark(
    far: Far, slurm: SlurmScheduler
) -> None:
    """By a process that knows nothing of it; the newest attempt counts."""
    far.put("7", "FAILED", exit_code="768")
    for native, attempt in (("9", 3), ("8", 2)):
        mark = Mark(f"tg-x-{attempt}", "restart", "7+1700000000+0", "7", attempt)
        far.put(native, "RUNNING", Comment=f"mine {mark}")
    seen = (await slurm.observe([job("7")]))[job("7").ref]
    assert seen.incarnation is not None
    assert (seen.liveness, seen.incarnation.native_id, seen.incarnation.attempt) == (Liveness.RUNNING, "9", 3)


async def test_patrol_finds_a_job_that_was_submitted_again_under_the_name_that_its_guard_has(
    far: Far, slurm: SlurmScheduler
) -> None:
    """Under an id of its own it would get a second guard. A requeued job's marks name the job itself."""
    far.put("7", "FAILED")
    far.put("8", "RUNNING", Comment=str(Mark("tg-x-1", "restart", "8+1700000000+0", "8", 2)))
    again = Mark("tg-x-1", "restart", "7+1700000000+0", "7", 2)
    far.put("9", "RUNNING", Comment=f"{again} {Mark('tg-x-2', 'restart', '9+1700000500+0', '7', 3)}")
    far.put("10_3", "RUNNING", Comment=str(Mark("tg-y-1", "restart", "4_3+1700000000+0", "4_3", 2)))
    del far.queue["7"]  # squeue is asked for live jobs only
    assert {ref.id for ref in await slurm.discover("*")} == {"7", "8", "4_3"}


async def test_a_controller_that_does_not_answer_is_unreachable(far: Far, slurm: SlurmScheduler) -> None:
    far.squeue_problem = "slurm_load_jobs error: Unable to contact slurm controller (connect failure)"
    with pytest.raises(UnreachableError):
        await slurm.observe([job("7")])


async def test_a_word_never_heard_of_is_kept(far: Far, slurm: SlurmScheduler) -> None:
    far.put("7", "TG_NOVEL")
    seen = (await slurm.observe([job("7")]))[job("7").ref]
    assert (seen.liveness, seen.native) == (Liveness.UNKNOWN, "TG_NOVEL")


async def test_where_the_output_is_is_not_forgotten_for_a_silent_moment(
    far: Far, slurm: SlurmScheduler
) -> None:
    """A job with extra logs once stayed blind for its own output, as nothing was told at the first look."""
    watched = job("7", extra_logs=["/w/extra.log"])
    far.put("7", "RUNNING", STDOUT="/w/out.txt")
    await slurm.observe([watched])
    far.squeue_problem = "slurm_load_jobs error: Unable to contact slurm controller (connect failure)"
    with pytest.raises(UnreachableError):
        await slurm.logs(watched)
    far.squeue_problem = ""
    await slurm.logs(watched)
    assert far.read == ["/w/out.txt", "/w/extra.log"]


async def test_the_next_run_may_write_to_files_of_another_name(far: Far, slurm: SlurmScheduler) -> None:
    """They are asked for once a run; a job that Slurm has forgotten is read where it was last."""
    for restarts, node in (("0", "n1"), ("1", "n2")):
        far.put(
            "7", "RUNNING", STDOUT="/w/out-%N.txt", RestartCnt=restarts, NodeList=node, BatchHost=node,
            SubmitTime=f"170000{restarts}000",
        )  # fmt: skip
        await slurm.observe([job("7")])
        for _ in range(2):
            await slurm.logs(job("7"))
    assert far.read == ["/w/out-n1.txt", "/w/out-n1.txt", "/w/out-n2.txt", "/w/out-n2.txt"]
    far.queue.clear()
    await slurm.observe([job("7")])
    await slurm.logs(job("7"))
    assert far.read[-1] == "/w/out-n2.txt"


@pytest.mark.parametrize(
    ("age", "poll", "warned"), [("300", 10.0, False), ("12", 4.0, True), ("0", 10.0, False)]
)
async def test_a_controller_that_forgets_soon_is_asked_more_often(
    far: Far, slurm: SlurmScheduler, age: str, poll: float, warned: bool
) -> None:
    """The end of a job that is forgotten between two looks is missed; 0 forgets nothing."""
    far.put("7", "RUNNING")
    far.shown = f"SLURM_VERSION = 22.05\nMinJobAge = {age} sec\n"
    access = await slurm.validate(job("7"))
    assert slurm.poll_seconds == poll
    assert any("MinJobAge): how it ended can be missed" in warning for warning in access.warnings) is warned
