"""Acting on real jobs: training that comes back with progress, exactly one job after a cut, and what is refused."""

from __future__ import annotations

import asyncio
import os
import shutil
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.labs.slurm.lab_cluster import HERE, Cluster, Proxy, until
from tests.labs.slurm.test_states import BASH, is_, until_seen
from trainguard.core.action import Action, ActionKind, Fence, Outcome, OutcomeStatus
from trainguard.core.errors import AccessRefusedError, RefusedError, UnreachableError
from trainguard.core.evidence import EvidenceKind
from trainguard.core.job import Job, Resume, ResumeBy
from trainguard.core.observation import Liveness, Observation
from trainguard.schedulers.slurm import SlurmScheduler

pytestmark = pytest.mark.lab("slurm")

TRAINING = """#!/bin/bash
exec python3 - "$@" <<'PY'
import json, os, pathlib, time
ckpt, held = pathlib.Path("ckpt"), b""
step = max([int(p.stem[5:]) for p in ckpt.glob("step-*.json")], default=0)
print(f"resumed at step {step}", flush=True)
while step < (total := int(pathlib.Path("total").read_text())):
    step += 1
    if step >= 6 and not held:
        held = bytearray(os.urandom(1024)) * 200_000
    time.sleep(0.25)
    new = ckpt / "new"
    new.write_text(json.dumps({"step": step, "loss": 1 / step}))
    new.rename(ckpt / f"step-{step}.json")
    print(f"step {step}/{total} loss={1 / step:.4f}", flush=True)
PY
"""


def fence() -> Fence:
    return Fence(token=f"tg-{uuid.uuid4().hex[:8]}-1", incident="lab", lease=1)


def act(kind: ActionKind, seen: Observation, **more: object) -> Action:
    return Action.model_validate({"kind": kind, "incarnation": seen.incarnation, **more})


def steps(folder: Path) -> int:
    return max((int(path.stem[5:]) for path in (folder / "ckpt").glob("step-*.json")), default=0)


async def until_step(folder: Path, step: int) -> None:
    async def look() -> bool | None:
        return True if steps(folder) >= step else None

    await until(look, f"step {step} (is at {steps(folder)})")


@pytest.mark.parametrize("way", ["requeue", "submit again"])
async def test_a_training_survives_node_failure_out_of_memory_and_time_limit(
    acct: Cluster, bare: Cluster, way: str
) -> None:
    """In turn, each with the action that fits, and it finishes from its checkpoints."""
    cluster = acct if way == "submit again" else bare
    scheduler = cluster.scheduler(settle=1)
    folder = cluster.job_folder()
    (folder / "total").write_text("100")
    options = ["--output=out-%j.txt", "--mem=100M", "--time=3", "-w", cluster.node(1)]
    options += ["--no-requeue"] if way == "submit again" else []
    job = cluster.job(cluster.submit(folder, TRAINING, *options[:3], *options[5:]), folder)
    first = await until_seen(scheduler, job, is_(Liveness.RUNNING), "runs")
    await until_step(folder, 2)
    node = first.nodes[0]
    cluster.run("scontrol", "update", f"nodename={node}", "state=down", "reason=lab", user="root")
    try:
        if way == "submit again":
            failed = await until_seen(scheduler, job, is_(Liveness.FAILED), "has failed")
            assert (failed.native, failed.bad_nodes) == ("NODE_FAIL", (node,))
            await restart(scheduler, job, act(ActionKind.RESTART, failed))
        again = await until_seen(
            scheduler,
            job,
            lambda one: one.liveness is Liveness.RUNNING and one.incarnation != first.incarnation,
            "again",
        )
        assert again.nodes
        assert node not in again.nodes
    finally:
        cluster.run("scontrol", "update", f"nodename={node}", "state=resume", user="root")
    failed = await until_seen(scheduler, job, is_(Liveness.FAILED), "is out of memory")
    before = steps(folder)
    assert failed.oom_killed or cluster.facts["OOM"] != "cgroup"
    outcome = await restart(
        scheduler, job, act(ActionKind.RESTART_WITH_MORE_MEMORY, failed, memory_bytes=500 * 2**20)
    )
    assert "500 MB" in outcome.detail
    seen = await until_seen(scheduler, job, is_(Liveness.RUNNING), "runs with more memory")
    await until_step(folder, before + 3)
    native = seen.incarnation.native_id if seen.incarnation else ""
    cluster.run("scontrol", "update", f"jobid={native}", "EndTime=now+2", user=cluster.facts["OPS_NAME"])
    failed = await until_seen(scheduler, job, is_(Liveness.FAILED), "is over its time")
    assert failed.native == "TIMEOUT"
    before = steps(folder)
    outcome = await restart(scheduler, job, act(ActionKind.EXTEND_TIME_LIMIT, failed, time_limit=600))
    assert "10 minutes" in outcome.detail
    (folder / "total").write_text(str(before + 4))
    ended = await until_seen(scheduler, job, lambda one: one.liveness.terminal, "is done")
    assert ended.liveness is Liveness.SUCCEEDED
    assert ended.incarnation is not None
    assert ended.incarnation.attempt == 4
    assert steps(folder) == before + 4
    assert ended.time_limit == 600


async def restart(scheduler: SlurmScheduler, job: Job, action: Action) -> Outcome:
    outcome = await scheduler.perform(job, action, fence())
    assert outcome.status is OutcomeStatus.DONE, outcome
    return outcome


async def test_a_job_on_two_nodes_comes_back_without_the_dead_one(acct: Cluster) -> None:
    """Its slurmd is killed: the old processes live on there, so the job goes elsewhere."""
    scheduler = acct.scheduler(settle=1)
    folder = acct.job_folder()
    script = (
        BASH + "srun --output=rank-%t.txt sh -c 'echo rank $SLURM_PROCID on $SLURMD_NODENAME; sleep 300'\n"
    )
    job = acct.job(acct.submit(folder, script, "-N2", "--ntasks-per-node=1", "--no-requeue", "--exclusive"))
    seen = await until_seen(scheduler, job, is_(Liveness.RUNNING), "runs")
    dead = seen.nodes[1]
    number = int(dead[-1])

    async def ranks() -> bool | None:
        return len(list(folder.glob("rank-*.txt"))) == 2 or None

    await until(ranks, "both ranks have begun")
    batch = await scheduler.logs(job)
    assert {chunk.source.rank for chunk in batch.chunks} >= {0, 1}
    acct.kill_node(number)
    try:
        failed = await until_seen(scheduler, job, is_(Liveness.FAILED), "has failed", 150)
        assert (failed.native, failed.bad_nodes) == ("NODE_FAIL", (dead,))
        evidence = await scheduler.collect(job, failed)
        assert any(
            "not responding" in one.text.lower() or "down" in one.text.lower()
            for one in evidence
            if one.kind is EvidenceKind.STATUS
        )
        outcome = await restart(scheduler, job, act(ActionKind.RESTART_EXCLUDING_NODE, failed, nodes=[dead]))
        assert dead in outcome.detail
        again = await until_seen(scheduler, job, is_(Liveness.RUNNING), "runs again")
        assert len(again.nodes) == 2
        assert dead not in again.nodes
    finally:
        acct.revive_node(number)


@pytest.fixture
async def losing(acct: Cluster, tmp_path: Path) -> AsyncIterator[tuple[SlurmScheduler, Path]]:
    """An adapter on whose way an answer can be lost: the request is carried out, then the connection dies."""
    shims = acct.home / f"shims-actions-{os.getpid()}"
    shims.mkdir(exist_ok=True)
    for name in ("squeue", "sbatch", "scancel", "scontrol"):
        shutil.copy(HERE / "shim.sh", shims / name)
        (shims / name).chmod(0o755)
    yield acct.scheduler(path=(acct.within(shims),)), shims / "lose"
    await acct.close()
    shutil.rmtree(shims)


async def test_a_connection_cut_during_sbatch_leaves_exactly_one_job(
    acct: Cluster, losing: tuple[SlurmScheduler, Path]
) -> None:
    """Unknown, then found by its mark; the same fence again submits nothing, nor does another process."""
    scheduler, lose = losing
    folder = acct.job_folder()
    resume = Resume(by=ResumeBy.ENVIRONMENT, name="FROM")
    name = f"cut-{uuid.uuid4().hex[:6]}"
    script = BASH + 'echo "from=$FROM" >>seen\n[ "$FROM" ] || exit 3\nsleep 300\n'
    job = acct.job(
        acct.submit(folder, script, f"--job-name={name}", "--comment=the owner's words"), folder, resume
    )
    failed = await until_seen(scheduler, job, is_(Liveness.FAILED), "has failed")
    mark = fence()
    action = act(ActionKind.RESTART, failed, checkpoint="/data/step 7.pt")
    lose.touch()
    outcome = await scheduler.perform(job, action, mark)
    lose.unlink()
    assert outcome.status is OutcomeStatus.UNKNOWN

    async def look() -> Outcome | None:
        try:
            return await scheduler.find(job, mark)
        except UnreachableError:
            return None

    found = await until(look, "the submission is found")
    assert found.status is OutcomeStatus.DONE
    twin = acct.scheduler()
    for one in (scheduler, twin):
        assert (await one.perform(job, action, mark)).status is OutcomeStatus.DONE
    seen = await until_seen(twin, job, is_(Liveness.RUNNING), "runs")
    assert acct.run("squeue", "-h", "-t", "all", "-n", name, "-o", "%T").split().count("RUNNING") == 1
    assert len(acct.run("squeue", "-h", "-t", "all", "-n", name, "-o", "%i").split()) == 2
    assert (folder / "seen").read_text().splitlines() == ["from=", "from=/data/step 7.pt"]
    assert seen.incarnation is not None
    comment = acct.run("squeue", "-h", "-t", "all", "-j", seen.incarnation.native_id, "-o", "%k")
    assert comment.startswith("the owner's words [tg-")


async def test_an_sbatch_that_goes_on_for_long_after_the_cut_is_not_repeated(
    acct: Cluster, losing: tuple[SlurmScheduler, Path]
) -> None:
    """The controller is slow, the connection long gone; asked again and again there is one job in the end.
    The patrol finds it under the name of the job that it came of."""
    scheduler, lose = losing
    folder, name = acct.job_folder(), f"slow-{uuid.uuid4().hex[:6]}"
    script = BASH + "[ -e again ] && exec sleep 300\ntouch again\nexit 3\n"
    job = acct.job(acct.submit(folder, script, f"--job-name={name}", "--no-requeue"))
    failed = await until_seen(scheduler, job, is_(Liveness.FAILED), "has failed")
    action, mark = act(ActionKind.RESTART, failed), fence()
    lose.with_name("delay").write_text("52")
    assert (await scheduler.perform(job, action, mark)).status is OutcomeStatus.UNKNOWN
    for one in (scheduler, acct.scheduler(path=(acct.within(lose.parent),))):

        async def look(one: SlurmScheduler = one) -> Outcome | None:
            try:
                outcome = await one.perform(job, action, mark)
            except UnreachableError:
                return None
            return outcome if outcome.status is OutcomeStatus.DONE else None

        await until(look, "the submission is found", 180)

    def submitted() -> int:
        listed = acct.run("sacct", "-X", "-n", "-S", "now-1hour", f"--name={name}", "-o", "JobID")
        return len(set(listed.split()))

    acct.wait(lambda: submitted() == 2, 30, "accounting has both")
    await asyncio.sleep(8)  # it runs some seconds behind
    assert submitted() == 2
    assert await scheduler.discover(f"name={name}") == [job.ref]


@pytest.mark.parametrize("way", ["told its checkpoint", "not to be requeued"])
async def test_a_running_job_submitted_again_never_runs_twice(acct: Cluster, way: str) -> None:
    """The new one waits for the end of the old one."""
    scheduler = acct.scheduler()
    folder = acct.job_folder()
    script = BASH + "trap 'sleep 1; exit 1' TERM\necho $$ >>runs\nwhile :; do sleep 0.2; done\n"
    told = way == "told its checkpoint"
    resume = Resume(by=ResumeBy.ENVIRONMENT, name="FROM") if told else None
    job = acct.job(acct.submit(folder, script, *([] if told else ["--no-requeue"])), folder, resume)
    seen = await until_seen(scheduler, job, is_(Liveness.RUNNING), "runs")
    await restart(scheduler, job, act(ActionKind.RESTART, seen, checkpoint="x" if told else ""))
    most = 0

    async def look() -> bool | None:
        nonlocal most
        pids = (
            [int(line) for line in (folder / "runs").read_text().split()]
            if (folder / "runs").exists()
            else []
        )
        most = max(most, sum(not acct.gone(pid) for pid in pids))
        return True if len(pids) == 2 else None

    await until(look, "the second one runs")
    assert most == 1


async def test_a_requeue_that_stopped_half_way_is_taken_up(bare: Cluster) -> None:
    """The guard died between `requeuehold` and `release`: the same fence finishes it, another one may not."""
    scheduler = bare.scheduler()
    folder = bare.job_folder()
    job = bare.job(bare.submit(folder, BASH + "exit 3\n"), folder)
    failed = await until_seen(scheduler, job, is_(Liveness.FAILED), "has failed")
    assert failed.incarnation is not None
    mark = fence()
    bare.run("scontrol", "requeuehold", job.ref.id)
    comment = (
        f"[{mark.token} restart_excluding_node of {failed.incarnation.token} job {job.ref.id} attempt 2]"
    )
    bare.run("scontrol", "update", f"jobid={job.ref.id}", f"comment={comment}")
    action = act(ActionKind.RESTART_EXCLUDING_NODE, failed, nodes=[bare.node(4)])
    with pytest.raises(RefusedError):
        await scheduler.perform(job, act(ActionKind.RESTART, failed), fence())
    twin = bare.scheduler()
    held = (await twin.observe([job]))[job.ref].incarnation
    assert held is not None
    assert held.token == failed.incarnation.token
    assert await twin.find(job, mark) is None
    assert (await twin.perform(job, action, mark)).status is OutcomeStatus.DONE
    again = await until_seen(twin, job, lambda one: one.liveness.terminal, "ran again")
    assert again.incarnation is not None
    assert again.incarnation.attempt == 2
    assert bare.node(4) in bare.run("scontrol", "show", "job", job.ref.id)


async def test_a_failed_element_comes_back_and_its_array_is_left_alone(bare: Cluster) -> None:
    """Restarting the whole array requeues the failed element only."""
    scheduler = bare.scheduler()
    folder = bare.job_folder()
    script = (
        BASH
        + 'echo x >>"starts-$SLURM_ARRAY_TASK_ID"\n[ "$SLURM_ARRAY_TASK_ID" = 2 ] && [ ! "$SLURM_RESTART_COUNT" ] && exit 5\nsleep 300\n'
    )
    job = bare.job(bare.submit(folder, script, "--array=1-3"), folder)
    failed = await until_seen(scheduler, job, is_(Liveness.FAILED), "an element has failed")
    await restart(scheduler, job, act(ActionKind.RESTART, failed))
    await until_seen(scheduler, job, is_(Liveness.RUNNING), "all run")

    async def look() -> bool | None:
        return (folder / "starts-2").read_text() == "x\nx\n" or None

    await until(look, "the element ran twice")
    assert [(folder / f"starts-{n}").read_text() for n in (1, 3)] == ["x\n", "x\n"]


async def test_a_launch_failure_is_answered_by_another_node(bare: Cluster) -> None:
    """Slurm holds the job; with the node excluded it is let go."""
    scheduler = bare.scheduler()
    faults = [bare.fault("prolog-fail", number) for number in range(1, 5)]
    job = bare.job(bare.submit(bare.job_folder(), BASH + "sleep 300\n"))
    stuck = await until_seen(scheduler, job, lambda one: bool(one.stuck), "is stuck")
    for fault in faults:
        fault.unlink()
    (broken,) = set(bare.run("sinfo", "-h", "-N", "-t", "drain", "-o", "%N").split())
    try:
        await restart(scheduler, job, act(ActionKind.RESTART_EXCLUDING_NODE, stuck, nodes=[broken]))
        seen = await until_seen(scheduler, job, is_(Liveness.RUNNING), "runs")
        assert broken not in seen.nodes
    finally:
        bare.run("scontrol", "update", f"nodename={broken}", "state=resume", user="root")


async def test_what_the_partition_does_not_give_is_refused_or_bounded(bare: Cluster) -> None:
    """Time up to MaxTime, memory up to a node's, nodes that are there and enough of them."""
    scheduler = bare.scheduler()
    folder = bare.job_folder()
    job = bare.job(bare.submit(folder, BASH + "exit 3\n", "-p", "short", "--time=2", "-N3"))
    full = bare.job(bare.submit(folder, BASH + "exit 3\n", "-p", "short", "--time=5"))
    failed = await until_seen(scheduler, job, is_(Liveness.FAILED), "has failed")
    for nodes in (["nonexistent"], ["x; touch y"], [bare.node(1), bare.node(2)], []):
        with pytest.raises(RefusedError):
            await scheduler.perform(job, act(ActionKind.RESTART_EXCLUDING_NODE, failed, nodes=nodes), fence())
    over = await until_seen(scheduler, full, is_(Liveness.FAILED), "has failed")
    with pytest.raises(RefusedError, match="5 minutes"):
        await scheduler.perform(full, act(ActionKind.EXTEND_TIME_LIMIT, over, time_limit=3600), fence())
    assert bare.run("scontrol", "show", "job", job.ref.id).count("Restarts=0") == 1
    outcome = await restart(scheduler, job, act(ActionKind.EXTEND_TIME_LIMIT, failed, time_limit=3600))
    assert "5 minutes instead of 2" in outcome.detail


async def test_hold_and_release_by_the_guard(bare: Cluster) -> None:
    """Found again by their fences."""
    scheduler = bare.scheduler()
    job = bare.job(bare.submit(bare.job_folder(), BASH + "sleep 300\n", "--begin=now+300"))
    seen = await until_seen(scheduler, job, is_(Liveness.PENDING), "is pending")
    for kind, word in ((ActionKind.HOLD, "JobHeldUser"), (ActionKind.RELEASE, "")):
        mark = fence()
        assert (await scheduler.perform(job, act(kind, seen), mark)).status is OutcomeStatus.DONE
        now = (await scheduler.observe([job]))[job.ref]
        assert (now.reason == "JobHeldUser") is bool(word)
        found = await bare.scheduler().find(job, mark)
        assert found is not None


async def test_draining_needs_the_right_and_is_probed(cluster: Cluster) -> None:
    """The owner may not and is told what would allow it; an operator's login may, and the fence is on the node."""
    mine, ops = cluster.scheduler(), cluster.scheduler(ops=True)
    job = cluster.job(cluster.submit(cluster.job_folder(), BASH + "sleep 300\n"))
    seen = await until_seen(mine, job, is_(Liveness.RUNNING), "runs")
    action, mark = act(ActionKind.DRAIN_NODE, seen, nodes=[cluster.node(4)]), fence()
    access = await mine.validate(job)
    assert "AdminLevel" in access.impossible[ActionKind.DRAIN_NODE]
    with pytest.raises(AccessRefusedError):
        await mine.perform(job, action, mark)
    assert ActionKind.DRAIN_NODE in (await ops.validate(job)).possible
    try:
        assert (await ops.perform(job, action, mark)).status is OutcomeStatus.DONE
        found = await mine.find(job, mark)
        assert found is not None
        assert cluster.run("sinfo", "-h", "-N", "-n", cluster.node(4), "-p", "main", "-o", "%T").startswith(
            "drain"
        )
    finally:
        cluster.run("scontrol", "update", f"nodename={cluster.node(4)}", "state=resume", user="root")


async def test_the_rights_of_a_stranger_are_told(acct: Cluster) -> None:
    """An operator's job, seen by a plain user: nothing can be done to it, and why."""
    folder = acct.job_folder()
    path = folder / "job.sh"
    path.write_text(BASH + "sleep 300\n")
    folder.chmod(0o777)
    native = acct.run(
        "sbatch",
        "--parsable",
        f"--chdir={acct.within(folder)}",
        acct.within(path),
        user=acct.facts["OPS_NAME"],
    ).strip()
    scheduler, job = acct.scheduler(), acct.job(native)
    try:
        seen = await until_seen(scheduler, job, is_(Liveness.RUNNING), "runs")
        access = await scheduler.validate(job)
        assert not access.possible
        assert acct.facts["OPS_NAME"] in access.impossible[ActionKind.RESTART]
        with pytest.raises(AccessRefusedError):
            await scheduler.perform(job, act(ActionKind.CANCEL, seen), fence())
        assert acct.state(native) == "RUNNING"
    finally:
        acct.run("scancel", native, user="root")


async def test_credentials_are_told_apart_and_a_retry_after_the_fix_goes_on(
    acct: Cluster, tmp_path: Path
) -> None:
    """Wrong host key, key, user and port; then the same adapter works once the account accepts the key."""
    job = acct.job(acct.submit(acct.job_folder(), BASH + "sleep 300\n"))
    keys = acct.home / ".ssh" / "authorized_keys"
    accepted = keys.read_text()
    scheduler = acct.scheduler()
    keys.write_text("")
    try:
        with pytest.raises(AccessRefusedError, match="does not accept this key") as refused:
            await scheduler.validate(job)
        assert "authorized_keys" in refused.value.remedy
    finally:
        keys.write_text(accepted)
    assert (await scheduler.validate(job)).job_seen


async def test_a_cut_connection_is_made_again_and_shared_by_all(acct: Cluster) -> None:
    """A hundred looks use one connection; after a cut there is one more."""
    proxy = Proxy("127.0.0.1", int(acct.facts["PORT"]))
    proxy.open()
    scheduler = acct.scheduler(port=proxy.port)
    job = acct.job(acct.submit(acct.job_folder(), BASH + "sleep 300\n"))
    await asyncio.gather(*(scheduler.observe([job]) for _ in range(100)))
    assert proxy.connections == 1
    proxy.cut()
    with pytest.raises(UnreachableError):
        await scheduler.observe([job])
    proxy.open()
    await until_seen(scheduler, job, is_(Liveness.RUNNING), "is seen again")
    assert proxy.connections == 2
    await acct.close()
    proxy.cut()


async def test_a_requeue_truncates_the_log_whose_end_was_collected(bare: Cluster) -> None:
    """The reader starts anew; the evidence holds the old end."""
    scheduler = bare.scheduler()
    folder = bare.job_folder()
    script = (
        BASH
        + 'echo "run ${SLURM_RESTART_COUNT:-0} of the job, its first line"\n[ "$SLURM_RESTART_COUNT" ] || exit 3\nsleep 300\n'
    )
    job = bare.job(bare.submit(folder, script, "--output=o-%x-%j.txt", "--job-name=my run"))
    failed = await until_seen(scheduler, job, is_(Liveness.FAILED), "has failed")
    first = await scheduler.logs(job)
    evidence = await scheduler.collect(job, failed)
    assert any("run 0 of the job" in one.text for one in evidence if one.kind is EvidenceKind.LOG)
    await restart(scheduler, job, act(ActionKind.RESTART, failed))
    cursor = first.cursor

    async def look() -> str | None:
        nonlocal cursor
        batch = await scheduler.logs(job, cursor)
        cursor = batch.cursor
        return "".join(chunk.text for chunk in batch.chunks) or None

    assert "run 1 of the job" in await until(look, "the new log")


async def test_what_patrol_selects(bare: Cluster) -> None:
    """By user, partition and name pattern; finished jobs and other names are left out."""
    scheduler = bare.scheduler()
    folder = bare.job_folder()
    a = bare.submit(folder, BASH + "sleep 300\n", "--job-name=train-a", "-p", "low")
    bare.submit(folder, BASH + "sleep 300\n", "--job-name=train-b")
    done = bare.submit(folder, BASH + "exit 0\n", "--job-name=train-c", "-p", "low")
    array = bare.submit(folder, BASH + "sleep 300\n", "--job-name=train-d", "-p", "low", "--array=1-2")
    bare.wait(lambda: bare.state(done) == "COMPLETED", 60, "the short one is done")
    found = await scheduler.discover(f"user={bare.facts['USER_NAME']},partition=low,name=train-*")
    assert {ref.id for ref in found} == {a, f"{array}_1", f"{array}_2"}
    assert not await scheduler.discover("user=nobody")
