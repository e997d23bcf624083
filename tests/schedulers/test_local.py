"""The local scheduler holds the contract, on real supervisors and real processes."""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy
import pytest

from tests.schedulers.local_lab import LocalLab
from trainguard.core.action import Action, ActionKind, Fence, OutcomeStatus
from trainguard.core.errors import AccessRefusedError, ConfigError, SchedulerError
from trainguard.core.evidence import EvidenceKind
from trainguard.core.job import CheckpointSpec, Job, JobRef, Resume, ResumeBy
from trainguard.core.observation import Liveness, Observation
from trainguard.schedulers.local import LocalJob, load_job, start_job
from trainguard.schedulers.local.evidence import without_strangers
from trainguard.schedulers.local.observing import LIVENESS, read_state
from trainguard.supervisor import supervisor
from trainguard.testing.scheduler_contract import SchedulerContract
from trainguard.testing.scheduler_lab import Workload


class TestLocal(SchedulerContract):
    @pytest.fixture
    async def lab(self, tmp_path: Path) -> AsyncIterator[LocalLab]:
        lab = LocalLab(tmp_path)
        yield lab
        await lab.close()


async def until_seen(lab: LocalLab, job: Job, *wanted: Liveness) -> Observation:
    async def look() -> Observation | None:
        seen = (await lab.scheduler.observe([job]))[job.ref]
        return seen if seen.liveness in wanted else None

    return await lab.until(look, f"{wanted}")


def fence(token: str = "tg-local-1") -> Fence:
    return Fence(token=token, incident="local", lease=1)


@pytest.fixture
async def lab(tmp_path: Path) -> AsyncIterator[LocalLab]:
    lab = LocalLab(tmp_path)
    yield lab
    await lab.close()


class TestWhatIsRead:
    @pytest.mark.parametrize(
        "garbage",
        [b"", b"{", b"[]", b'"x"', b"\xff\x00", b'{"version": 1, "status": "running"}', b"{}" * 10_000_000],
    )
    async def test_a_state_that_is_garbage_is_unknown(self, lab: LocalLab, garbage: bytes) -> None:
        job = await lab.start(Workload.HEALTHY)
        await lab.kill_supervisor(job)
        (lab.real(job) / "state.json").write_bytes(garbage)
        seen = (await lab.scheduler.observe([job]))[job.ref]
        assert seen.liveness is Liveness.UNKNOWN
        assert "state.json" in seen.reason

    async def test_a_folder_that_may_not_be_read_is_unknown_and_says_who_should(self, lab: LocalLab) -> None:
        with tempfile.TemporaryDirectory() as name:
            ref = JobRef(scheduler="local", cluster="here", id=name)
            job = Job(ref=ref, name="closed")
            Path(name).chmod(0)
            root = os.geteuid() == 0
            os.seteuid(65534 if root else os.geteuid())
            try:
                seen = (await lab.scheduler.observe([job]))[ref]
                with pytest.raises(AccessRefusedError) as raised:
                    await lab.scheduler.logs(job)
            finally:
                os.seteuid(0 if root else os.geteuid())
                Path(name).chmod(0o700)
        assert seen.liveness is Liveness.UNKNOWN
        assert "Permission denied" in seen.reason
        assert "as the user who runs the job" in raised.value.remedy

    @pytest.mark.parametrize("how", ["a file", "a loop of links", "gone"])
    async def test_a_folder_of_logs_that_cant_be_read_is_said_and_the_job_still_seen(
        self, lab: LocalLab, how: str
    ) -> None:
        job = await lab.start(Workload.HEALTHY)
        await until_seen(lab, job, Liveness.RUNNING)
        await lab.kill_supervisor(job)
        logs = lab.real(job) / "logs"
        logs.rename(logs.with_name("logs-elsewhere"))
        if how == "a file":
            logs.write_text("no folder")
        elif how == "a loop of links":
            logs.symlink_to("logs")
        access = await lab.scheduler.validate(job)
        assert access.job_seen
        assert not access.logs_readable
        assert any("/logs: " in warning for warning in access.warnings), access.warnings
        with pytest.raises(SchedulerError, match="/logs: "):
            await lab.scheduler.logs(job)
        seen = (await lab.scheduler.observe([job]))[job.ref]
        assert seen.liveness is Liveness.RUNNING

    async def test_a_garbage_state_is_mended_by_the_restart_that_is_asked_for(self, lab: LocalLab) -> None:
        job = await lab.start(Workload.HEALTHY)
        seen = await until_seen(lab, job, Liveness.RUNNING)
        assert seen.incarnation is not None
        folder = lab.real(job)
        await lab.kill_supervisor(job)
        (folder / "state.json").write_bytes(b"garbage")
        await asyncio.to_thread(supervisor.revive, folder)
        action = Action(kind=ActionKind.RESTART, incarnation=seen.incarnation)
        assert (await lab.scheduler.perform(job, action, fence())).status is OutcomeStatus.DONE

    async def test_a_living_job_without_its_supervisor_runs_with_a_warning(self, lab: LocalLab) -> None:
        job = await lab.start(Workload.HEALTHY)
        seen = await until_seen(lab, job, Liveness.RUNNING)
        assert seen.incarnation is not None
        await lab.kill_supervisor(job)
        await lab.until_said(job)
        seen = (await lab.scheduler.observe([job]))[job.ref]
        assert seen.liveness is Liveness.RUNNING
        assert "supervisor is dead" in seen.warning
        assert seen.incarnation is not None
        action = Action(kind=ActionKind.RESTART, incarnation=seen.incarnation)
        assert (await lab.scheduler.perform(job, action, fence())).status is OutcomeStatus.DONE
        seen = await until_seen(lab, job, Liveness.RUNNING)
        assert not seen.warning

        async def look() -> bool | None:
            return True if await lab.starts(job) == 2 else None

        await lab.until(look, "the second start")
        assert await lab.alive(job) == 1

    async def test_progress_signs_of_life_and_use_are_seen(self, lab: LocalLab) -> None:
        job = await lab.start(Workload.HEALTHY)

        async def look() -> Observation | None:
            seen = (await lab.scheduler.observe([job]))[job.ref]
            use = seen.utilisation
            return seen if seen.progress and use.memory_bytes and use.cpu_percent is not None else None

        seen = await lab.until(look, "progress and use")
        assert seen.progress is not None
        assert seen.progress.total == 100000
        assert seen.log_age is not None
        assert seen.log_age < 10
        assert seen.utilisation.memory_bytes is not None
        assert 1_000_000 < seen.utilisation.memory_bytes < 500_000_000

    def test_a_clock_that_was_set_back_makes_no_old_heartbeat(self) -> None:
        ref = JobRef(scheduler="local", cluster="here", id="/x")
        state = {"status": "running", "now": 1000.0, "beat_at": 5000.0, "log_at": 5000.0}
        seen = read_state(ref, {**state, "supervisor": {"host": "here"}})
        assert (seen.heartbeat_age, seen.log_age) == (0.0, 0.0)

    def test_a_log_that_grows_is_no_heartbeat(self) -> None:
        """A hung job's side thread may log for ever: only its steps, or a heartbeat of its own, say that it trains."""
        ref = JobRef(scheduler="local", cluster="here", id="/x")
        state = {"status": "running", "now": 1000.0, "heartbeat_at": 999.0, "log_at": 999.0, "beat_at": None}
        seen = read_state(ref, {**state, "supervisor": {"host": "here"}})
        assert (seen.heartbeat_age, seen.log_age) == (None, 1.0)

    def test_every_status_of_the_supervisor_has_a_meaning(self) -> None:
        assert set(LIVENESS) == set(supervisor.STATUSES)

    def test_gpus_are_seen_as_percents(self) -> None:
        table = "0, GPU-aa, 97, 70000, 143771\n1, GPU-bb, [N/A], 1, 143771\n2, GPU-cc, 0, 0, 143771\n"
        state: dict[str, Any] = {"status": "running", "now": 1.0, "supervisor": {"host": "here"}}
        ref = JobRef(scheduler="local", cluster="here", id="/x")
        some = read_state(ref, {**state, "gpus": supervisor.parse_gpus(table, "0,GPU-cc")})
        assert some.utilisation.gpu_percent == (97.0, 0.0)
        assert some.utilisation.gpu_memory_percent is not None
        assert round(some.utilisation.gpu_memory_percent[0], 1) == 48.7
        unreadable = read_state(ref, {**state, "gpus": supervisor.parse_gpus(table)})
        assert unreadable.utilisation.gpu_percent is None


class TestFurtherLogs:
    async def test_they_are_followed_beside_the_jobs_own(self, lab: LocalLab, tmp_path: Path) -> None:
        job = (await lab.start(Workload.QUIET)).model_copy(
            update={"extra_logs": (str(tmp_path / "a"), str(tmp_path / "b"))}
        )
        (tmp_path / "a").write_text("a1\nhalf")
        first = await lab.scheduler.logs(job)
        (tmp_path / "a").write_text("a1\nhalf whole\n")
        (tmp_path / "b").write_text("b1\n")
        second = await lab.scheduler.logs(job, first.cursor)
        (tmp_path / "a").write_text("new\n")
        third = await lab.scheduler.logs(job, second.cursor)
        texts = [
            [(Path(c.source.name).name, c.text) for c in batch.chunks] for batch in (first, second, third)
        ]
        assert texts == [[("a", "a1\n")], [("a", "half whole\n"), ("b", "b1\n")], [("a", "new\n")]]

    async def test_two_gigabytes_are_read_at_their_end_only(self, lab: LocalLab, tmp_path: Path) -> None:
        with (tmp_path / "big").open("wb") as file:
            file.truncate(2 << 30)
            file.seek(0, 2)
            file.write(b"\nlast line\n")
        job = (await lab.start(Workload.QUIET)).model_copy(update={"extra_logs": (str(tmp_path / "big"),)})
        batch = await lab.scheduler.logs(job, "", 40_000)
        assert batch.chunks[0].text == "last line\n"


class TestEvidence:
    async def test_a_running_job_shows_its_stacks_and_a_dead_one_its_end(self, lab: LocalLab) -> None:
        job = await lab.start(Workload.HEALTHY)
        seen = await until_seen(lab, job, Liveness.RUNNING)
        kinds = {item.kind: item.text for item in await lab.scheduler.collect(job, seen)}
        assert "-- threads" in kinds[EvidenceKind.STACKS]
        await lab.crash(job)
        seen = await until_seen(lab, job, Liveness.FAILED)
        kinds = {item.kind: item.text for item in await lab.scheduler.collect(job, seen)}
        assert '"exit_signal": 9' in kinds[EvidenceKind.STATUS]

    def test_kills_of_other_jobs_processes_prove_nothing(self) -> None:
        begins, ends = (
            "python invoked oom-killer: gfp_mask=0x0",
            "Memory cgroup out of memory: Killed process",
        )
        theirs = [begins, "memory: usage 81920kB, limit 81920kB", f"{ends} 77 (python)"]
        ours = [begins, "Tasks state", f"{ends} 9 (python)"]
        by_group = [begins, "oom-kill:oom_memcg=/trainguard-1-abc,task=x,pid=55", f"{ends} 55 (x)"]
        reaped = "oom_reaper: reaped process 78"
        text = "\n".join([*theirs, "NVRM: Xid 79", *ours, *by_group, reaped, begins])
        assert without_strangers(text, {9}, "1-abc").splitlines() == [
            "NVRM: Xid 79",
            *ours,
            *by_group,
            begins,
            "[trainguard] 4 lines about other jobs' processes left out",
        ]

    def test_what_the_kernel_said_before_the_attempt_is_no_evidence(self) -> None:
        text = "[   10.5] old\n[  100.000001] near\n[  200.25] new\ncontinued\n"
        assert supervisor.kernel_lines(text, since=1_000_100.0, booted_at=1_000_000.0) == [
            "1970-01-12T13:48:20+0000 kernel: near",
            "1970-01-12T13:50:00+0000 kernel: new",
        ]

    @pytest.mark.skipif(not supervisor.output_of(("dmesg",)), reason="the kernel's log may not be read here")
    async def test_a_restarted_job_does_not_inherit_the_kill_of_its_predecessor(self, lab: LocalLab) -> None:
        greedy = "import os; held = [bytearray(os.urandom(1) * (1 << 20)) for _ in range(500)]"
        job = await lab.start_command(
            "greedy", ("sh", "-c", '[ -n "$TRAINGUARD_RESUME_FROM" ] || exec "$0" -c "$1"', sys.executable, greedy),
            {"memory": {"limit": "80MiB"}},
        )  # fmt: skip

        async def kernel(liveness: Liveness) -> str:
            seen = await until_seen(lab, job, liveness)
            found = await lab.scheduler.collect(job, seen)
            return "".join(item.text for item in found if item.kind is EvidenceKind.KERNEL)

        if "Killed process" not in await kernel(Liveness.FAILED):
            pytest.skip("not killed by the kernel: no control group can be made here")
        await asyncio.sleep(1.2)  # the kernel's clock and ours may differ by a second
        await lab.tell(job, "restart", "--json", '{"resume": {"path": "/somewhere"}}')
        assert "Killed process" not in await kernel(Liveness.SUCCEEDED)


class TestStarting:
    async def test_what_the_gate_says_reaches_the_caller(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError) as raised:
            await start_job(LocalJob(name="x", state=tmp_path / "s", command=("no-such-program",)))
        assert raised.value.field == "command"
        assert raised.value.remedy

    async def test_a_folder_that_is_supervised_already_is_refused(self, lab: LocalLab) -> None:
        job = await lab.start(Workload.HEALTHY)
        with pytest.raises(ConfigError, match="supervised already, by pid"):
            await lab.start_as(Path(job.ref.id).name, Workload.HEALTHY)

    async def test_a_job_is_known_again_from_its_folder(self, lab: LocalLab, tmp_path: Path) -> None:
        config = LocalJob(
            name="known",
            project="p",
            state=tmp_path / "known",
            command=("true",),
            checkpoints=CheckpointSpec(
                directory="/ckpt", resume=Resume(by=ResumeBy.ARGUMENT, name="--resume")
            ),
            max_steps=7,
        )
        job = await start_job(config, "here")
        assert load_job(tmp_path / "known", "here") == job

    def test_a_folder_of_the_bare_supervisor_is_a_job_too(self, tmp_path: Path) -> None:
        config = supervisor.check_config({"checkpoints": {"directory": "c"}, "name": "n"})
        supervisor.write_json(
            tmp_path / "spec.json", {"config": config, "name": "n", "cwd": "/", "command": ["true"]}
        )
        job = load_job(tmp_path)
        assert job.name == "n"
        assert job.checkpoints is not None

    def test_a_folder_without_a_job_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="no supervised job"):
            load_job(tmp_path)


class TestRights:
    async def test_what_is_not_declared_is_impossible_and_says_what_would_allow_it(
        self, lab: LocalLab
    ) -> None:
        job = await lab.start(Workload.HEALTHY)
        access = await lab.scheduler.validate(job)
        assert "free_disk.paths" in access.impossible[ActionKind.FREE_DISK]
        assert "memory.limit" in access.impossible[ActionKind.RESTART_WITH_MORE_MEMORY]
        assert ActionKind.RESTART in access.possible

    @pytest.mark.parametrize(
        ("selector", "names"), [("status=failed", ["b"]), ("name=a*", ["a"]), ("*", ["a", "b"])]
    )
    async def test_discover_selects(self, lab: LocalLab, selector: str, names: list[str]) -> None:
        await lab.start_as("a", Workload.HEALTHY)
        job = await lab.start_as("b", Workload.CRASHING)
        await until_seen(lab, job, Liveness.FAILED)
        found = await lab.scheduler.discover(selector)
        assert [Path(ref.id).name for ref in found] == names

    async def test_a_selector_that_is_none_is_refused(self, lab: LocalLab) -> None:
        with pytest.raises(ConfigError, match="user=alice"):
            await lab.scheduler.discover("user=alice")


class TestCheckpoints:
    async def test_the_gate_looks_where_the_job_writes_and_a_bad_one_is_moved_aside(
        self, lab: LocalLab
    ) -> None:
        job = await lab.start(Workload.HEALTHY, Resume())
        assert job.checkpoints is not None
        folder = Path(job.checkpoints.directory)
        for step in (10, 20):
            numpy.savez(folder / f"step-{step}.npz", weights=numpy.zeros(1000))
        whole = (folder / "step-20.npz").read_bytes()
        (folder / "step-30.npz").write_bytes(whole[:500])
        await lab.crash(job)
        seen = await until_seen(lab, job, Liveness.FAILED)
        assert seen.incarnation is not None
        found = await lab.scheduler.checkpoints(job)
        assert [(one.step, one.good) for one in found or ()] == [(30, False), (20, True), (10, True)]
        action = Action(
            kind=ActionKind.SET_ASIDE_CHECKPOINT,
            incarnation=seen.incarnation,
            checkpoint=str(folder / "step-30.npz"),
        )
        assert (await lab.scheduler.perform(job, action, fence())).status is OutcomeStatus.DONE
        assert (await lab.twin().perform(job, action, fence())).status is OutcomeStatus.DONE
        found = await lab.scheduler.checkpoints(job)
        assert [one.step for one in found or ()] == [20, 10]
        assert [path for path in folder.iterdir() if path.read_bytes() == whole[:500]]

    async def test_nothing_declared_is_nothing_known_and_a_missing_folder_is_none(
        self, lab: LocalLab
    ) -> None:
        job = await lab.start(Workload.HEALTHY)
        assert await lab.scheduler.checkpoints(job) is None
        spec = CheckpointSpec(directory="not/there/yet")
        assert await lab.scheduler.checkpoints(job.model_copy(update={"checkpoints": spec})) == ()
