"""What dies, and what goes on."""

from __future__ import annotations

import ast
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.supervisor.running import SCRIPT, Supervised, until
from trainguard.supervisor import supervisor

STEPS = """
import os, sys, time
with open("starts", "a") as file:
    print(os.getpid(), os.environ.get("TRAINGUARD_RESUME_FROM", ""), file=file)
for step in range(100000):
    print(f"step {step}/100000", flush=True)
    time.sleep(0.02)
"""


def numbers(text: str) -> list[int]:
    return [int(line.split("/")[0][5:]) for line in text.splitlines() if line.startswith("step ")]


def alive(job: Supervised) -> int:
    return sum(supervisor.start_of(int(line.split()[0])) is not None for line in job.lines("starts"))


def restart(job: Supervised, fence: str = "f1") -> dict[str, object]:
    return job.tell("restart", "--fence", fence, "--token", job.view()["token"])


def test_the_command_outlives_the_terminal_that_started_it(job: Supervised) -> None:
    (job.home / "train.py").write_text(STEPS)
    argv = [sys.executable, SCRIPT, "start", "--state", str(job.state), "--", sys.executable, "train.py"]
    starter = subprocess.Popen(
        ["/bin/sh", "-c", '"$@"; sleep 600', "sh", *argv],
        cwd=job.home,
        start_new_session=True,
        # Whoever runs the tests may ignore it (nohup), and what is ignored is inherited.
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),
    )
    until(lambda: (job.state / "state.json").exists() and job.view()["step"], "steps")
    os.killpg(starter.pid, signal.SIGHUP)
    starter.wait(10)
    before = job.view()["step"]
    until(lambda: job.view()["step"] > before, "more steps")
    assert job.view()["supervisor_alive"]


def test_a_dead_supervisor_is_a_warning_not_a_failure(job: Supervised) -> None:
    job.start_python(STEPS)
    job.kill_supervisor()
    seen = job.view()
    assert seen["status"] == "running"
    assert "supervisor is dead" in seen["warning"]
    assert not seen["supervisor_alive"]


def test_a_new_supervisor_takes_up_the_living_command_and_starts_no_second(job: Supervised) -> None:
    job.start_python(STEPS)
    token = job.view()["token"]
    job.kill_supervisor()
    assert job.call("adopt", str(job.state)).returncode == 0
    seen = job.until_status("running")
    assert seen["supervisor_alive"]
    assert seen["supervisor"]["generation"] == 2
    assert seen["token"] == token
    assert len(job.lines("starts")) == 1


def test_the_end_of_a_command_is_known_though_no_supervisor_saw_it(job: Supervised) -> None:
    job.start_python(STEPS + "\n")
    job.kill_supervisor()
    os.kill(job.view()["pid"], signal.SIGKILL)
    seen = job.until_status("failed")
    assert (seen["exit_code"], seen["exit_signal"]) == (None, signal.SIGKILL)
    job.call("adopt", str(job.state))
    assert job.until_status("failed")["exit_signal"] == signal.SIGKILL


def test_a_command_outlives_its_shim_and_its_log_loses_nothing(job: Supervised) -> None:
    job.start_python(STEPS)
    until(lambda: "step 5/" in job.log(), "some steps")
    first = job.view()["shim"]
    os.kill(first, signal.SIGKILL)
    until(lambda: (job.attempt().read("started") or {})["shim"] != first, "another shim")
    reached = numbers(job.log())[-1]
    until(lambda: numbers(job.log())[-1] > reached + 5, "more steps")
    seen = numbers(job.log())
    assert seen == list(range(len(seen)))
    assert len(job.lines("starts")) == 1
    os.kill(job.view()["pid"], signal.SIGKILL)
    assert "not seen" in job.until_status("failed")["reason"]


def test_after_a_reboot_the_attempt_has_failed(job: Supervised) -> None:
    job.start_python(STEPS)
    until(lambda: job.lines("starts"), "the command has begun")
    state, attempt = job.view(), job.attempt()
    job.kill_supervisor()
    for pid in (state["shim"], state["pid"]):
        os.kill(pid, signal.SIGKILL)
    until(lambda: not attempt.processes(), "all dead")
    started = attempt.read("started")
    assert started is not None
    attempt.write("started", {**started, "boot_id": "another boot"})
    assert job.view()["status"] == "failed"
    job.call("adopt", str(job.state))
    assert job.until_status("failed")["reason"] == "the machine was restarted"
    assert len(job.lines("starts")) == 1


def test_a_second_supervisor_refuses_and_names_the_first(job: Supervised) -> None:
    job.start_python(STEPS)
    second = job.start("true")
    assert second.returncode == 2
    assert f"pid {job.view()['supervisor']['pid']} on " in second.stderr
    assert job.view()["attempt"] == 1
    assert "train.py" in str(supervisor.read_json(job.state / "spec.json"))


def test_a_start_takes_up_the_same_living_command_but_no_other(job: Supervised) -> None:
    job.start_python(STEPS)
    token = job.view()["token"]
    job.kill_supervisor()
    other = job.start("true")
    assert other.returncode == 2
    assert "attempt 1 still runs" in other.stderr
    assert job.start_python(STEPS).returncode == 0
    seen = job.until_status("running")
    assert (seen["token"], seen["supervisor_alive"]) == (token, True)
    assert len(job.lines("starts")) == 1


def test_the_owner_starts_a_job_that_is_over_anew(job: Supervised) -> None:
    assert job.start(sys.executable, "-c", "raise SystemExit(4)").returncode == 0
    assert job.until_status("failed")["exit_code"] == 4
    assert job.start(sys.executable, "-c", "print('better')").returncode == 0
    assert job.until_status("done")["attempt"] == 2
    assert "better" in job.log()


@pytest.mark.parametrize("name", supervisor.FAILPOINTS)
def test_a_supervisor_killed_within_a_restart_finishes_it_once(job: Supervised, name: str) -> None:
    job.start_python(STEPS)
    token = job.view()["token"]
    job.kill_supervisor()
    marker = job.home / "died"
    job.call("adopt", str(job.state), env={"TRAINGUARD_FAILPOINT": f"{name}@{marker}"})
    supervisor.send(
        job.state, {"fence": "f1", "do": "restart", "token": token, "resume": {"path": "/ckpt 7"}}
    )
    until(marker.exists, f"killed at {name}")
    until(lambda: not job.view()["supervisor_alive"], "the supervisor is dead")
    job.call("adopt", str(job.state))
    until(lambda: (supervisor.result_of(job.state, "f1") or {}).get("status") == "done", "the result")
    seen = job.until_status("running")
    until(lambda: len(job.lines("starts")) == 2, "the second start")
    assert seen["attempt"] == 2
    assert not job.attempt(1).processes()
    assert alive(job) == 1
    assert seen["pid"] in supervisor.carrying(seen["token"])
    assert job.lines("starts")[1].endswith("/ckpt 7")
    assert job.tell("restart", "--fence", "f1", "--token", token)["attempt"] == 2
    assert job.tell("restart", "--fence", "f2", "--token", token)["status"] == "refused"
    assert len(job.lines("starts")) == 2


@pytest.mark.parametrize(
    ("name", "status", "starts"),
    [("shim-locked", "running", 1), ("command-forked", "running", 1), ("command-recorded", "failed", 0)],
)
def test_a_shim_killed_at_start_never_leaves_two_commands(
    job: Supervised, name: str, status: str, starts: int
) -> None:
    job.start_python(STEPS, TRAINGUARD_FAILPOINT=f"{name}@{job.home / 'died'}")
    until(lambda: job.view()["status"] == status and len(job.lines("starts")) == starts, status)
    until(lambda: alive(job) == starts, "one alive")
    assert (job.home / "died").exists()


def test_a_supervisor_terminated_with_the_machine_does_not_stop_the_job(job: Supervised) -> None:
    job.start_python(STEPS)
    os.kill(job.view()["supervisor"]["pid"], signal.SIGTERM)
    until(lambda: not job.view()["supervisor_alive"], "it leaves")
    seen = job.view()
    assert seen["status"] == "running"
    assert seen["command_alive"]
    assert not (job.attempt().folder / "stopped.json").exists()


def test_a_lost_state_file_is_made_anew_from_the_attempts(job: Supervised) -> None:
    job.start_python(STEPS)
    before = job.view()
    job.kill_supervisor()
    (job.state / "state.json").write_bytes(b"\x00garbage")
    with pytest.raises(supervisor.StateError):
        job.view()
    job.call("adopt", str(job.state))
    after = job.until_status("running")
    for field in ("token", "attempt", "pid", "started_at"):
        assert after[field] == before[field], field


def test_a_supervisor_whose_job_is_over_does_not_outlive_its_folder(job: Supervised) -> None:
    job.start(sys.executable, "-c", "raise SystemExit(1)")
    pid = job.until_status("failed")["supervisor"]["pid"]
    assert supervisor.start_of(pid) is not None
    shutil.rmtree(job.state)
    until(lambda: supervisor.start_of(pid) is None, "it leaves")


def test_the_state_folder_is_private(job: Supervised) -> None:
    job.start_python(STEPS, SECRET_TOKEN="hunter2")
    assert "hunter2" in (job.state / "env.json").read_text()
    assert (job.state / "env.json").stat().st_mode & 0o077 == 0
    assert job.state.stat().st_mode & 0o077 == 0
    for path in job.state.rglob("*.json"):
        assert path.name == "env.json" or "hunter2" not in path.read_text()


def old_pythons() -> list[str]:
    """Find an interpreter older than ours, where there is one."""
    versions = ("3.8", "3.9", "3.10")
    found = [
        str(path)
        for v in versions
        for path in sorted(Path.home().glob(f".pyenv/versions/{v}.*/bin/python{v}"))
    ]
    return found + [path for v in versions if (path := shutil.which(f"python{v}"))]


def test_the_file_is_alone_and_written_for_old_pythons() -> None:
    tree = ast.parse(Path(SCRIPT).read_text(), feature_version=(3, 8))
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            names.add((node.module or "").split(".")[0])
    assert names <= sys.stdlib_module_names


def test_an_old_python_without_the_package_runs_the_copied_file(job: Supervised) -> None:
    python = next(iter(old_pythons()), sys.executable)
    copy = job.home / "copied.py"
    copy.write_text(Path(SCRIPT).read_text())
    argv = [
        python,
        str(copy),
        "start",
        "--state",
        str(job.state),
        "--",
        "sh",
        "-c",
        "echo step 3/9; exit 5",
    ]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done
    seen = job.until_status("failed")
    assert (seen["exit_code"], seen["attempt"]) == (5, 1)
    assert "step 3/9" in job.log()
