"""Every state a real Slurm was brought into, and what the adapter makes of it."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable

import pytest

from tests.labs.slurm.lab_cluster import Cluster, until
from trainguard.core.action import Action, ActionKind, Fence, OutcomeStatus
from trainguard.core.errors import UnreachableError
from trainguard.core.job import Job
from trainguard.core.observation import Liveness, Observation
from trainguard.schedulers.slurm import Settings, SlurmScheduler

pytestmark = pytest.mark.lab("slurm")

BASH = "#!/bin/bash\n"
HOG = "python3 -c 'x = bytearray(400_000_000); import time; time.sleep(20)'\n"


async def until_seen(
    scheduler: SlurmScheduler,
    job: Job,
    holds: Callable[[Observation], bool],
    what: str,
    seconds: float = 120.0,
) -> Observation:
    """Observe until something holds; every observation on the way is kept in the message."""
    last: list[Observation] = []

    async def look() -> Observation | None:
        seen = (await scheduler.observe([job]))[job.ref]
        last[:] = [seen]
        return seen if holds(seen) else None

    try:
        return await until(look, what, seconds)
    except AssertionError as error:
        raise AssertionError(f"{error}; last: {last}") from error


def is_(liveness: Liveness) -> Callable[[Observation], bool]:
    """Make a check for a liveness."""
    return lambda seen: seen.liveness is liveness


async def test_each_way_to_end_is_told_for_what_it_is(cluster: Cluster) -> None:
    """Nine jobs end in nine ways, observed together."""
    scheduler = cluster.scheduler()
    folder = cluster.job_folder()

    def submit(body: str, *options: str) -> Job:
        return cluster.job(cluster.submit(folder, BASH + body, *options))

    jobs = {
        "three": submit("exit 3\n"),
        "137": submit("exit 137\n"),
        "segv": submit("kill -SEGV $$\n"),
        "no folder": submit("echo\n", "--output=/nonexistent/out.txt"),
        "step": submit("srun sh -c 'exit 7'\nexit 0\n"),
        "fine": submit("exit 0\n"),
        "odd": submit(
            "exit 3\n", "--job-name=a|b, ;\x1f\n   JobState=COMPLETED", "--comment=x\x1fRUNNING\ny|z"
        ),
    }
    if cluster.facts["OOM"] == "cgroup":
        jobs["oom"] = submit(HOG, "--mem=100M")
        jobs["oom then 0"] = submit(f"{HOG}exit 0\n", "--mem=100M")
    seen: dict[str, Observation] = {}

    async def look() -> bool | None:
        answers = await scheduler.observe(list(jobs.values()))
        seen.update({name: answers[job.ref] for name, job in jobs.items()})
        return all(one.liveness.terminal for one in seen.values()) or None

    await until(look, "all have ended")
    assert (seen["three"].liveness, seen["three"].exit_code) == (Liveness.FAILED, 3)
    assert (seen["137"].liveness, seen["137"].exit_code) == (Liveness.FAILED, 137)
    assert (seen["segv"].liveness, seen["segv"].exit_code, seen["segv"].exit_signal) == (
        Liveness.FAILED,
        None,
        11,
    )
    assert seen["no folder"].liveness is Liveness.FAILED
    assert "output file or working directory" in seen["no folder"].reason
    assert seen["step"].liveness is Liveness.SUCCEEDED
    assert "7" in seen["step"].warning
    assert (seen["fine"].liveness, seen["fine"].warning) == (Liveness.SUCCEEDED, "")
    assert (seen["odd"].liveness, seen["odd"].native) == (Liveness.FAILED, "FAILED")
    for name in ("oom", "oom then 0"):
        if name in seen:
            assert (seen[name].liveness, seen[name].oom_killed) == (Liveness.FAILED, True)
    assert all(one.ended_at for one in seen.values())


async def test_a_job_over_its_time_limit_failed(acct: Cluster) -> None:
    """TIMEOUT; brought about early by an operator's EndTime."""
    scheduler = acct.scheduler()
    job = acct.job(acct.submit(acct.job_folder(), BASH + "sleep 300\n", "--time=1"))
    await until_seen(scheduler, job, is_(Liveness.RUNNING), "runs")
    acct.run("scontrol", "update", f"jobid={job.ref.id}", "EndTime=now+2", user=acct.facts["OPS_NAME"])
    seen = await until_seen(scheduler, job, lambda one: one.liveness.terminal, "is over")
    assert (seen.liveness, seen.native) == (Liveness.FAILED, "TIMEOUT")


async def test_what_ended_on_purpose_is_stopped_not_failed(acct: Cluster) -> None:
    """CANCELLED by the owner, PREEMPTED by a higher partition, DEADLINE passed while pending."""
    scheduler = acct.scheduler(settle=0)
    folder = acct.job_folder()
    low = acct.job(
        acct.submit(folder, BASH + "sleep 300\n", "-p", "lowcancel", "-w", acct.node(1), "--exclusive")
    )
    mine = acct.job(acct.submit(folder, BASH + "sleep 300\n", "-w", acct.node(2)))
    for job in (low, mine):
        await until_seen(scheduler, job, is_(Liveness.RUNNING), "runs")
    acct.run("scancel", mine.ref.id)
    acct.submit(folder, BASH + "sleep 300\n", "-p", "high", "-w", acct.node(1), "--exclusive")
    late = acct.job(
        acct.submit(
            folder, BASH + "sleep 300\n", "--deadline=now+62", "--time=1", "-w", acct.node(1), "--exclusive"
        )
    )
    for job, word in ((low, "PREEMPTED"), (mine, "CANCELLED"), (late, "DEADLINE")):
        seen = await until_seen(scheduler, job, lambda one: one.liveness.terminal, f"{word}", 150)
        assert (seen.liveness, seen.native) == (Liveness.STOPPED, word)


async def test_slurms_own_requeue_is_respected_and_the_next_run_is_guarded(cluster: Cluster) -> None:
    """A preempted and a node-failed job that Slurm requeues never look stopped or failed."""
    scheduler = cluster.scheduler()
    folder = cluster.job_folder()
    job = cluster.job(
        cluster.submit(folder, BASH + "sleep 300\n", "-w", cluster.node(1), "-p", "low", "--exclusive")
    )
    first = await until_seen(scheduler, job, is_(Liveness.RUNNING), "runs")
    high = cluster.submit(folder, BASH + "sleep 3\n", "-p", "high", "-w", cluster.node(1), "--exclusive")
    seen: list[Observation] = []

    def second(one: Observation) -> bool:
        seen.append(one)
        return (
            one.liveness is Liveness.RUNNING and one.incarnation is not None and one.incarnation.attempt == 2
        )

    again = await until_seen(scheduler, job, second, "runs again")
    assert not any(one.liveness.terminal or one.liveness is Liveness.GONE for one in seen)
    assert any(one.restart_underway for one in seen)
    assert first.incarnation is not None
    assert again.incarnation is not None
    assert again.incarnation.token != first.incarnation.token
    assert cluster.state(high) in {"COMPLETED", ""}


async def test_a_failed_node_fails_the_job_only_where_slurm_does_not_requeue_it(cluster: Cluster) -> None:
    """Two jobs on one node that goes down: one may be requeued, one may not."""
    scheduler = cluster.scheduler()
    folder = cluster.job_folder()
    node = cluster.node(3)
    on = ("-w", node)
    dies = cluster.job(cluster.submit(folder, BASH + "sleep 300\n", *on, "--no-requeue"))
    returns = cluster.job(cluster.submit(folder, BASH + "sleep 300\n", *on, "--requeue"))
    for job in (dies, returns):
        await until_seen(scheduler, job, is_(Liveness.RUNNING), "runs")
    cluster.run("scontrol", "update", f"nodename={node}", "state=down", "reason=lab", user="root")
    try:
        failed = await until_seen(scheduler, dies, lambda one: one.liveness.terminal, "is over")
        back = await until_seen(scheduler, returns, lambda one: one.restart_underway, "is requeued")
    finally:
        cluster.run("scontrol", "update", f"nodename={node}", "state=resume", user="root")
    assert (failed.liveness, failed.native, failed.bad_nodes) == (Liveness.FAILED, "NODE_FAIL", (node,))
    assert back.liveness in {Liveness.PENDING, Liveness.UNKNOWN, Liveness.RUNNING}


async def test_a_job_that_will_not_move_is_stuck_with_its_reason(cluster: Cluster) -> None:
    """Launch failure, impossible dependency, missing nodes, a deadline of the owner, an epilog that hangs."""
    scheduler = SlurmScheduler(
        cluster.name, cluster.target(), settings=Settings(settle=4, completing_deadline=2, away_deadline=2)
    )
    cluster.made.append(scheduler)
    folder = cluster.job_folder()
    gone = cluster.submit(folder, BASH + "exit 1\n", "-w", cluster.node(1))
    cluster.submit(folder, BASH + "sleep 300\n", "-w", cluster.node(1))
    cluster.fault("prolog-fail", 4)
    cluster.fault("epilog-sleep", 2, "8")
    cluster.run("scontrol", "update", f"nodename={cluster.node(3)}", "state=drain", "reason=lab", user="root")
    jobs = {
        "launch failed": cluster.job(cluster.submit(folder, BASH + "sleep 9\n", "-w", cluster.node(4))),
        "depend": cluster.job(cluster.submit(folder, BASH + "sleep 9\n", f"--dependency=afterok:{gone}")),
        "drained": cluster.job(cluster.submit(folder, BASH + "sleep 9\n", "-w", cluster.node(3))),
        "longer than its deadline": cluster.job(
            cluster.submit(folder, BASH + "sleep 9\n", "-w", cluster.node(1), "--exclusive"),
            watching={"pending_deadline": 3},
        ),
        "completing": cluster.job(cluster.submit(folder, BASH + "exit 3\n", "-w", cluster.node(2))),
    }
    try:
        for words, job in jobs.items():
            seen = await until_seen(scheduler, job, lambda one: bool(one.stuck), f"stuck: {words}")
            assert words in seen.stuck.lower()
            assert not seen.liveness.terminal
        ended = await until_seen(scheduler, jobs["completing"], lambda one: one.liveness.terminal, "is over")
        assert (ended.liveness, ended.exit_code) == (Liveness.FAILED, 3)
    finally:
        for number in (3, 4):
            cluster.run("scontrol", "update", f"nodename={cluster.node(number)}", "state=resume", user="root")


async def test_what_waits_on_purpose_is_neither_stuck_nor_failed(cluster: Cluster) -> None:
    """Held by its owner, suspended by an operator, waiting for resources."""
    scheduler = cluster.scheduler()
    folder = cluster.job_folder()
    held = cluster.job(cluster.submit(folder, BASH + "sleep 300\n", "--hold"))
    waits = cluster.job(cluster.submit(folder, BASH + "sleep 300\n", "--begin=now+300"))
    paused = cluster.job(cluster.submit(folder, BASH + "sleep 300\n"))
    await until_seen(scheduler, paused, is_(Liveness.RUNNING), "runs")
    cluster.run("scontrol", "suspend", paused.ref.id, user="root")
    for job in (held, waits, paused):
        seen = (await scheduler.observe([job]))[job.ref]
        assert (seen.liveness, seen.stuck, seen.restart_underway) == (Liveness.PENDING, "", False), seen
    cluster.run("scontrol", "resume", paused.ref.id, user="root")


async def test_an_array_is_seen_by_element_and_as_a_whole(cluster: Cluster) -> None:
    """One element fails: that element and the whole have failed, the others run."""
    scheduler = cluster.scheduler()
    body = '[ "$SLURM_ARRAY_TASK_ID" = 2 ] && exit 5\nsleep 300\n'
    base = cluster.submit(cluster.job_folder(), BASH + body, "--array=1-4%3")
    jobs = [cluster.job(name) for name in (f"{base}_1", f"{base}_2", base)]
    await until_seen(scheduler, jobs[1], is_(Liveness.FAILED), "the element has failed")
    await until_seen(scheduler, jobs[0], is_(Liveness.RUNNING), "the other runs")
    seen = await scheduler.observe(jobs)
    assert seen[jobs[1].ref].exit_code == 5
    assert seen[jobs[2].ref].liveness is Liveness.FAILED
    assert f"{base}_2" in seen[jobs[2].ref].reason
    last = cluster.job(f"{base}_9")
    assert (await scheduler.observe([last]))[last.ref].liveness is Liveness.GONE


async def test_a_heterogeneous_job_is_one_job(cluster: Cluster) -> None:
    """It runs while its components run, and fails with the leader."""
    scheduler = cluster.scheduler()
    folder = cluster.job_folder()
    path = folder / "job.sh"
    path.write_text(BASH + "sleep 2\nexit 4\n")
    path.chmod(0o755)
    base = cluster.run(
        "sbatch", "--parsable", f"--chdir={cluster.within(folder)}", "-n1", ":", "-n1", cluster.within(path)
    ).strip()
    whole, part = cluster.job(base), cluster.job(f"{base}+1")
    seen = await until_seen(scheduler, whole, is_(Liveness.RUNNING), "runs")
    assert (await scheduler.observe([part]))[part.ref].liveness is Liveness.RUNNING
    assert seen.incarnation is not None
    failed = await until_seen(scheduler, whole, is_(Liveness.FAILED), "has failed")
    assert failed.exit_code == 4


async def test_a_forgotten_job_is_told_by_accounting_or_by_memory_and_else_not_guessed(
    acct: Cluster, bare: Cluster
) -> None:
    """After MinJobAge: sacct knows how it ended; without it this process remembers, a new one says gone."""
    await asyncio.gather(_forgotten(acct), _forgotten(bare))


async def _forgotten(cluster: Cluster) -> None:
    scheduler = cluster.scheduler()
    folder = cluster.job_folder()
    again = "{ scontrol requeue $SLURM_JOB_ID; sleep 60; }"
    job = cluster.job(cluster.submit(folder, BASH + f'[ "$SLURM_RESTART_COUNT" ] || {again}\nexit 3\n'))
    unseen = cluster.job(cluster.submit(folder, BASH + "sleep 3\nexit 3\n"))
    await until_seen(scheduler, unseen, is_(Liveness.RUNNING), "is known")
    seen = await until_seen(scheduler, job, is_(Liveness.FAILED), "has failed")
    while cluster.state(job.ref.id) or cluster.state(unseen.ref.id):
        await asyncio.sleep(1)
    later = (await scheduler.observe([job]))[job.ref]
    assert (later.liveness, later.exit_code) == (Liveness.FAILED, 3)
    assert later.incarnation == seen.incarnation
    assert seen.incarnation is not None
    fresh = cluster.scheduler()
    answers = await fresh.observe([job, unseen])
    mine = (await scheduler.observe([unseen]))[unseen.ref]
    if not cluster.accounting:
        assert answers[job.ref].liveness is Liveness.GONE
        assert mine.liveness is Liveness.UNKNOWN
        return
    told = answers[job.ref].incarnation
    assert (answers[job.ref].liveness, answers[job.ref].source) == (Liveness.FAILED, "sacct")
    assert told is not None
    assert (told.token, told.attempt) == (seen.incarnation.token, 2)
    assert mine.liveness is Liveness.FAILED


async def _no_verdict(
    scheduler: SlurmScheduler, job: Job, seen: Observation, break_: Callable[[], None]
) -> None:
    """Break something, then look and act: nothing is concluded and nothing is done."""
    assert seen.incarnation is not None
    action = Action(kind=ActionKind.RESTART, incarnation=seen.incarnation)
    break_()
    answers = await asyncio.gather(
        scheduler.observe([job]),
        scheduler.perform(job, action, Fence(token="tg-nothing-1", incident="lab", lease=1)),
        return_exceptions=True,
    )
    assert all(isinstance(answer, UnreachableError) for answer in answers), answers


async def test_a_frozen_controller_gives_no_verdict(acct: Cluster) -> None:
    """The truth again afterwards."""
    scheduler = acct.scheduler()
    job = acct.job(acct.submit(acct.job_folder(), BASH + "sleep 300\n"))
    seen = await until_seen(scheduler, job, is_(Liveness.RUNNING), "runs")
    try:
        await _no_verdict(scheduler, job, seen, lambda: acct.signal("slurmctld", signal.SIGSTOP))
    finally:
        acct.signal("slurmctld", signal.SIGCONT)
    again = await until_seen(scheduler, job, is_(Liveness.RUNNING), "runs still")
    assert again.incarnation == seen.incarnation


async def test_a_login_node_without_munge_gives_no_verdict(acct: Cluster) -> None:
    """Nobody can authenticate to the controller."""
    scheduler = acct.scheduler()
    job = acct.job(acct.submit(acct.job_folder(), BASH + "sleep 300\n"))
    seen = await until_seen(scheduler, job, is_(Liveness.RUNNING), "runs")
    try:
        await _no_verdict(scheduler, job, seen, acct.stop_munge)
    finally:
        acct.start_munge()
    again = await until_seen(scheduler, job, is_(Liveness.RUNNING), "runs still")
    assert again.incarnation == seen.incarnation


async def test_a_dead_controller_gives_no_verdict(acct: Cluster) -> None:
    """And once it is back the job is seen again, with the same incarnation."""
    scheduler = acct.scheduler()
    job = acct.job(acct.submit(acct.job_folder(), BASH + "sleep 300\n"))
    seen = await until_seen(scheduler, job, is_(Liveness.RUNNING), "runs")
    try:
        await _no_verdict(scheduler, job, seen, lambda: kill_controller(acct))
    finally:
        acct.start("slurmctld")
    again = await until_seen(scheduler, job, is_(Liveness.RUNNING), "runs still")
    assert again.incarnation == seen.incarnation


async def test_a_controller_that_has_just_started_calls_no_node_bad_and_takes_a_restart(
    acct: Cluster,
) -> None:
    """For some seconds it does not know the state of any node: that is no trouble, nor a lack of nodes."""
    scheduler = acct.scheduler()
    running = acct.job(acct.submit(acct.job_folder(), BASH + "sleep 300\n", "--exclusive"))
    ended = acct.job(acct.submit(acct.job_folder(), BASH + "exit 3\n", "--nodes=2"))
    seen = await until_seen(scheduler, running, is_(Liveness.RUNNING), "runs")
    failed = await until_seen(scheduler, ended, is_(Liveness.FAILED), "has failed")
    assert failed.incarnation is not None

    def states() -> set[str]:
        return set(acct.run("sinfo", "-h", "-N", "-o", "%T", check=False).split())

    nodes = [acct.node(number) for number in range(1, int(acct.facts["NODES"]) + 1)]
    kill_controller(acct)
    try:
        for node in nodes:
            acct.signal(f"slurmd-{node}", signal.SIGSTOP)  # they register late
        acct.start("slurmctld")
        acct.wait(lambda: bool(states()), 40, "slurmctld answers")
        assert (await scheduler.observe([running]))[running.ref].bad_nodes == ()
        action = Action(
            kind=ActionKind.RESTART_EXCLUDING_NODE, incarnation=failed.incarnation, nodes=(nodes[-1],)
        )
        outcome = await scheduler.perform(ended, action, Fence(token="tg-unknown-1", incident="lab", lease=1))
        assert outcome.status is OutcomeStatus.DONE, outcome
        assert states() == {"unknown"}
    finally:
        for node in nodes:
            acct.signal(f"slurmd-{node}", signal.SIGCONT)
    acct.wait(lambda: "unknown" not in states(), 60, "the nodes are known")
    again = (await scheduler.observe([running]))[running.ref]
    assert (again.liveness, again.incarnation, again.bad_nodes) == (Liveness.RUNNING, seen.incarnation, ())


def kill_controller(cluster: Cluster) -> None:
    pid = cluster.pid("slurmctld")
    cluster.signal("slurmctld", signal.SIGTERM)
    cluster.wait(lambda: cluster.gone(pid), 40, "slurmctld has ended")


async def test_accounting_that_is_down_changes_no_verdict_and_stops_actions(acct: Cluster) -> None:
    """The controller is the truth for what it knows; whether a fence was used can't be told without sacct."""
    scheduler = acct.scheduler()
    job = acct.job(acct.submit(acct.job_folder(), BASH + "exit 3\n"))
    seen = await until_seen(scheduler, job, is_(Liveness.FAILED), "has failed")
    assert seen.incarnation is not None
    pid = acct.pid("slurmdbd")
    acct.signal("slurmdbd", signal.SIGTERM)
    acct.wait(lambda: acct.gone(pid), 40, "slurmdbd has ended")
    unheard = acct.job("3999999")
    try:
        answers = await scheduler.observe([job, unheard])
        assert answers[job.ref].liveness is Liveness.FAILED
        assert answers[unheard.ref].liveness is Liveness.UNKNOWN
        action = Action(kind=ActionKind.RESTART, incarnation=seen.incarnation)
        with pytest.raises(UnreachableError):
            await scheduler.perform(job, action, Fence(token="tg-nothing-2", incident="lab", lease=1))
    finally:
        acct.start("slurmdbd")
        acct.wait(
            lambda: acct.name in acct.run("sacctmgr", "-n", "list", "cluster", check=False), 60, "slurmdbd"
        )
