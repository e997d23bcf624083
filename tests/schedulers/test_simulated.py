"""The simulated cluster holds the contract too: what is measured on it is worth as much as that."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from tests.schedulers.simulated_lab import SimulatedLab
from trainguard.core.action import Action, ActionKind
from trainguard.core.job import Job
from trainguard.core.observation import Liveness, Observation
from trainguard.testing.scheduler_contract import SchedulerContract
from trainguard.testing.simulated import FaultKind, SimulatedCluster, SimulatedJob, SimulatedScheduler
from trainguard.testing.simulated_clock import VirtualClock
from trainguard.testing.simulated_fleet import DAY, SimulatedFleet


class TestSimulated(SchedulerContract):
    @pytest.fixture
    def lab(self) -> SimulatedLab:
        return SimulatedLab()


def restart(cluster: SimulatedCluster, seen: Observation) -> None:
    assert seen.incarnation is not None
    action = Action(kind=ActionKind.RESTART, incarnation=seen.incarnation)
    cluster.restart(cluster.jobs[seen.job.id], action)


class TestAFleet:
    def test_the_same_seed_gives_the_same_fleet(self) -> None:
        one, two, other = (
            SimulatedFleet(cluster=name, jobs=50, seed=seed, fault_seconds=DAY).build(lambda: 0.0)
            for name, seed in (("one", 1), ("two", 1), ("other", 2))
        )
        assert [job.faults for job in one.jobs.values()] == [job.faults for job in two.jobs.values()]
        assert [job.nodes for job in one.jobs.values()] == [job.nodes for job in two.jobs.values()]
        assert [job.faults for job in one.jobs.values()] != [job.faults for job in other.jobs.values()]

    async def test_weeks_of_a_thousand_jobs_pass_in_seconds_and_every_fault_is_seen(
        self, tmp_path: Path
    ) -> None:
        clock, journal = VirtualClock(0.0), tmp_path / "journal"
        fleet = SimulatedFleet(cluster="weeks", jobs=1000, seed=3, fault_seconds=7 * DAY, journal=journal)
        cluster = fleet.build(clock)
        scheduler, jobs = fleet.make_scheduler(), [fleet.job(number) for number in range(1000)]
        failed = 0
        for _ in range(2 * 7 * 3):
            clock.advance(DAY / 3)
            for seen in (await scheduler.observe(jobs)).values():
                if seen.liveness is Liveness.FAILED:
                    failed += 1
                    restart(cluster, seen)
        lines = [json.loads(line) for line in journal.read_text().splitlines()]
        happened = Counter(line["event"] for line in lines)
        assert happened["failed"] == happened["restart"] == failed
        assert happened["started"] == 1000 + failed
        assert 1500 < failed < 2500, "a fault a week and job"

    async def test_the_log_between_two_looks_says_how_far_the_job_is(self) -> None:
        clock = VirtualClock(0.0)
        fleet = SimulatedFleet(cluster="logs", jobs=1)
        native = fleet.build(clock).jobs["job-00000"]
        scheduler, job, cursor = fleet.make_scheduler(), fleet.job(0), ""
        for _ in range(3):
            clock.advance(600)
            batch = await scheduler.logs(job, cursor)
            cursor = batch.cursor
            text = "".join(chunk.text for chunk in batch.chunks)
            assert text.splitlines()[-1].startswith(f"step {int(clock() / native.step_seconds)}/")

    async def test_a_job_whose_node_went_down_runs_on_without_it(self) -> None:
        clock = VirtualClock(0.0)
        fleet = SimulatedFleet(
            cluster="nodes", jobs=1, fault_seconds=DAY, faults=(FaultKind.NODE_DOWN,), seed=1
        )
        cluster = fleet.build(clock)
        job, scheduler = fleet.job(0), fleet.make_scheduler()
        clock.advance(30 * DAY)
        seen = (await scheduler.observe([job]))[job.ref]
        assert (seen.liveness, seen.native) == (Liveness.FAILED, "NODE_FAIL")
        assert seen.bad_nodes == seen.nodes[:1]
        restart(cluster, seen)
        again = (await scheduler.observe([job]))[job.ref]
        assert again.liveness is Liveness.RUNNING
        assert not set(again.nodes) & set(seen.bad_nodes)

    async def test_a_queued_job_is_pending_until_its_time_comes(self) -> None:
        clock = VirtualClock(0.0)
        cluster = SimulatedCluster("queue", clock=clock)
        ref = cluster.start(SimulatedJob(id="late", queue_seconds=100))
        job, scheduler = Job(ref=ref, name="late"), SimulatedScheduler("queue")
        assert (await scheduler.observe([job]))[ref].liveness is Liveness.PENDING
        assert not (await scheduler.logs(job)).chunks
        clock.advance(101)
        assert (await scheduler.observe([job]))[ref].liveness is Liveness.RUNNING
