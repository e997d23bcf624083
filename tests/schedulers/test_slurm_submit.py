"""Submitting a saved job again: its options, its arguments, where to resume."""

from __future__ import annotations

import pytest

from trainguard.core.errors import RefusedError
from trainguard.core.job import Resume, ResumeBy
from trainguard.schedulers.slurm.detail import Detail
from trainguard.schedulers.slurm.ids import JobId
from trainguard.schedulers.slurm.submit import original_options, submission

FIELDS = {
    "WorkDir": "/w", "Name": "my job", "Command": "/w/train.sh --lr 3", "Partition": "gpu", "NumNodes": "2",
    "NumTasks": "4", "cpus-per-task": "2", "TimeLimit": "2:00:00", "Account": "ml", "tres-per-node": "gres:gpu:2",
}  # fmt: skip


def detail(line: str = "", **more: object) -> Detail:
    given = {"id": JobId(47), "fields": FIELDS, "script": "#!/bin/sh\n", "submit_line": line}
    return Detail(**(given | more))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("line", "options"),
    [
        ("sbatch -p gpu --gres=gpu:2 train.sh --lr 3", ["-p", "gpu", "--gres=gpu:2"]),
        ("sbatch --exclusive -N2 ./train.sh --lr 3", ["--exclusive", "-N2"]),
        (
            "sbatch --comment=x -J name --dependency=afterok:3 --array=1-4 -n 2 /w/train.sh --lr 3",
            ["-n", "2"],
        ),
        ("sbatch -n 2 --job-name my job train.sh --lr 3", ["-n", "2"]),
        ("sbatch --comment=the owner's words -n 2 train.sh --lr 3", ["-n", "2"]),
        ("sbatch --output=my job.txt train.sh --lr 3", None),
        ("sbatch other.sh --lr 3", None),
        ("sbatch train.sh --lr 4", None),
        ("sbatch --wrap=train.sh --lr 3", None),
        ("sbatch -n1 : -n2 train.sh --lr 3", None),
        ("", None),
    ],
)
def test_a_submit_line_is_taken_apart_only_where_it_leaves_no_doubt(
    line: str, options: list[str] | None
) -> None:
    found = original_options(line, FIELDS["Command"])
    assert (found[0] if found else None) == options


@pytest.mark.parametrize("text", ["runs -n 5", "see train.sh", "a --hold"])
def test_a_comment_that_could_be_taken_for_options_leaves_a_doubt(text: str) -> None:
    assert original_options(f"sbatch --comment={text} train.sh --lr 3", FIELDS["Command"], text) is None


def test_a_forgotten_jobs_line_is_read_without_the_controllers_help() -> None:
    assert original_options("sbatch -n 2 train.sh --lr 3", "") == (["-n", "2"], ["--lr", "3"])
    assert original_options("sbatch --comment=two words train.sh --lr 3", "") is None


def test_without_a_submit_line_the_controllers_words_are_used() -> None:
    call = submission(detail(), "c", Resume(), "", [])
    assert {"--partition=gpu", "--nodes=2", "--ntasks=4", "--gres=gpu:2", "--time=120"} <= set(call.options)
    assert call.arguments == ("--lr", "3")


def test_where_the_controller_shows_the_path_alone_the_submit_line_tells_the_arguments() -> None:
    newer = FIELDS | {"Command": "/w/train.sh"}
    call = submission(
        detail("sbatch -p gpu train.sh --lr 3", fields=newer, version=(24, 11)), "c", Resume(), "", []
    )
    assert call.arguments == ("--lr", "3")
    assert submission(detail(fields=newer, version=(22, 5)), "c", Resume(), "", []).arguments == ()


def test_a_job_named_after_its_script_leaves_no_doubt() -> None:
    named = FIELDS | {"Command": "/w/train.sh", "Name": "train.sh"}
    call = submission(
        detail("sbatch -n 2 train.sh --lr 3", fields=named, version=(24, 11)), "c", Resume(), "", []
    )
    assert call.arguments == ("--lr", "3")


def test_the_changes_come_after_the_original_options_and_so_win() -> None:
    call = submission(detail("sbatch --mem=1G train.sh --lr 3"), "c", Resume(), "", ["--mem=9M"])
    assert call.options.index("--mem=1G") < call.options.index("--mem=9M")
    assert {"--chdir=/w", "--job-name=my job", "--comment=c", "--export=ALL"} <= set(call.options)


def test_resuming_by_argument_replaces_the_argument_of_an_earlier_restart() -> None:
    again = detail(fields=FIELDS | {"Command": "/w/train.sh --resume old --lr 3 --resume=older"})
    call = submission(again, "c", Resume(by=ResumeBy.ARGUMENT, name="--resume"), "/c/step 7;$(x)", [])
    assert call.arguments == ("--lr", "3", "--resume", "/c/step 7;$(x)")


@pytest.mark.parametrize(
    ("line", "export"),
    [("", "--export=ALL"), ("--export=NONE", "--export=FROM"), ("--export=A,B=1", "--export=A,B=1,FROM"), ("--export=ALL,A=1", "--export=ALL,A=1")],
)  # fmt: skip
def test_resuming_by_environment_gets_through_the_owners_export(line: str, export: str) -> None:
    call = submission(
        detail(f"sbatch {line} train.sh --lr 3", environment=(("PATH", "/bin"),)),
        "c", Resume(by=ResumeBy.ENVIRONMENT, name="FROM"), "/c 1", [],
    )  # fmt: skip
    assert export in call.options
    argv = call.command().argv
    assert "env -i" in argv[2]
    assert argv[4:6] == ("PATH=/bin", "FROM=/c 1")


@pytest.mark.parametrize(
    ("job", "resume"),
    [
        (detail(script=""), Resume()),
        (detail(id=JobId(47, offset=0)), Resume()),
        (detail(fields={"WorkDir": "/w"}), Resume()),
        (detail(fields=FIELDS | {"Command": "/w/train.sh"}, version=(24, 11)), Resume()),
        (detail(), Resume(by=ResumeBy.ENVIRONMENT, name="A=1; rm")),
        (
            detail(script="#!/bin/sh\n# This script was created by sbatch --wrap.\n"),
            Resume(by=ResumeBy.ARGUMENT, name="-r"),
        ),
    ],
)
def test_what_can_not_be_submitted_as_it_was_is_refused(job: Detail, resume: Resume) -> None:
    with pytest.raises(RefusedError):
        submission(job, "c", resume, "/c", [])
