"""What a supervisor is told, and what it does by itself."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.supervisor.running import Supervised, until
from trainguard.supervisor import supervisor

DEADLOCK = """
import threading, time
print("step 7/9", flush=True)
lock = threading.Lock()
def deep_in_the_dataloader():
    with lock:
        lock.acquire()
deep_in_the_dataloader()
"""
STUBBORN = """
import os, signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-c", "import time, signal; signal.signal(15, 1); time.sleep(600)"],
                         start_new_session=True)
open("child", "w").write(str(child.pid))
print("step 1", flush=True)
time.sleep(600)
"""


def test_stop_is_gentle_first_and_durable(job: Supervised) -> None:
    job.start_python(
        "import signal, sys, time\n"
        "def bye(*_):\n    print('saved a checkpoint', flush=True); sys.exit(0)\n"
        "signal.signal(signal.SIGTERM, bye)\nprint('step 1', flush=True)\ntime.sleep(600)"
    )
    until(lambda: "step 1" in job.log(), "it runs")
    assert job.tell("stop")["status"] == "done"
    seen = job.until_status("stopped")
    assert seen["stopped_by"] == "owner"
    assert "saved a checkpoint" in job.log()
    assert job.tell("restart")["detail"].startswith("stopped by owner")
    job.kill_supervisor()
    job.call("adopt", str(job.state))
    assert job.view()["status"] == "stopped"


def test_a_command_that_finished_before_the_restart_came_is_not_started_again(job: Supervised) -> None:
    job.start_python("import os, time\nwhile not os.path.exists('go'): time.sleep(0.02)")
    state = job.view()
    os.kill(state["supervisor"]["pid"], signal.SIGSTOP)
    (job.home / "go").touch()
    until(lambda: job.attempt().read("exit"), "it finishes")
    supervisor.send(job.state, {"fence": "f1", "do": "restart", "token": state["token"]})
    os.kill(state["supervisor"]["pid"], signal.SIGCONT)
    until(lambda: (supervisor.result_of(job.state, "f1") or {}).get("status") == "refused", "the refusal")
    assert job.until_status("done")["attempt"] == 1
    assert job.tell("stop")["detail"] == "it was done already"
    assert job.view()["status"] == "done"


def test_what_will_not_end_is_killed_with_all_its_children(job: Supervised) -> None:
    job.start_python(STUBBORN, {"stop_seconds": 0.5})
    until(lambda: job.lines("child") and "step 1" in job.log(), "it runs")
    child = int(job.lines("child")[0])
    assert job.tell("stop")["status"] == "done"
    assert supervisor.start_of(child) is None
    assert job.view()["exit_signal"] == signal.SIGKILL


def test_a_process_that_left_the_tree_is_still_the_attempts(job: Supervised) -> None:
    job.start_python(STUBBORN, {"stop_seconds": 0.5})
    until(lambda: job.lines("child"), "the child runs")
    child, state = int(job.lines("child")[0]), job.view()
    # Without its shim, and with its parent dead, the child is nobody's descendant.
    job.kill_supervisor()
    os.kill(state["shim"], signal.SIGKILL)
    os.kill(state["pid"], signal.SIGKILL)
    until(lambda: supervisor.start_of(state["pid"]) is None, "the command is dead")
    assert supervisor.start_of(child) is not None
    assert job.tell("restart", "--token", state["token"])["status"] == "done"
    assert supervisor.start_of(child) is None


def test_a_hung_command_leaves_its_stacks_before_it_is_killed(job: Supervised) -> None:
    job.start_python(DEADLOCK)
    until(lambda: "step 7" in job.log(), "it hangs")
    # Five seconds of silence make it silent; the log's age is what tells.
    old = time.time() - 100
    started = job.attempt().read("started")
    assert started is not None
    job.attempt().write("started", {**started, "at": old})

    def silent() -> bool:
        os.utime(job.state / "logs" / "current.log", (old, old))
        return bool((supervisor.read_json(job.state / "state.json") or {})["heartbeat_at"] < old + 1)

    until(silent, "the silence is seen")
    answer = job.tell("restart", "--fence", "f1")
    assert answer["attempt"] == 2
    assert "deep_in_the_dataloader" in job.log(1)
    saved = job.state / "evidence" / "f1"
    assert "futex" in (saved / "stacks.txt").read_text()
    assert "step 7/9" in (saved / "last_lines.txt").read_text()


def test_a_stopped_process_is_killed_too(job: Supervised) -> None:
    job.start_python("import time\ntime.sleep(600)")
    os.kill(job.view()["pid"], signal.SIGSTOP)
    assert job.tell("restart", "--fence", "f1")["attempt"] == 2


@pytest.mark.parametrize(
    ("resume", "says"),
    [
        ({"by": "magic"}, "is none of"),
        ({"by": "argument", "name": "", "path": "/x"}, "resume.name is empty"),
        ({"by": "symlink", "name": "real", "path": "/x"}, "is no link"),
        ({"by": "symlink", "name": "no/where", "path": "/x"}, "is no folder"),
    ],
)
def test_a_resume_that_can_not_work_is_refused_before_anything_is_killed(
    job: Supervised, resume: dict[str, str], says: str
) -> None:
    (job.home / "real").mkdir()
    job.start_python("import time\ntime.sleep(600)")
    pid = job.view()["pid"]
    answer = job.tell("restart", resume=resume)
    assert answer["status"] == "refused"
    assert says in answer["detail"]
    assert supervisor.start_of(pid) is not None


def test_a_command_that_is_garbage_is_refused_and_goes_away(job: Supervised) -> None:
    job.start_python("import time\ntime.sleep(600)")
    for name, text in (
        ("g1", "{"),
        ("g2", "[]"),
        ("g3", '{"fence": "g3", "do": "format"}'),
        ("g4", '{"fence": "x"}'),
    ):
        (job.state / "inbox" / f"{name}.json").write_text(text)
        until(lambda name=name: supervisor.result_of(job.state, name), name)  # type: ignore[misc]
        until(lambda name=name: not (job.state / "inbox" / f"{name}.json").exists(), name)  # type: ignore[misc]
        assert (supervisor.result_of(job.state, name) or {})["status"] == "refused"
    assert job.view()["status"] == "running"


@pytest.mark.parametrize("fence", ["", "../x", "a/b", "x" * 81, ".hidden", "a b"])
def test_a_fence_that_is_no_file_name_is_refused(job: Supervised, fence: str) -> None:
    with pytest.raises(supervisor.Refusal):
        supervisor.send(job.state, {"fence": fence, "do": "stop"})
    assert supervisor.result_of(job.state, fence) is None


def test_own_retries_are_bounded(job: Supervised) -> None:
    job.start_python(
        "open('starts', 'a').write('x\\n')\nraise SystemExit(9)", {"retry": {"max": 2, "delay_seconds": 0.1}}
    )
    seen = job.until_status("failed")
    assert len(job.lines("starts")) == 3
    assert [row["exit_code"] for row in seen["attempts"]] == [9, 9, 9]
    assert seen["retries_used"] == 2


def test_a_guards_restart_gives_the_retries_back(job: Supervised) -> None:
    config = {"retry": {"max": 1, "delay_seconds": 0.1}}
    job.start_python("open('starts', 'a').write('x\\n')\nraise SystemExit(9)", config)
    job.until_status("failed")
    job.tell("restart")
    until(lambda: job.view()["attempt"] == 4 and job.view()["status"] == "failed", "two more attempts")
    assert len(job.lines("starts")) == 4


def test_a_retry_that_is_due_is_the_supervisors_own_business(job: Supervised) -> None:
    job.start(sys.executable, "-c", "raise SystemExit(1)", config={"retry": {"max": 1, "delay_seconds": 600}})
    seen = job.until_status("retrying")
    assert seen["next_attempt_at"] > time.time() + 300
    assert "own retry" in job.tell("restart")["detail"]
    assert job.tell("stop")["status"] == "done"
    assert job.view()["status"] == "stopped"


def test_a_missing_dependency_is_installed_by_its_declared_name_only(job: Supervised) -> None:
    (job.home / "install.sh").write_text("echo 'there = 1' > \"$1\"\n")
    config: dict[str, Any] = {
        "retry": {"max": 2, "delay_seconds": 0.1, "fixes": ["install_dependency"]},
        "install": {"commands": {"tg_missing_tool": ["sh", str(job.home / "install.sh"), "tg_missing_tool"]}},
    }
    job.start(
        "sh",
        "-c",
        "test -e tg_missing_tool || { echo 'sh: tg_missing_tool: not found'; exit 127; }",
        config=config,
    )
    seen = job.until_status("done")
    assert seen["attempt"] == 2
    assert seen["fix"].startswith("install_dependency tg_missing_tool")


def test_installing_what_is_not_declared_is_refused(job: Supervised) -> None:
    job.start(
        sys.executable,
        "-c",
        "raise SystemExit(1)",
        config={"install": {"packages": {"einops": "einops==0.8"}}},
    )
    job.until_status("failed")
    assert "do not name 'requests'" in job.tell("install", package="requests")["detail"]


def test_a_declared_dependency_is_one_exact_word_of_a_command() -> None:
    config = supervisor.check_config({"install": {"packages": {"cv2": "opencv-python-headless==4.9"}}})
    argv = supervisor.install_argv(config, ["/opt/py/bin/python3", "train.py"], "cv2")
    assert argv[:4] == ["/opt/py/bin/python3", "-m", "pip", "install"]
    assert argv[-2:] == ["--", "opencv-python-headless==4.9"]
    with pytest.raises(supervisor.Refusal):
        supervisor.install_argv(config, ["python"], "opencv-python")


def test_only_declared_old_files_are_deleted(job: Supervised) -> None:
    scratch, outside = job.home / "scratch", job.home / "outside"
    for folder in (scratch / "deep", outside):
        folder.mkdir(parents=True)
    old = time.time() - 7200
    for path in (scratch / "a.tmp", scratch / "deep" / "b.tmp", scratch / "keep.pt", outside / "c.tmp"):
        path.write_text("x")
        os.utime(path, (old, old))
    (scratch / "fresh.tmp").write_text("x")
    (scratch / "way.tmp").symlink_to(outside / "c.tmp")
    os.utime(scratch / "way.tmp", (old, old), follow_symlinks=False)
    (scratch / "way").symlink_to(outside)
    job.start(
        sys.executable,
        "-c",
        "raise SystemExit(1)",
        config={"free_disk": {"paths": ["scratch"], "patterns": ["*.tmp"]}},
    )
    job.until_status("failed")
    answer = job.tell("free_disk")
    assert answer["detail"].startswith("free_disk: 2 files deleted")
    left = sorted(
        str(p.relative_to(job.home)) for p in (*scratch.rglob("*"), *outside.rglob("*")) if not p.is_dir()
    )
    assert left == ["outside/c.tmp", "scratch/fresh.tmp", "scratch/keep.pt", "scratch/way.tmp"]
    assert job.tell("free_disk")["status"] == "refused"


def test_an_evaluation_out_of_memory_is_made_smaller_step_by_step(job: Supervised) -> None:
    config = {
        "retry": {"max": 3, "delay_seconds": 0.1, "fixes": ["reduce_eval_size"]},
        "eval": {"name": "--eval-size", "values": [32, 8]},
    }
    code = "import sys\nn = int(sys.argv[2])\nprint(n)\nif n > 8: raise MemoryError('eval')\n"
    (job.home / "eval.py").write_text(code)
    job.start(sys.executable, "eval.py", "--eval-size", "64", config=config)
    seen = job.until_status("done", "failed")
    assert (seen["status"], seen["attempt"]) == ("done", 3)
    assert seen["fix"] == "reduce_eval_size: --eval-size 8"
    assert [job.log(n).splitlines()[0] for n in (1, 2, 3)] == ["64", "32", "8"]


def test_a_bad_checkpoint_is_moved_aside_with_a_note_and_only_there(job: Supervised) -> None:
    folder = job.home / "checkpoints"
    folder.mkdir()
    (folder / "step-9.pt").write_text("cut")
    (job.home / "precious").write_text("x")
    config = {"checkpoints": {"directory": "checkpoints"}}
    job.start(sys.executable, "-c", "raise SystemExit(1)", config=config)
    job.until_status("failed")
    for path in ("precious", "checkpoints/../precious", "/etc/hostname", "checkpoints", ""):
        assert job.tell("set_aside", path=path)["status"] == "refused", path
    answer = job.tell("set_aside", "--fence", "f9", path="checkpoints/step-9.pt", note="truncated")
    assert answer["status"] == "done"
    aside = folder / ".step-9.pt.trainguard-set-aside-f9"
    assert aside.read_text() == "cut"
    assert "truncated" in Path(f"{aside}.json").read_text()
    assert not (folder / "step-9.pt").exists()


def test_in_the_foreground_the_output_and_the_exit_code_are_the_commands(job: Supervised) -> None:
    words = ("start", "--foreground", "--state", str(job.state), "--", "sh", "-c", "echo hello; exit 7")
    done = job.call(*words)
    assert done.returncode == 7
    assert done.stdout.strip() == "hello"


def test_a_command_that_can_not_be_executed_fails_with_its_reason(job: Supervised) -> None:
    program = job.home / "broken"
    program.write_text("#!/no/such/interpreter\n")
    program.chmod(0o755)
    job.start("./broken")
    seen = job.until_status("failed")
    assert seen["exit_code"] == 127
    assert "No such file" in seen["reason"]


def test_what_a_command_leaves_behind_does_not_outlive_it_long(job: Supervised) -> None:
    code = (
        "import subprocess, sys\n"
        "p = subprocess.Popen(['sleep', '600'], start_new_session=True)\n"
        "open('left', 'w').write(str(p.pid))\n"
    )
    job.start_python(code, {"leftover_seconds": 0.2})
    job.until_status("done")
    left = int(job.lines("left")[0])
    until(lambda: supervisor.start_of(left) is None, "the leftover is gone")


def test_the_heartbeat_file_counts_and_tells_the_step(job: Supervised) -> None:
    job.start_python(
        "import json, os, time\n"
        "for step in range(1000):\n"
        "    path = os.environ['TRAINGUARD_HEARTBEAT']\n"
        "    open(path + '.tmp', 'w').write(json.dumps({'step': step + 500, 'total': 1500}))\n"
        "    os.replace(path + '.tmp', path)\n"
        "    time.sleep(0.02)\n"
    )
    until(lambda: (job.view().get("step") or 0) > 510, "steps from the heartbeat")
    assert job.view()["total"] == 1500
    assert time.time() - job.view()["heartbeat_at"] < 5
