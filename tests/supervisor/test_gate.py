"""What is checked before attempt 1, and how a wrong setting is refused."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.supervisor.running import Supervised
from trainguard.supervisor import supervisor


@pytest.mark.parametrize(
    ("command", "config", "field", "says"),
    [
        (("no-such-program",), {}, "command", "was not found"),
        (("./notes.txt",), {}, "command", "is not executable"),
        ((sys.executable, "gone.py"), {}, "command", "gone.py was not found"),
        ((), {}, "command", "nothing to run"),
        (("true",), {"cwd": "nowhere"}, "cwd", "is no folder"),
        (("true",), {"gate": {"disk_free": "900TiB"}}, "gate.disk_free", "921600.0 GiB|900.0 TiB asked for"),
        (("true",), {"gate": {"memory": "900TiB"}}, "gate.memory", "asked for"),
        (("true",), {"gate": {"gpu_memory": "900TiB"}}, "gate.gpu_memory", "asked for on each GPU"),
    ],
)
def test_the_gate_stops_what_can_not_run_and_names_the_setting(
    job: Supervised, command: tuple[str, ...], config: dict[str, Any], field: str, says: str
) -> None:
    (job.home / "notes.txt").write_text("no program")
    done = job.start(*command, config=config)
    assert done.returncode == 2, done
    assert done.stderr.startswith(f"{field}: ")
    assert any(word in done.stderr for word in says.split("|"))
    assert json.loads(done.stdout)["error"]["remedy"]
    state = job.view()
    assert state["status"] == "refused"
    assert not supervisor.attempt_numbers(job.state)


def test_a_job_that_the_gate_refused_starts_once_it_is_mended(job: Supervised) -> None:
    assert job.start("no-such-program").returncode == 2
    assert job.start("true").returncode == 0
    assert job.until_status("done")["attempt"] == 1


@pytest.mark.parametrize(
    ("raw", "field", "says"),
    [
        ({"memroy": {}}, "memroy", "did you mean memory?"),
        ({"memory": {"limt": 1}}, "memory.limt", "did you mean memory.limit?"),
        ({"memory": {"limit": "lots"}}, "memory.limit", "is no size"),
        ({"memory": {"limit": -1}}, "memory.limit", "is no size"),
        ({"retry": {"max": "3"}}, "retry.max", "should be a int"),
        ({"retry": {"fixes": ["free_disc"]}}, "retry.fixes", "did you mean free_disk?"),
        ({"resume": {"by": "magic"}}, "resume.by", "argument, environment, symlink, nothing"),
        ({"faulthandler": 1}, "faulthandler", "should be a bool"),
        ({"env": {"A": 1}}, "env", "must be a text"),
        ({"command": ["a", 1]}, "command", "list of words"),
        ({"heartbeat": {"step_pattern": "("}}, "heartbeat.step_pattern", "not a regular expression"),
        ({"log": {"keep": 0}}, "log", "at least"),
        ([], "--config", "no table"),
    ],
)
def test_a_wrong_setting_is_named_with_its_remedy(tmp_path: Path, raw: object, field: str, says: str) -> None:
    path = tmp_path / "supervisor.json"
    path.write_text(json.dumps(raw))
    with pytest.raises(supervisor.SupervisorError) as raised:
        supervisor.load_config(path)
    assert raised.value.field == field
    assert says in str(raised.value)


def test_toml_and_json_say_the_same(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text('[memory]\nlimit = "1.5GiB"\n[env]\nA = "b"\n')
    (tmp_path / "a.json").write_text('{"memory": {"limit": 1610612736}, "env": {"A": "b"}}')
    first, second = (supervisor.load_config(tmp_path / name) for name in ("a.toml", "a.json"))
    assert first == second
    assert first["memory"]["limit"] == 1610612736


def test_a_configuration_that_can_not_be_read_is_named(tmp_path: Path) -> None:
    for name, text in (("gone.toml", None), ("bad.toml", "a = ["), ("bad.json", "{")):
        path = tmp_path / name
        if text is not None:
            path.write_text(text)
        with pytest.raises(supervisor.SupervisorError, match=r"--config"):
            supervisor.load_config(path)


def test_the_configuration_file_decides_where_relative_paths_lead(job: Supervised) -> None:
    work = job.home / "conf" / "work"
    work.mkdir(parents=True)
    (job.home / "conf" / "supervisor.toml").write_text(
        f'state = "{job.state}"\ncwd = "work"\ncommand = ["sh", "-c", "pwd"]\n'
    )
    assert job.call("start", "--config", "conf/supervisor.toml").returncode == 0
    job.until_status("done")
    assert job.log().strip() == str(work)
