"""Contract points 1 to 4, 10 and 11: seeing jobs, telling gone from failed from unreachable, closing."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

from trainguard.core.errors import ConfigError, NotFoundError, SchedulerError, UnreachableError
from trainguard.core.evidence import EvidenceKind
from trainguard.core.job import Incarnation, Job, JobRef
from trainguard.core.observation import Liveness, Observation
from trainguard.schedulers.base import Scheduler
from trainguard.testing.scheduler_lab import CRASH_LINE, Ability, Lab, Workload

LOOKS_FINE_OR_DEAD = {
    Liveness.RUNNING,
    Liveness.PENDING,
    Liveness.FAILED,
    Liveness.SUCCEEDED,
    Liveness.STOPPED,
    Liveness.GONE,
}


async def observe_one(scheduler: Scheduler, job: Job) -> Observation:
    """Observe one job."""
    return (await scheduler.observe([job]))[job.ref]


async def until_liveness(lab: Lab, job: Job, *wanted: Liveness) -> Observation:
    """Wait until the adapter sees the job in one of these states."""
    last: list[Observation] = []

    async def look() -> Observation | None:
        last[:] = [await observe_one(lab.scheduler, job)]
        return last[0] if last[0].liveness in wanted else None

    try:
        return await lab.until(look, f"{job.ref.key} is {' or '.join(wanted)}")
    except pytest.fail.Exception as error:
        pytest.fail(f"{error}; last seen: {last}")


def incarnation_of(observation: Observation) -> Incarnation:
    """Take the incarnation that a live job's observation must have."""
    assert observation.incarnation is not None, f"no incarnation in {observation}"
    return observation.incarnation


async def running(lab: Lab, workload: Workload = Workload.HEALTHY) -> tuple[Job, Incarnation]:
    """Start a job and wait until the adapter sees it run, and it does."""
    job = await lab.start(workload)
    seen = await until_liveness(lab, job, Liveness.RUNNING)

    async def begun() -> bool | None:
        return await lab.starts(job) >= 1 or None

    await lab.until(begun, "the command has begun")  # a scheduler calls it running a moment before
    return job, incarnation_of(seen)


class ObserveContract:
    """Points 1 to 4, 10 and 11."""

    async def test_1_nothing_asked_is_nothing_answered(self, lab: Lab) -> None:
        """An empty question costs nothing and fails nothing."""
        assert dict(await lab.scheduler.observe([])) == {}

    async def test_1_many_jobs_are_answered_at_once(self, lab: Lab) -> None:
        """Every job asked is in the answer, the unheard-of and the doubly asked among them."""
        jobs = [await lab.start(Workload.HEALTHY), await lab.start(Workload.FINISHING), lab.unheard_of()]
        for job in jobs:
            assert job.ref.scheduler == lab.scheduler.name
            assert job.ref.cluster == lab.scheduler.cluster
        seen = await lab.scheduler.observe([*jobs, jobs[0]])
        assert set(seen) == {job.ref for job in jobs}
        assert all(observation.job == ref for ref, observation in seen.items())

    async def test_1_a_running_job_is_running(self, lab: Lab) -> None:
        """With who says so, when, and which incarnation it is."""
        job, incarnation = await running(lab)
        before = time.time()
        seen = await observe_one(lab.scheduler, job)
        assert seen.liveness is Liveness.RUNNING
        assert incarnation.job == job.ref
        assert incarnation.token
        assert incarnation.attempt == 1
        assert seen.source
        assert abs(seen.at - before) < 60 + lab.patience
        assert seen.exit_code is None
        assert seen.exit_signal is None

    async def test_1_a_crashed_job_is_failed_with_its_exit_code(self, lab: Lab) -> None:
        """The code is the workload's own, not the scheduler's."""
        job = await lab.start(Workload.CRASHING)
        seen = await until_liveness(lab, job, Liveness.FAILED)
        assert seen.exit_code == 3
        assert seen.oom_killed is not True

    async def test_1_a_finished_job_is_succeeded(self, lab: Lab) -> None:
        """Exit code 0, as the scheduler's terminal state."""
        job = await lab.start(Workload.FINISHING)
        seen = await until_liveness(lab, job, Liveness.SUCCEEDED, Liveness.FAILED, Liveness.GONE)
        assert seen.liveness is Liveness.SUCCEEDED
        assert seen.exit_code in (None, 0)

    async def test_1_a_job_stopped_by_its_owner_is_stopped_not_failed(self, lab: Lab) -> None:
        """Nobody revives what its owner ended."""
        job, _ = await running(lab)
        await lab.stop_by_owner(job)
        seen = await until_liveness(lab, job, Liveness.STOPPED, Liveness.FAILED, Liveness.SUCCEEDED)
        assert seen.liveness is Liveness.STOPPED

    async def test_1_an_unreachable_cluster_says_nothing_about_its_jobs(self, lab: Lab) -> None:
        """Never healthy, never failed, never gone; and the truth again once it can be reached."""
        job, incarnation = await running(lab)
        async with lab.unreachable():
            try:
                seen = await observe_one(lab.scheduler, job)
            except UnreachableError:
                pass
            else:
                assert seen.liveness is Liveness.UNKNOWN
                assert seen.reason
                assert seen.exit_code is None
        again = await until_liveness(lab, job, Liveness.RUNNING)
        assert incarnation_of(again).token == incarnation.token

    async def test_1_validate_says_what_can_be_seen_and_done_and_why_not(self, lab: Lab) -> None:
        """Every action the adapter supports is either possible or has a reason why it is not."""
        job, _ = await running(lab)
        access = await lab.scheduler.validate(job)
        assert access.job_seen
        assert access.logs_readable
        assert access.possible <= lab.scheduler.supports
        assert not access.possible & set(access.impossible)
        assert lab.scheduler.supports <= access.possible | set(access.impossible)
        assert all(access.impossible.values()), "an impossible action without a reason"

    async def test_1_validate_of_an_unreachable_cluster_says_so(self, lab: Lab) -> None:
        """It is not the job's fault, nor the credentials'."""
        job, _ = await running(lab)
        async with lab.unreachable():
            with pytest.raises(UnreachableError):
                await lab.twin().validate(job)

    async def test_2_an_unheard_of_job_is_gone_not_finished(self, lab: Lab) -> None:
        """Nor failed, nor unknown: the cluster answered."""
        job = lab.unheard_of()
        assert (await observe_one(lab.scheduler, job)).liveness is Liveness.GONE

    async def test_2_validate_of_an_unheard_of_job_raises(self, lab: Lab) -> None:
        """Who registers a job that does not exist learns it at once."""
        with pytest.raises(NotFoundError):
            await lab.scheduler.validate(lab.unheard_of())

    async def test_3_the_schedulers_own_word_is_kept(self, lab: Lab) -> None:
        """For each state there is one."""
        job = await lab.start(Workload.CRASHING)
        seen = await until_liveness(lab, job, Liveness.FAILED)
        assert seen.native

    async def test_3_a_word_never_heard_of_is_unknown(self, lab: Lab) -> None:
        """A newer scheduler's new state is neither healthy nor failed."""
        lab.needs(Ability.NATIVE_WORD)
        job, _ = await running(lab)
        await lab.say(job, "TG_NOVEL_WORD")
        seen = await until_liveness(lab, job, Liveness.UNKNOWN)
        assert "TG_NOVEL_WORD" in seen.native

    async def test_4_an_incarnation_keeps_its_token(self, lab: Lab) -> None:
        """Over looks, and over processes that look."""
        job, incarnation = await running(lab)
        await asyncio.sleep(lab.settle)
        assert incarnation_of(await observe_one(lab.scheduler, job)).token == incarnation.token
        assert incarnation_of(await observe_one(lab.twin(), job)).token == incarnation.token

    async def test_4_a_failed_incarnation_keeps_the_token_it_ran_with(self, lab: Lab) -> None:
        """An action on a failed job names the incarnation that failed."""
        job, incarnation = await running(lab)
        await lab.crash(job)
        seen = await until_liveness(lab, job, Liveness.FAILED)
        assert incarnation_of(seen).token == incarnation.token

    async def test_4_two_jobs_never_share_a_token(self, lab: Lab) -> None:
        """Not even when started in the same second."""
        one, two = await lab.start(Workload.HEALTHY), await lab.start(Workload.HEALTHY)
        tokens = {
            incarnation_of(await until_liveness(lab, job, Liveness.RUNNING)).token for job in (one, two)
        }
        assert len(tokens) == 2

    async def test_4_a_job_made_again_under_the_same_id_has_another_token(self, lab: Lab) -> None:
        """An action meant for the old one must not hit it."""
        lab.needs(Ability.RECREATE)
        job, incarnation = await running(lab)
        await lab.recreate(job)

        async def look() -> Incarnation | None:
            seen = (await observe_one(lab.scheduler, job)).incarnation
            return seen if seen is not None and seen.token != incarnation.token else None

        await lab.until(look, "another token")

    async def test_collect_finds_the_last_words_of_a_crashed_job(self, lab: Lab) -> None:
        """The diagnosis starts from them."""
        job = await lab.start(Workload.CRASHING)
        seen = await until_liveness(lab, job, Liveness.FAILED)

        async def look() -> bool | None:
            evidence = await lab.scheduler.collect(job, seen)
            assert all(item.source.name and len(item.text) <= 16_000_000 for item in evidence)
            logs = [item.text for item in evidence if item.kind is EvidenceKind.LOG]
            return True if any(CRASH_LINE in text for text in logs) else None

        await lab.until(look, f"evidence with {CRASH_LINE!r}")

    async def test_collect_says_which_source_could_not_be_read(self, lab: Lab) -> None:
        """As evidence of kind STATUS; the other sources are still there."""
        lab.needs(Ability.UNREADABLE_LOG)
        job, _ = await running(lab, Workload.QUIET)
        await lab.make_log_unreadable(job)
        evidence = await lab.scheduler.collect(job, await observe_one(lab.scheduler, job))
        assert any(item.kind is EvidenceKind.STATUS for item in evidence)

    async def test_10_an_id_is_never_read_as_a_command(self, lab: Lab, tmp_path: Path) -> None:
        """Hostile ids are asked about like others: no answer but gone or unknown, and nothing runs."""
        canary = tmp_path / "canary"
        run = f"touch {canary}"
        for word in (f"1; {run}", f"$({run})", f"`{run}`", f"1\n{run}\n", f"| {run}", f"' {run} '", "", "-h"):
            job = Job(
                ref=JobRef(scheduler=lab.scheduler.name, cluster=lab.scheduler.cluster, id=word), name="x"
            )
            seen = await observe_one(lab.scheduler, job)
            assert seen.liveness in {Liveness.GONE, Liveness.UNKNOWN}, word
            with pytest.raises(SchedulerError):
                await lab.scheduler.logs(job)
        assert not canary.exists()

    async def test_11_a_closed_adapter_leaves_nothing_and_is_not_used_again(self, lab: Lab) -> None:
        """Its tasks are gone; using it is an error; closing twice is none."""
        job, _ = await running(lab)
        before = asyncio.all_tasks()
        scheduler = lab.twin()
        await observe_one(scheduler, job)
        await scheduler.close()
        await scheduler.close()
        assert asyncio.all_tasks() <= before
        with pytest.raises((RuntimeError, SchedulerError)):
            await scheduler.observe([job])

    async def test_discover_finds_the_jobs_and_they_can_be_observed(self, lab: Lab) -> None:
        """What patrol finds it can guard."""
        lab.needs(Ability.DISCOVER)
        jobs = [(await running(lab))[0], (await running(lab))[0]]

        async def look() -> list[JobRef] | None:
            found = list(await lab.scheduler.discover(lab.selector()))
            return found if {job.ref for job in jobs} <= set(found) else None

        found = await lab.until(look, "both jobs are discovered")
        assert len(found) == len(set(found))
        seen = await lab.scheduler.observe([Job(ref=ref, name="found") for ref in found])
        assert all(seen[job.ref].liveness is Liveness.RUNNING for job in jobs)

    async def test_a_selector_that_is_none_is_named(self, lab: Lab) -> None:
        """A patrol with it finds nothing for ever; its owner must hear of it at once."""
        lab.needs(Ability.DISCOVER)
        with pytest.raises(ConfigError, match="selector") as raised:
            await lab.scheduler.discover("no=such=word")
        assert "no=such=word" in str(raised.value)
