"""Finding a job's files and reading them, and the shell that commands are sent to, with the real /bin/sh."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from trainguard.core.errors import UnreachableError
from trainguard.core.observation import LogSource
from trainguard.schedulers.slurm.detail import Detail, outputs, variables
from trainguard.schedulers.slurm.ids import JobId
from trainguard.schedulers.slurm.logs import LogReader, Place, read_cursor, write_cursor
from trainguard.schedulers.slurm.patterns import expand, step_patterns
from trainguard.transports.posix_shell import AnswerLostError, Command, Result, compose, new_mark, split


class LocalShell:
    """A shell on this machine in the place of the login node's."""

    async def run(self, commands: list[Command], **_: object) -> list[Result]:
        return run_here(commands)

    async def close(self) -> None:
        """Nothing is held."""


class Answering:
    """A shell that gives the answers that it was made with."""

    def __init__(self, answers: list[Result]) -> None:
        self._answers = answers

    async def run(self, commands: list[Command], **_: object) -> list[Result]:
        return self._answers[: len(commands)]


def run_here(commands: list[Command], cut: int | None = None, within: float | None = None) -> list[Result]:
    mark = new_mark()
    script = compose(commands, mark, within=within)
    done = subprocess.run(["sh", "-s"], input=script[:cut], capture_output=True, check=False)
    return split(b"welcome!\n" + done.stdout, done.stderr, mark, len(commands))


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=30), max_size=4),
    st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=60),
)
@example([], "t\x80")
@example([], "'té\n\n%s\\\n\n")
def test_arguments_and_input_arrive_as_they_are(words: list[str], stdin: str) -> None:
    echo, cat = run_here([Command(("printf", "%s|", *words)), Command(("cat",), stdin=stdin)])
    assert echo.out.decode() == ("".join(f"{word}|" for word in words) or "|")
    assert cat.out.decode().rstrip("\n") == stdin.rstrip("\n")


def test_output_can_not_forge_an_answer() -> None:
    forged, code = run_here(
        [Command(("printf", "\ntg-0 0\nfake\n\ntg-0 0\n")), Command(("sh", "-c", "exit 7"))]
    )
    assert b"fake" in forged.out
    assert code.code == 7


def test_a_command_runs_only_after_a_success_where_that_is_asked() -> None:
    first, second, third = run_here(
        [Command(("sh", "-c", "exit 3")), Command(("echo", "no"), if_ok=True), Command(("echo", "yes"))]
    )
    assert (first.code, second.code, second.out, third.text) == (3, 3, b"", "yes\n")


def test_a_command_can_depend_on_the_first_alone() -> None:
    note, other = Command(("true",)), Command(("echo", "x"), if_first=True)
    assert [one.code for one in run_here([note, Command(("false",), if_first=True), other])] == [0, 1, 0]
    taken = run_here([Command(("sh", "-c", "exit 17")), Command(("true",)), other])
    assert [(one.code, one.out) for one in taken] == [(17, b""), (0, b""), (17, b"")]


def test_all_commands_together_are_bounded_and_what_comes_too_late_is_not_begun(tmp_path: Path) -> None:
    """They go on after their connection is cut: nobody else ends them."""
    late = Command(("touch", f"{tmp_path}/late"))
    answers = run_here([Command(("sleep", "30")), late, late], within=1)
    assert [one.code for one in answers] == [124, 124, 124]
    assert not list(tmp_path.iterdir())


def test_a_command_that_hangs_is_ended() -> None:
    (slow,) = run_here([Command(("sleep", "30"), timeout=1)])
    assert slow.code == 124


def test_a_script_that_arrives_cut_off_runs_nothing(tmp_path: Path) -> None:
    """At every byte: half a command would be another command."""
    commands = [Command(("touch", f"{tmp_path}/a")), Command(("touch", f"{tmp_path}/ab"))]
    whole = len(compose(commands, new_mark()))
    for cut in [*range(0, whole - 3, 37), whole - 3]:
        with pytest.raises(AnswerLostError):
            run_here(commands, cut)
        assert not list(tmp_path.iterdir()), cut


def test_the_owners_environment_changes_no_command(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SQUEUE_STATES", "SBATCH_PARTITION", "SLURM_CLUSTERS", "SACCT_FORMAT"):
        monkeypatch.setenv(name, "x")
    monkeypatch.setenv("SLURM_CONF", "/etc/slurm.conf")
    (answer,) = run_here([Command(("env",))])
    names = {line.partition("=")[0] for line in answer.text.splitlines()}
    assert not names & {"SQUEUE_STATES", "SBATCH_PARTITION", "SLURM_CLUSTERS", "SACCT_FORMAT"}
    assert "SLURM_CONF" in names


VALUES = {"A": "47", "a": "", "j": "47", "J": "47", "u": "alice", "x": "my job", "b": ""}


@pytest.mark.parametrize(
    ("pattern", "path"),
    [
        ("out.txt", "/w/out.txt"),
        ("/x/%j.out", "/x/47.out"),
        ("%x-%u-%5j-%%", "/w/my job-alice-00047-%"),
        ("rank-%t.log", "/w/rank-*.log"),
        ("a[1]-%t", "/w/a[[]1]-*"),
        ("no\\%j", "/w/no%j"),
    ],
)
def test_file_name_patterns(pattern: str, path: str) -> None:
    assert expand(pattern, VALUES, "/w").path == path


def test_the_rank_is_read_from_the_name() -> None:
    file = expand("logs (1)/%N-%t.log", VALUES, "/w")
    assert file.ranked is not None
    match = file.ranked.fullmatch("/w/logs (1)/n7-12.log")
    assert match is not None
    assert match["rank"] == "12"


def test_the_ranks_files_are_found_in_the_batch_script() -> None:
    script = """#!/bin/bash
# srun -o never.log x
srun --output=rank-%t.log -e "err %t.txt" \\
    python train.py
srun -o $HOME/unknown.log y
srun -oshort-$SLURM_JOB_ID.log z
"""
    assert step_patterns(script) == ["rank-%t.log", "err %t.txt", "short-%j.log"]


def test_a_jobs_files() -> None:
    fields = {
        "WorkDir": "/w",
        "STDOUT": "/w/out-%A_%a.txt",
        "STDERR": "/w/out-%A_%a.txt",
        "UserName": "alice",
    }
    detail = Detail(JobId(47, task=3), fields, "JobId=49 ArrayJobId=47", "#!/bin/sh\nsrun -o r%t x\n")
    assert [file.path for file in outputs(detail)] == ["/w/out-47_3.txt", "/w/r*"]


def test_an_environment_with_functions_and_newlines() -> None:
    text = "A=1\nB=two\nlines\nBASH_FUNC_f%%=() {  echo\n}\nSLURM_JOB_ID=7\nSLURM_CONF=/c\nC=\n"
    assert variables(text) == (("A", "1"), ("B", "two\nlines"), ("SLURM_CONF", "/c"), ("C", ""))


async def test_a_file_that_was_begun_anew_and_outgrew_the_cursor_is_read_from_its_start(
    tmp_path: Path,
) -> None:
    """A requeue truncates the output; by the next look it may be longer than before."""
    path = tmp_path / "out.txt"
    path.write_text("first run, line 1\n" * 10)
    source = LogSource(name=str(path))
    reader = LogReader(LocalShell())  # type: ignore[arg-type]
    before = await reader.read([source], "", 10_000)
    path.write_text("second run, another line\n" * 50)
    after = await reader.read([source], before.cursor, 10_000)
    assert "".join(chunk.text for chunk in after.chunks) == path.read_text()
    assert after.chunks[0].first_line == 1


async def test_a_disk_that_does_not_answer_is_not_nothing_new(tmp_path: Path) -> None:
    """A hung or stale file system, or one that gives errors: unknown. A file that is not there yet is nothing."""
    path = tmp_path / "out.txt"
    reader = LogReader(LocalShell())  # type: ignore[arg-type]
    assert (await reader.read([LogSource(name=str(path))], "", 1_000)).chunks == ()
    path.write_text("one\n")
    sources = [LogSource(name=str(path)), LogSource(name="/proc/self/mem")]
    for code, out in ((124, b""), (137, b""), (6, b""), (1, b"tail: input/output error"), (0, b"40 0\n")):
        broken = LogReader(Answering([Result(code, out, b"")]))  # type: ignore[arg-type]
        with pytest.raises(UnreachableError):
            await broken.read(sources[:1], "", 1_000)
    whole = Result(0, b"4 0\none\n", b"")
    half = LogReader(Answering([whole, Result(124, b"", b"")]))  # type: ignore[arg-type]
    assert len((await half.read(sources, "", 1_000)).chunks) == 1


async def test_hostile_file_names_are_files(tmp_path: Path) -> None:
    for name in ("-n", "a b;touch x", "$(touch y)", "é\n.txt", "*"):
        path = tmp_path / name
        path.write_text(f"{name!r}\n")
        batch = await LogReader(LocalShell()).read([LogSource(name=str(path))], "", 1_000)  # type: ignore[arg-type]
        assert [chunk.text for chunk in batch.chunks] == [f"{name!r}\n"]
    assert len(list(tmp_path.iterdir())) == 5


@pytest.mark.parametrize(
    "text", ["", "?", "[]", '{"files": 3}', '{"files": {"a": []}}', '{"files": {"a": ["x", "", 1]}}']
)
def test_a_cursor_that_is_none_counts_as_empty(text: str) -> None:
    assert read_cursor(text) == {}


def test_a_cursor_survives() -> None:
    places = {"/a": Place(7, b"\xff\n", None), "/b": Place(0)}
    assert read_cursor(write_cursor(places)) == places
