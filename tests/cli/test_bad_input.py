"""What a user gets wrong: a sentence that names the field and the remedy, exit code 2, no traceback."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from trainguard.cli.prefect_server import free_port


def run(*words: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "trainguard.cli.main", *words],
        capture_output=True,
        text=True,
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        env={**os.environ, "TRAINGUARD_LEDGER_URL": f"sqlite:///{cwd / 'ledger.db'}", **environment},
    )


def refused(done: subprocess.CompletedProcess[str], *words: str) -> None:
    assert done.returncode == 2, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in done.stderr


def test_a_misspelt_action_is_named_with_the_nearest_valid_one(tmp_path: Path) -> None:
    (tmp_path / "policy.toml").write_text('[policy]\nallow = ["restrat"]\n')
    done = run("run", "--policy", "policy.toml", "--", "true", cwd=tmp_path)
    refused(done, "policy.allow.0.action: 'restrat' is not known", "did you mean 'restart'?")


def test_a_word_that_resembles_none_is_told_what_may_stand_in_its_field(tmp_path: Path) -> None:
    done = run("run", "--preset", "bold", "--", "true", cwd=tmp_path)
    refused(done, "policy.preset: 'bold' is not known", "known: observe, assist, autonomous")


def test_a_ledger_that_is_away_is_named_with_where_to_look(tmp_path: Path) -> None:
    url = f"postgresql://nobody@127.0.0.1:{free_port()}/none"
    done = run("status", cwd=tmp_path, TRAINGUARD_LEDGER_URL=url)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "TRAINGUARD_LEDGER_URL says where it is" in done.stderr


@pytest.mark.parametrize("words", [("diagnose", "nowhere.log"), ("rules", "explain", "XYZ-001")])
def test_every_command_says_what_is_wrong_in_the_same_way(words: tuple[str, ...], tmp_path: Path) -> None:
    done = run(*words, cwd=tmp_path)
    refused(done)
    assert done.stderr.startswith("trainguard: ")


def test_a_policy_file_that_is_not_toml_is_named(tmp_path: Path) -> None:
    (tmp_path / "policy.toml").write_text("allow = [\n")
    done = run("run", "--policy", "policy.toml", "--", "true", cwd=tmp_path)
    refused(done, "policy.toml", "is not TOML")


def test_a_missing_command_is_said_off_a_terminal(tmp_path: Path) -> None:
    refused(run("run", cwd=tmp_path), "command", "trainguard run -- python train.py")


def test_a_time_that_is_over_starts_nothing(tmp_path: Path) -> None:
    done = run("run", "--until", "2020-01-01", "--state", str(tmp_path / "job"), "--", "true", cwd=tmp_path)
    refused(done, "--until: 2020-01-01 00:00 is over", "give a time to come")
    assert not (tmp_path / "job").exists()


@pytest.mark.parametrize("name", ["../..", ".", "a/b", "x" * 300])
def test_a_name_makes_no_folder_outside_its_place(name: str, tmp_path: Path) -> None:
    done = run("run", "--name", name, "--", "true", cwd=tmp_path, XDG_STATE_HOME=str(tmp_path / "state"))
    refused(done, "job.name: can't be a folder's name", "give a state folder")
    assert not (tmp_path / "state").exists()


def test_a_job_that_nobody_guarded_is_named(tmp_path: Path) -> None:
    refused(run("status", "nope", cwd=tmp_path), "no job 'nope' has been guarded", "trainguard status")


def test_a_settings_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    refused(run("run", "--config", "nowhere.toml", "--", "true", cwd=tmp_path), "nowhere.toml")


def test_a_prefect_server_that_does_not_answer_is_named_and_nothing_is_started(tmp_path: Path) -> None:
    url = f"http://127.0.0.1:{free_port()}/api"
    done = run("run", "--state", str(tmp_path / "job"), "--", "true", cwd=tmp_path, PREFECT_API_URL=url)
    refused(done, url, "prefect server start")
    assert not (tmp_path / "job").exists()


def test_a_folder_that_holds_no_job_is_said_to_hold_none(tmp_path: Path) -> None:
    refused(run("watch", str(tmp_path), cwd=tmp_path), "holds no supervised job")


def test_a_taken_port_is_said_to_be_taken(tmp_path: Path) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = str(holder.getsockname()[1])
        refused(run("demo", "--port", port, cwd=tmp_path), port, "taken")


def test_an_unknown_incident_and_question_are_named(tmp_path: Path) -> None:
    refused(run("incidents", "zzzzzzzz", cwd=tmp_path), "zzzzzzzz", "trainguard incidents")
    refused(run("approve", "zzzzzzzz-0", cwd=tmp_path), "zzzzzzzz-0", "trainguard approve")


@pytest.mark.parametrize(
    ("words", "field"), [(("status",), "jobs"), (("incidents",), "incidents"), (("approve",), "questions")]
)
def test_facts_are_printed_as_json_with_stable_names(
    words: tuple[str, ...], field: str, tmp_path: Path
) -> None:
    done = run(*words, "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {field: []}
