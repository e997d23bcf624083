"""A memory limit ends a command for real, and the state says so."""

from __future__ import annotations

import signal
import sys

import pytest

from tests.supervisor.running import Supervised, until
from trainguard.supervisor import supervisor

MIB = 1 << 20
GREEDY = """
import os, sys, time
limit = int(os.environ.get("NEEDS", "200"))
print("step 1/9", flush=True)
held = []
while len(held) < limit:
    held.append(bytearray(os.urandom(1) * (1 << 20)))
    time.sleep(0.002)
print("step 2/9 enough", flush=True)
time.sleep(600)
"""


def may_make_cgroups() -> bool:
    group = supervisor.CgroupLimit.make("trainguard-probe", 64 * MIB)
    if group is not None:
        group.remove()
    return group is not None


needs_cgroups = pytest.mark.skipif(not may_make_cgroups(), reason="no memory control group can be made here")
METHODS = [pytest.param("cgroup", marks=needs_cgroups), "watchdog"]


@pytest.mark.parametrize("method", METHODS)
def test_a_command_over_its_memory_limit_is_killed_and_counts_as_out_of_memory(
    job: Supervised, method: str
) -> None:
    job.start_python(GREEDY, {"memory": {"limit": "80MiB", "method": method}})
    seen = job.until_status("failed")
    assert seen["exit_signal"] == signal.SIGKILL
    assert seen["exit_code"] is None
    assert seen["oom_killed"] is True
    assert seen["memory_method"] == method
    assert "limit of 80 MiB" in seen["reason"]
    assert ("killed with SIGKILL" in job.log()) == (method == "watchdog")


@pytest.mark.parametrize("method", METHODS)
def test_a_restart_with_more_memory_gets_through(job: Supervised, method: str) -> None:
    job.start_python(GREEDY, {"memory": {"limit": "80MiB", "max": "1GiB", "method": method}})
    job.until_status("failed")
    assert "memory.max allows" in job.tell("restart", memory_limit=2 << 30)["detail"]
    assert job.tell("restart", memory_limit=400 * MIB)["status"] == "done"
    until(lambda: "enough" in job.log(), "the command got what it needs")
    assert job.view()["memory_limit"] == 400 * MIB


def test_a_kill_that_was_not_for_memory_does_not_count_as_one(job: Supervised) -> None:
    job.start_python(GREEDY, {"memory": {"limit": "2GiB"}}, NEEDS="5")
    until(lambda: "enough" in job.log(), "it runs")
    supervisor.signal_all([job.view()["pid"]], signal.SIGKILL)
    assert job.until_status("failed")["oom_killed"] is not True


def test_a_limit_covers_the_whole_process_tree(job: Supervised) -> None:
    job.start_python(
        "import subprocess, sys, os\n"
        f"code = {GREEDY!r}\n"
        "children = [subprocess.Popen([sys.executable, '-c', code], start_new_session=True) for _ in '123']\n"
        "sys.exit(max(abs(c.wait()) for c in children))",
        {"memory": {"limit": "150MiB", "method": "watchdog"}},
        NEEDS="60",
    )
    seen = job.until_status("failed")
    assert seen["oom_killed"] is True
    until(lambda: not job.attempt().processes(), "nothing is left")


def test_memory_that_forked_workers_share_is_counted_once(job: Supervised) -> None:
    job.start_python(
        "import os, time\n"
        "shared = bytearray(os.urandom(1) * (60 << 20))\n"
        "for _ in range(5):\n"
        "    if os.fork() == 0:\n"
        "        time.sleep(600)\n"
        "time.sleep(1.5)\n"
        "print('still here', flush=True)\n",
        {"memory": {"limit": "150MiB", "method": "watchdog"}, "leftover_seconds": 0.1},
    )
    assert job.until_status("failed", "done")["status"] == "done"
    assert "still here" in job.log()


def test_more_memory_is_refused_where_there_is_no_limit(job: Supervised) -> None:
    job.start(sys.executable, "-c", "raise SystemExit(1)")
    job.until_status("failed")
    assert "no memory limit" in job.tell("restart", memory_limit=MIB)["detail"]
