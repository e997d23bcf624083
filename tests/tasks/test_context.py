"""Who guards a job, told by the name of a lease's holder."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from trainguard.tasks import context
from trainguard.tasks.context import holder_flow_run, holder_is_dead, lease_holder


@pytest.fixture
def other() -> Iterator[subprocess.Popen[str]]:
    """Another process, which says the name that a guard of its would have."""
    code = (
        "from trainguard.tasks.context import lease_holder; import sys;"
        "print(lease_holder('run'), flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        yield process
        process.kill()


def test_a_process_is_dead_once_it_is_gone_a_zombie_included(other: subprocess.Popen[str]) -> None:
    assert other.stdout is not None
    holder = other.stdout.readline().strip()
    assert holder_flow_run(holder) == "run"
    assert not holder_is_dead(holder)
    other.kill()
    os.waitid(os.P_PID, other.pid, os.WEXITED | os.WNOWAIT)
    assert holder_is_dead(holder), "a zombie guards nothing"
    other.wait()
    assert holder_is_dead(holder)


def test_a_process_that_began_at_another_time_has_only_the_number() -> None:
    host, pid, born, run = lease_holder("run").split(":")
    assert not holder_is_dead(f"{host}:{pid}:{born}:{run}")
    assert holder_is_dead(f"{host}:{pid}:{int(born) + 1}:{run}")


def test_a_clock_that_is_set_kills_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    holder = lease_holder("run")
    monkeypatch.setattr("time.time", lambda: 0.0)
    monkeypatch.setattr("psutil.boot_time", lambda: 0.0)
    assert not holder_is_dead(holder)
    assert lease_holder("run") == holder


@pytest.mark.parametrize("changed", ["elsewhere", "boot", "space"])
def test_another_machines_process_lives_until_its_lease_ends(
    changed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    host, pid, born, run = lease_holder("run").split(":")
    dead = f"{host}:{pid}:{int(born) + 1}:{run}"
    assert holder_is_dead(dead)
    if changed == "elsewhere":
        monkeypatch.setattr(context, "gethostname", lambda: "elsewhere")
    elif changed == "boot":
        monkeypatch.setattr(context, "boot_id", lambda: "00000000-0000")
    else:
        monkeypatch.setattr(context, "_FIRST_PID_NAMESPACE", 1)
    assert not holder_is_dead(dead)


def test_a_process_of_another_user_may_be_hidden_and_lives(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(context, "stat_of", lambda pid: None)
    monkeypatch.setattr(context, "start_of", lambda pid: None)
    host, _, born, run = lease_holder("run").split(":")
    assert not holder_is_dead(f"{host}:{os.getpid()}:{born}:{run}")


@pytest.mark.parametrize("holder", ["", "x", "a:b:c:d", "host:1:1:run"])
def test_a_name_that_says_nothing_lives(holder: str) -> None:
    assert not holder_is_dead(holder)
