"""Contract points 6 to 9: acting once, on the right incarnation, and knowing afterwards whether it happened."""

from __future__ import annotations

import asyncio
import uuid

import pytest

from trainguard.core.action import Action, ActionKind, Fence, Outcome, OutcomeStatus
from trainguard.core.errors import RefusedError, SchedulerError, UnreachableError
from trainguard.core.job import Incarnation, Job, Resume, ResumeBy
from trainguard.core.observation import Liveness, Observation
from trainguard.schedulers.base import Scheduler
from trainguard.testing.contract_observe import incarnation_of, observe_one, running, until_liveness
from trainguard.testing.scheduler_lab import Ability, Lab, Workload


def new_fence() -> Fence:
    """Make a fence that nobody used."""
    return Fence(token=f"tg-{uuid.uuid4().hex[:12]}-1", incident="contract", lease=1)


def restart(incarnation: Incarnation, **more: object) -> Action:
    """Name the plain restart of one incarnation."""
    return Action.model_validate({"kind": ActionKind.RESTART, "incarnation": incarnation, **more})


async def crashed(lab: Lab, resume: Resume | None = None) -> tuple[Job, Incarnation]:
    """Start a job, let it run, make it fail, and wait until the adapter sees that."""
    job = await lab.start(Workload.HEALTHY, resume)
    await until_liveness(lab, job, Liveness.RUNNING)
    await lab.crash(job)
    return job, incarnation_of(await until_liveness(lab, job, Liveness.FAILED))


async def until_restarted(lab: Lab, job: Job, old: Incarnation) -> Observation:
    """Wait until another incarnation than `old` runs."""

    async def look() -> Observation | None:
        seen = await observe_one(lab.scheduler, job)
        other = seen.incarnation is not None and seen.incarnation.token != old.token
        return seen if other and seen.liveness is Liveness.RUNNING else None

    return await lab.until(look, "another incarnation runs")


async def starts_stay(lab: Lab, job: Job, expected: int) -> None:
    """Wait until the workload was started so often, then long enough to see that it was not once more."""

    async def look() -> bool | None:
        return True if await lab.starts(job) >= expected else None

    await lab.until(look, f"{expected} starts")
    await asyncio.sleep(lab.settle)
    assert await lab.starts(job) == expected


async def refused(lab: Lab, scheduler: Scheduler, job: Job, action: Action) -> None:
    """Check that the action is refused and leaves no trace of a start."""
    fence, before = new_fence(), await lab.starts(job)
    with pytest.raises(RefusedError):
        await scheduler.perform(job, action, fence)
    await starts_stay(lab, job, before)
    found = await scheduler.find(job, fence)
    assert found is None or found.status is OutcomeStatus.REFUSED


class ActionContract:
    """Points 6 to 9."""

    async def test_6_a_crashed_job_is_restarted_once(self, lab: Lab) -> None:
        """The new incarnation has a new token and the next attempt number."""
        job, old = await crashed(lab)
        fence = new_fence()
        outcome = await lab.scheduler.perform(job, restart(old), fence)
        assert outcome.status is OutcomeStatus.DONE
        assert outcome.fence == fence.token
        seen = await until_restarted(lab, job, old)
        assert incarnation_of(seen).attempt == old.attempt + 1
        if outcome.incarnation is not None:
            assert outcome.incarnation.token == incarnation_of(seen).token
        await starts_stay(lab, job, 2)

    async def test_6_the_same_fence_twice_acts_once(self, lab: Lab) -> None:
        """By the same process and by another; all get the same answer."""
        job, old = await crashed(lab)
        fence, action = new_fence(), restart(old)
        first = await lab.scheduler.perform(job, action, fence)
        second = await lab.scheduler.perform(job, action, fence)
        await until_restarted(lab, job, old)
        third = await lab.twin().perform(job, action, fence)
        assert {outcome.status for outcome in (first, second, third)} == {OutcomeStatus.DONE}
        assert {outcome.fence for outcome in (first, second, third)} == {fence.token}
        await starts_stay(lab, job, 2)

    async def test_6_the_same_fence_at_the_same_time_acts_once(self, lab: Lab) -> None:
        """One process that asks twice at once."""
        job, old = await crashed(lab)
        fence, action = new_fence(), restart(old)
        answers = await asyncio.gather(
            *(lab.scheduler.perform(job, action, fence) for _ in range(3)), return_exceptions=True
        )
        assert any(isinstance(answer, Outcome) and answer.status is OutcomeStatus.DONE for answer in answers)
        assert all(isinstance(answer, Outcome | SchedulerError) for answer in answers), answers
        await starts_stay(lab, job, 2)

    async def test_6_two_processes_with_one_fence_act_once(self, lab: Lab) -> None:
        """Where the cluster itself can decide."""
        lab.needs(Ability.CONCURRENT_FENCE)
        job, old = await crashed(lab)
        fence, action = new_fence(), restart(old)
        answers = await asyncio.gather(
            *(scheduler.perform(job, action, fence) for scheduler in (lab.twin(), lab.twin(), lab.scheduler)),
            return_exceptions=True,
        )
        assert all(isinstance(answer, Outcome | SchedulerError) for answer in answers), answers
        await until_restarted(lab, job, old)
        await starts_stay(lab, job, 2)

    async def test_6_a_running_job_is_replaced_and_never_runs_twice(self, lab: Lab) -> None:
        """The hung one is dead before the new one starts."""
        job, old = await running(lab)
        most = 0
        done = asyncio.Event()

        async def begun() -> bool | None:
            return True if await lab.alive(job) else None

        await lab.until(begun, "its process")  # a scheduler may call it running a moment before

        async def count() -> None:
            nonlocal most
            while not done.is_set():
                most = max(most, await lab.alive(job))
                await asyncio.sleep(lab.tick)

        counting = asyncio.create_task(count())
        outcome = await lab.scheduler.perform(job, restart(old), new_fence())
        assert outcome.status is OutcomeStatus.DONE
        await until_restarted(lab, job, old)
        done.set()
        await counting
        assert most == 1
        await starts_stay(lab, job, 2)

    async def test_6_tokens_never_repeat_over_restarts(self, lab: Lab) -> None:
        """Three incarnations, three tokens, three attempts."""
        job, one = await crashed(lab)
        await lab.scheduler.perform(job, restart(one), new_fence())
        two = incarnation_of(await until_restarted(lab, job, one))
        await lab.scheduler.perform(job, restart(two), new_fence())
        three = incarnation_of(await until_restarted(lab, job, two))
        assert len({one.token, two.token, three.token}) == 3
        assert [one.attempt, two.attempt, three.attempt] == [1, 2, 3]

    @pytest.mark.parametrize("by", [way for way in ResumeBy if way is not ResumeBy.NOTHING])
    async def test_6_a_restart_tells_the_job_where_to_resume(self, lab: Lab, by: ResumeBy) -> None:
        """By the way that the job declares."""
        if by not in lab.resume_ways:
            pytest.skip(f"{type(lab).__name__} can't resume by {by}")
        names = {ResumeBy.ARGUMENT: "--resume", ResumeBy.ENVIRONMENT: "TG_RESUME", ResumeBy.SYMLINK: "latest"}
        job, old = await crashed(lab, Resume(by=by, name=names[by]))
        assert job.checkpoints is not None
        checkpoint = f"{job.checkpoints.directory}/step 10;$(x).pt"
        await lab.scheduler.perform(job, restart(old, checkpoint=checkpoint, checkpoint_step=10), new_fence())
        await until_restarted(lab, job, old)

        async def look() -> str | None:
            return await lab.resumed_from(job)

        assert await lab.until(look, "the job says what it resumes from") == checkpoint

    async def test_6_cancel_ends_the_job_and_it_counts_as_stopped(self, lab: Lab) -> None:
        """Ended on purpose is not failed; cancelling again with the same fence is the same outcome."""
        if ActionKind.CANCEL not in lab.scheduler.supports:
            pytest.skip("the adapter does not cancel")
        job, incarnation = await running(lab)
        fence, action = new_fence(), Action(kind=ActionKind.CANCEL, incarnation=incarnation)
        assert (await lab.scheduler.perform(job, action, fence)).status is OutcomeStatus.DONE
        await until_liveness(lab, job, Liveness.STOPPED)
        assert (await lab.twin().perform(job, action, fence)).status is OutcomeStatus.DONE
        assert await lab.alive(job) == 0

    async def test_7_what_the_adapter_can_not_do_is_refused(self, lab: Lab) -> None:
        """Every other action of the vocabulary; advice is never performed."""
        assert not any(kind.advice for kind in lab.scheduler.supports)
        job, incarnation = await running(lab)
        for kind in sorted(set(ActionKind) - lab.scheduler.supports):
            with pytest.raises(RefusedError):
                await lab.scheduler.perform(job, Action(kind=kind, incarnation=incarnation), new_fence())
        seen = await observe_one(lab.scheduler, job)
        assert seen.liveness is Liveness.RUNNING
        assert incarnation_of(seen).token == incarnation.token

    async def test_7_an_action_for_another_incarnation_is_refused(self, lab: Lab) -> None:
        """A late answer must not hit the job that runs now."""
        job, incarnation = await running(lab)
        stranger = incarnation.model_copy(update={"token": incarnation.token + "x"})
        await refused(lab, lab.scheduler, job, restart(stranger))
        assert (await observe_one(lab.scheduler, job)).liveness is Liveness.RUNNING

    async def test_7_an_incarnation_is_replaced_only_once(self, lab: Lab) -> None:
        """A second action with another fence, meant for the incarnation that the first replaced."""
        job, old = await crashed(lab)
        await lab.scheduler.perform(job, restart(old), new_fence())
        await until_restarted(lab, job, old)
        await starts_stay(lab, job, 2)
        await refused(lab, lab.scheduler, job, restart(old))
        await refused(lab, lab.twin(), job, restart(old))

    async def test_7_a_job_that_its_owner_stopped_is_not_restarted(self, lab: Lab) -> None:
        """Whatever the guard had in mind."""
        job, incarnation = await running(lab)
        await lab.stop_by_owner(job)
        await until_liveness(lab, job, Liveness.STOPPED)
        await refused(lab, lab.scheduler, job, restart(incarnation))

    async def test_7_a_job_that_finished_is_not_restarted(self, lab: Lab) -> None:
        """It has done its work."""
        job = await lab.start(Workload.FINISHING)
        seen = await until_liveness(lab, job, Liveness.SUCCEEDED)
        await refused(lab, lab.scheduler, job, restart(incarnation_of(seen)))

    async def test_7_a_job_that_its_owner_holds_is_not_restarted(self, lab: Lab) -> None:
        """A hold is a word of the owner."""
        lab.needs(Ability.OWNER_HOLD)
        job, incarnation = await crashed(lab)
        await lab.hold_by_owner(job)
        await refused(lab, lab.scheduler, job, restart(incarnation))

    async def test_7_a_job_that_the_scheduler_brings_back_is_left_alone(self, lab: Lab) -> None:
        """And the observation says that it is under way."""
        lab.needs(Ability.OWN_RESTART)
        job, incarnation = await running(lab)
        await lab.begin_own_restart(job)

        async def look() -> Observation | None:
            seen = await observe_one(lab.scheduler, job)
            return seen if seen.restart_underway else None

        seen = await lab.until(look, "restart_underway")
        await refused(lab, lab.scheduler, job, restart(seen.incarnation or incarnation))

    async def test_7_an_unheard_of_job_is_not_acted_on(self, lab: Lab) -> None:
        """There is nothing to restart."""
        job = lab.unheard_of()
        nobody = Incarnation(job=job.ref, token="nobody")  # noqa: S106 - not a password
        with pytest.raises(SchedulerError) as raised:
            await lab.scheduler.perform(job, restart(nobody), new_fence())
        assert not isinstance(raised.value, UnreachableError)

    async def test_8_a_fence_never_used_is_not_found(self, lab: Lab) -> None:
        """None: it did not happen, and nothing of it is under way."""
        job, _ = await running(lab)
        assert await lab.scheduler.find(job, new_fence()) is None

    async def test_8_what_was_done_is_found_by_another_process(self, lab: Lab) -> None:
        """After a crash between the action and its record, the fence decides."""
        job, old = await crashed(lab)
        fence = new_fence()
        await lab.scheduler.perform(job, restart(old), fence)
        found = await lab.twin().find(job, fence)
        assert found is not None
        assert found.status is OutcomeStatus.DONE
        assert found.fence == fence.token
        assert await lab.twin().find(job, new_fence()) is None

    async def test_8_where_nothing_can_be_read_find_does_not_guess(self, lab: Lab) -> None:
        """None would mean that acting again is safe."""
        job, _ = await running(lab)
        async with lab.unreachable():
            with pytest.raises(UnreachableError):
                await lab.scheduler.find(job, new_fence())

    async def test_9_an_action_that_was_never_sent_did_not_happen(self, lab: Lab) -> None:
        """Unreachable or unknown; once the cluster can be reached, `find` says none, and it can be done."""
        job, old = await crashed(lab)
        fence = new_fence()
        async with lab.unreachable():
            try:
                outcome = await lab.scheduler.perform(job, restart(old), fence)
            except UnreachableError:
                pass
            else:
                assert outcome.status is OutcomeStatus.UNKNOWN
        await starts_stay(lab, job, 1)
        assert await lab.scheduler.find(job, fence) is None
        assert (await lab.scheduler.perform(job, restart(old), fence)).status is OutcomeStatus.DONE
        await until_restarted(lab, job, old)
        await starts_stay(lab, job, 2)

    async def test_9_an_action_whose_answer_was_lost_is_unknown_then_found(self, lab: Lab) -> None:
        """Unknown is no refusal and no success; asking again with the same fence acts no second time."""
        lab.needs(Ability.LOSE_ANSWER)
        job, old = await crashed(lab)
        fence = new_fence()
        async with lab.answers_lost():
            outcome = await lab.scheduler.perform(job, restart(old), fence)
        assert outcome.status is OutcomeStatus.UNKNOWN

        async def look() -> Outcome | None:
            return await lab.scheduler.find(job, fence)

        found = await lab.until(look, "the action is found")
        assert found.status is OutcomeStatus.DONE
        again = await lab.scheduler.perform(job, restart(old), fence)
        assert again.status is OutcomeStatus.DONE
        await until_restarted(lab, job, old)
        await starts_stay(lab, job, 2)
