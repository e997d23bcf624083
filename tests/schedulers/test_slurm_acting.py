"""Acting once: what is done after lost answers, half-way stops and refusals. The far side is scripted."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from tests.schedulers.slurm_far import Far, act, fence, job
from trainguard.core.action import ActionKind, OutcomeStatus
from trainguard.core.errors import AccessRefusedError, RefusedError, UnreachableError
from trainguard.core.job import CheckpointSpec, Job, Resume, ResumeBy
from trainguard.core.observation import Liveness, Observation
from trainguard.schedulers.slurm import SlurmScheduler, finding
from trainguard.transports.posix_shell import Result

HELD = "launch failed requeued held"
DENIED = Result(1, b"", b"Access/permission denied")


@pytest.fixture
def far(monkeypatch: pytest.MonkeyPatch) -> Far:
    far = Far()
    clock = SimpleNamespace(monotonic=lambda: far.clock, time=lambda: far.clock)
    monkeypatch.setattr(finding, "time", clock)
    return far


@pytest.fixture
def slurm(far: Far) -> SlurmScheduler:
    return SlurmScheduler("c", shell=far)


async def look(slurm: SlurmScheduler, native: str = "7") -> Observation:
    return (await slurm.observe([job(native)]))[job(native).ref]


def resuming(native: str = "7") -> Job:
    resume = Resume(by=ResumeBy.ENVIRONMENT, name="FROM")
    return job(native, checkpoints=CheckpointSpec(directory="/w", resume=resume))


async def settled(far: Far, slurm: SlurmScheduler, native: str = "7") -> None:
    """Let time pass until the finder no longer waits for a late request; nothing was found by then."""
    for _ in range(3):
        far.clock += 200
        try:
            assert await slurm.find(job(native), fence()) is None
        except UnreachableError:
            continue
        return
    raise AssertionError("it is waited for without end")


async def test_a_lost_sbatch_is_not_taken_for_missing_while_it_may_still_be_at_work(
    far: Far, slurm: SlurmScheduler
) -> None:
    """An sbatch runs on for up to a minute after the connection was cut. Then the controller must have
    answered for a while: one that was silent until now may have the request before it."""
    far.put("7", "FAILED", Requeue="0")
    action = act(await look(slurm))
    far.lose = "sbatch"
    assert (await slurm.perform(job("7"), action, fence())).status is OutcomeStatus.UNKNOWN
    far.lose = ""
    for one in (slurm, SlurmScheduler("c", shell=far)):  # the other knows the note alone
        for seconds in (46, 60, 79):
            far.clock += seconds - (far.clock - 1_700_001_000)
            with pytest.raises(UnreachableError, match="may still be carried out"):
                await one.perform(job("7"), action, fence())
    assert far.done == []
    far.clock += 200
    with pytest.raises(UnreachableError, match="in 20 s"):
        await slurm.find(job("7"), fence())
    comment = f"[tg-x-1 restart of {action.incarnation.token} job 7 attempt 2]"
    far.put("901", "PENDING", Comment=comment, SubmitTime="1700001050")
    far.clock += 30
    outcome = await slurm.perform(job("7"), action, fence())
    assert (outcome.status, far.done) == (OutcomeStatus.DONE, [])


async def test_a_lost_sbatch_that_never_came_is_repeated_once(far: Far, slurm: SlurmScheduler) -> None:
    far.put("7", "FAILED", Requeue="0")
    action = act(await look(slurm))
    far.lose = "sbatch"
    await slurm.perform(job("7"), action, fence())
    far.lose = ""
    await settled(far, slurm)
    for _ in range(2):
        assert (await slurm.perform(job("7"), action, fence())).status is OutcomeStatus.DONE
    assert far.done == ["sbatch"]


@pytest.mark.parametrize("state", ["CANCELLED", "COMPLETED"])
async def test_what_has_ended_meanwhile_is_not_revived_by_taking_up_a_lost_restart(
    far: Far, slurm: SlurmScheduler, state: str
) -> None:
    """The mark was written, the requeue got lost, and then the owner cancelled the job or it finished."""
    far.put("7", "RUNNING")
    action = act(await look(slurm))
    far.lose = "requeue"
    assert (await slurm.perform(job("7"), action, fence())).status is OutcomeStatus.UNKNOWN
    far.lose = ""
    far.queue["7"]["State"] = state
    await settled(far, slurm)
    with pytest.raises(RefusedError, match="has ended"):
        await slurm.perform(job("7"), action, fence())
    assert not any(line.startswith("requeue") for line in far.done)


async def test_a_begun_restart_is_not_taken_up_on_another_incarnation(
    far: Far, slurm: SlurmScheduler
) -> None:
    """The note alone is there; the id that the job has now is that of a later submission."""
    far.put("7", "FAILED", Requeue="0")
    action = act(await look(slurm))
    far.lose = "sbatch"
    await slurm.perform(job("7"), action, fence())
    far.lose = ""
    comment = f"[tg-x-9 restart of {action.incarnation.token} job 7 attempt 2]"
    far.put("55", "RUNNING", Comment=comment, SubmitTime="1700001060")
    await settled(far, slurm)
    with pytest.raises(RefusedError, match="another incarnation"):
        await slurm.perform(job("7"), action, fence())
    assert far.done == []


async def test_no_running_job_is_cancelled_for_a_submission_that_there_is_not(
    far: Far, slurm: SlurmScheduler
) -> None:
    """The note was written and all else got lost: there is no successor, so nothing may end the job."""
    far.put("7", "RUNNING")
    action = act(await look(slurm))
    far.lose = "update"
    await slurm.perform(job("7"), action, fence())
    far.lose = ""
    await settled(far, slurm)
    assert (await slurm.perform(job("7"), action, fence())).status is OutcomeStatus.DONE
    assert not any(line.startswith("scancel") for line in far.done)
    assert sum(line.startswith("requeue ") for line in far.done) == 1


@pytest.mark.parametrize("noted", [True, False])
async def test_a_job_that_was_let_go_after_a_failed_launch_is_not_killed_by_taking_that_up(
    far: Far, slurm: SlurmScheduler, noted: bool
) -> None:
    """Letting go changes no identity: it runs, healthy, under the token that the restart was meant for."""
    far.put("7", "PENDING", Reason=HELD, RestartCnt="1", StartTime="")
    far.nodes = [("n1", "idle", ""), ("n2", "idle", "")]
    action = act(await look(slurm), ActionKind.RESTART_EXCLUDING_NODE, nodes=["n1"])
    far.lose = "update JobId=7 StartTime"
    await slurm.perform(job("7"), action, fence())
    far.lose = ""
    far.clock += 300
    far.queue["7"] |= {"State": "RUNNING", "Reason": "", "StartTime": f"{far.clock - 200:.0f}"}
    if not noted:
        far.notes.clear()
    other = SlurmScheduler("c", shell=far)
    outcome = await other.perform(job("7"), action, fence())
    assert outcome.status is OutcomeStatus.DONE
    assert not any(line.startswith("requeue") for line in far.done)


async def test_all_failed_elements_of_a_large_array_come_back(far: Far, slurm: SlurmScheduler) -> None:
    for task in range(450):
        far.put(f"7_{task}", "FAILED" if task else "RUNNING")
    outcome = await slurm.perform(job("7"), act(await look(slurm)), fence())
    assert outcome.status is OutcomeStatus.DONE
    assert sum(line.startswith("requeue 7_") for line in far.done) == 449
    assert far.queue["7_0"]["State"] == "RUNNING"


async def test_elements_that_are_refused_are_named_and_the_note_stays_for_the_others(
    far: Far, slurm: SlurmScheduler
) -> None:
    for task in range(1, 6):
        far.put(f"7_{task}", "FAILED")
    far.answers["requeue 7_2"] = Result(1, b"", b"Requested operation is presently disabled")
    outcome = await slurm.perform(job("7"), act(await look(slurm)), fence())
    assert outcome.status is OutcomeStatus.DONE
    assert "7_2: Requested operation is presently disabled" in outcome.detail
    assert "tg-x-1" in far.notes
    assert [far.queue[f"7_{task}"]["State"] for task in range(1, 6)].count("PENDING") == 4


async def test_where_every_element_is_refused_nothing_changed_and_no_note_stays(
    far: Far, slurm: SlurmScheduler
) -> None:
    for task in (1, 2):
        far.put(f"7_{task}", "FAILED")
    far.answers["requeue"] = DENIED
    with pytest.raises(AccessRefusedError):
        await slurm.perform(job("7"), act(await look(slurm)), fence())
    assert far.notes == {}


async def test_an_array_that_hangs_is_restarted_without_its_finished_elements(
    far: Far, slurm: SlurmScheduler
) -> None:
    """Slurm would run a completed element again."""
    far.put("7_1", "RUNNING")
    far.put("7_2", "COMPLETED")
    await slurm.perform(job("7"), act(await look(slurm)), fence())
    assert [line for line in far.done if line.startswith("requeue")] == ["requeue 7_1"]


async def test_a_change_without_the_right_says_that_the_job_stays_held(
    far: Far, slurm: SlurmScheduler
) -> None:
    far.put("7", "FAILED", TimeLimit="10:00")
    far.nodes = [("n1", "idle", "")]
    far.shown = "PartitionName=gpu MaxTime=UNLIMITED"
    action = act(await look(slurm), ActionKind.EXTEND_TIME_LIMIT)
    far.answers["update JobId=7 TimeLimit"] = DENIED
    outcome = await slurm.perform(job("7"), action, fence())
    assert outcome.status is OutcomeStatus.REFUSED
    assert "stays held" in outcome.detail


async def test_after_a_node_failure_nothing_is_done_while_the_nodes_states_are_not_told(
    far: Far, slurm: SlurmScheduler
) -> None:
    """The old processes may live on the node: not knowing which is down is not knowing that none is."""
    far.put("7", "NODE_FAIL", NodeList="n1", Requeue="1", EndTime="1700000100")
    far.nodes = [("n1", "down*", "Not responding"), ("n2", "idle", "")]
    action = act(await look(slurm))
    calls = far.asked.count("sinfo")
    far.sinfo_fails = {
        calls + 3,
        calls + 4,
    }  # after those of `find`: in the look, and where they are asked for
    with pytest.raises(UnreachableError):
        await slurm.perform(job("7"), action, fence())
    assert far.done == []
    calls = far.asked.count("sinfo")
    far.sinfo_fails = {calls + 3}
    outcome = await slurm.perform(job("7"), action, fence())
    assert "without n1" in outcome.detail


async def test_memory_per_cpu_is_counted_by_the_node(far: Far, slurm: SlurmScheduler) -> None:
    """Four nodes with eight tasks of 500 MB each have 4000 MB a node, not 16000."""
    far.put("7", "FAILED", NumNodes="4", NumTasks="32")
    far.nodes = [(f"n{number}", "idle", "") for number in range(1, 6)]
    far.memory = 6000
    far.shown = "MinMemoryCPU=500M MaxTime=UNLIMITED"
    outcome = await slurm.perform(
        job("7"), act(await look(slurm), ActionKind.RESTART_WITH_MORE_MEMORY), fence()
    )
    assert "6000 MB a node instead of 4000" in outcome.detail


async def test_a_hung_job_that_may_not_be_requeued_is_submitted_again_and_then_ended(
    far: Far, slurm: SlurmScheduler
) -> None:
    """The successor waits for the end of the old one, and that is ended only once there is a successor."""
    far.put("7", "RUNNING", Requeue="0")
    outcome = await slurm.perform(job("7"), act(await look(slurm)), fence())
    assert outcome.status is OutcomeStatus.DONE
    assert far.done == ["sbatch", "scancel 7"]
    assert "--dependency=afterany:7" in far.queue["901"]["options"]


@pytest.mark.parametrize("native", ["7+0", "7_1"])
async def test_parts_that_may_not_be_requeued_are_not_submitted_again(
    far: Far, slurm: SlurmScheduler, native: str
) -> None:
    far.put(native, "RUNNING", Requeue="0")
    if native == "7_1":
        far.put("7_2", "RUNNING", Requeue="0")
    with pytest.raises(RefusedError):
        await slurm.perform(job("7"), act(await look(slurm)), fence())
    assert far.done == []


async def test_an_operator_submits_nobodys_job_as_its_own(far: Far, slurm: SlurmScheduler) -> None:
    far.put("7", "FAILED", Requeue="0")
    far.put("8", "FAILED")
    far.user = "root"
    with pytest.raises(RefusedError, match="would then be root's"):
        await slurm.perform(job("7"), act(await look(slurm)), fence())
    assert far.done == []
    assert (await slurm.perform(job("8"), act(await look(slurm, "8")), fence(2))).status is OutcomeStatus.DONE
    far.shown = "SLURM_VERSION = 22.05\nSlurmUser = slurm(64030)\nMinJobAge = 300 sec\n"
    assert any("requeued only" in warning for warning in (await slurm.validate(job("8"))).warnings)


async def test_a_comment_without_room_for_a_mark_is_refused_before_slurm_refuses_it(
    far: Far, slurm: SlurmScheduler
) -> None:
    far.put("7", "FAILED", Requeue="0", Comment="x" * 990)
    with pytest.raises(RefusedError, match="no room for a mark"):
        await slurm.perform(job("7"), act(await look(slurm)), fence())


async def test_a_job_that_is_held_half_way_is_still_what_the_action_was_meant_for(
    far: Far, slurm: SlurmScheduler
) -> None:
    """A guard that comes back looks whether its action is stale; the owner's own requeue makes it that."""
    far.put("7", "FAILED", TimeLimit="10:00", EndTime="1700000100")
    far.nodes = [("n1", "idle", "")]
    far.shown = "PartitionName=gpu MaxTime=UNLIMITED"
    action = act(await look(slurm), ActionKind.EXTEND_TIME_LIMIT)
    far.lose = "update JobId=7 TimeLimit"
    assert (await slurm.perform(job("7"), action, fence())).status is OutcomeStatus.UNKNOWN
    far.lose = ""
    back = SlurmScheduler("c", shell=far)
    seen = await look(back)
    assert (seen.liveness, seen.incarnation) == (Liveness.PENDING, action.incarnation)
    outcome = await back.perform(job("7"), action, fence())
    assert (outcome.status, far.queue["7"]["Reason"]) == (OutcomeStatus.DONE, "Resources")
    assert outcome.incarnation is not None
    assert outcome.incarnation.token != action.incarnation.token
    far.queue["7"] |= {"Reason": "job requeued in held state", "RestartCnt": "2", "SubmitTime": "1700001500"}
    again = await look(back)
    assert again.incarnation is not None
    assert again.incarnation.token == "7+1700001500+2"


async def test_a_job_is_not_submitted_again_from_less_than_silent_accounting_knows(
    far: Far, slurm: SlurmScheduler
) -> None:
    """Its options and environment are there, only not told at this moment."""
    far.put("7", "FAILED", Requeue="0")
    action = act(await look(slurm))
    far.sacct_silent = True
    with pytest.raises(UnreachableError, match="accounting"):
        await slurm.perform(job("7"), action, fence())
    assert far.done == []


async def test_a_job_whose_old_processes_end_late_is_let_go_and_not_left_held(
    far: Far, slurm: SlurmScheduler
) -> None:
    """What became of it is told once they have ended, or once it is known that they will not."""
    far.put("7", "RUNNING", TimeLimit="10:00")
    far.nodes = [("n1", "idle", "")]
    far.shown = "PartitionName=gpu MaxTime=UNLIMITED"
    action = act(await look(slurm), ActionKind.EXTEND_TIME_LIMIT)
    far.ending = True
    slurm._actor._patience = 0
    assert (await slurm.perform(job("7"), action, fence())).status is OutcomeStatus.UNKNOWN
    for one in (slurm, SlurmScheduler("c", shell=far)):
        with pytest.raises(UnreachableError, match="still end"):
            await one.find(job("7"), fence())
    far.clock += 400
    assert await slurm.find(job("7"), fence()) is None
    far.queue["7"] |= {"State": "PENDING", "SubmitTime": f"{far.clock:.0f}"}
    assert (await look(slurm)).incarnation == action.incarnation
    assert (await slurm.perform(job("7"), action, fence())).status is OutcomeStatus.DONE
    assert far.queue["7"]["Reason"] == "Resources"


@pytest.mark.parametrize("state", ["PENDING", "CANCELLED"])
async def test_the_old_job_is_ended_only_while_its_successor_waits(
    far: Far, slurm: SlurmScheduler, state: str
) -> None:
    """The guard died between sbatch and scancel; meanwhile the owner may have cancelled the successor."""
    far.put("7", "RUNNING", Requeue="0")
    action = act(await look(slurm))
    far.lose = "scancel"
    assert (await slurm.perform(job("7"), action, fence())).status is OutcomeStatus.UNKNOWN
    far.lose = ""
    far.queue["901"]["State"] = state
    outcome = await SlurmScheduler("c", shell=far).perform(job("7"), action, fence())
    waits = state == "PENDING"
    assert outcome.status is (OutcomeStatus.DONE if waits else OutcomeStatus.REFUSED)
    assert far.done == (["sbatch", "scancel 7"] if waits else ["sbatch"])


async def test_a_job_that_its_owner_requeued_and_held_later_is_not_let_go(
    far: Far, slurm: SlurmScheduler
) -> None:
    """The restart had come about before the guard died; what holds the job now is somebody else."""
    far.put("7", "FAILED", EndTime="1700000100")
    action = act(await look(slurm))
    await slurm.perform(job("7"), action, fence())
    row = far.queue["7"]
    row |= {"RestartCnt": "2", "SubmitTime": "1700001500", "Reason": "job requeued in held state"}
    outcome = await SlurmScheduler("c", shell=far).perform(job("7"), action, fence())
    assert outcome.status is OutcomeStatus.DONE
    assert row["Reason"] == "job requeued in held state"


async def test_a_home_that_does_not_answer_is_not_one_without_a_note(far: Far, slurm: SlurmScheduler) -> None:
    far.put("7", "FAILED", Requeue="0")
    action = act(await look(slurm))
    far.lose = "sbatch"
    await slurm.perform(job("7"), action, fence())
    far.lose = ""
    far.home_hangs = True
    far.clock += 500
    with pytest.raises(UnreachableError, match="begun can't be read"):
        await SlurmScheduler("c", shell=far).perform(job("7"), action, fence())
    assert far.done == []
