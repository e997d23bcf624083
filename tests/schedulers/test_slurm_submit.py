"""Submitting a saved job again: its options, its arguments, where to resume."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.schedulers.test_slurm_reading import run_here
from trainguard.core.errors import RefusedError
from trainguard.core.job import Resume, ResumeBy
from trainguard.schedulers.slurm.detail import Detail
from trainguard.schedulers.slurm.ids import JobId
from trainguard.schedulers.slurm.submit import Submission, original_options, submission, told_options

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
    command = call.command()
    assert "env -i" in command.argv[2]
    assert "export PATH=/bin\nexport FROM='/c 1'\n" in (command.stdin or "")


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


@pytest.mark.parametrize("stored", [True, False])
def test_the_environment_arrives_and_stands_in_no_process_arguments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stored: bool
) -> None:
    """Everybody on the login node can read those; a stored environment may hold keys."""
    secret, script = "sk-it's\n$(touch x) `y` \\", "#!/bin/sh\ntéxt of the script\n'EOF'\n"
    sbatch = tmp_path / "sbatch"
    sbatch.write_text(
        '#!/bin/sh\ncd $(dirname $0)\nprintf %s "$KEY" >key\ncat /dev/stdin >script\nprintf \'%s\\n\' "$@" >args\n'
        "env >env\nfor f in /proc/[0-9]*/cmdline; do tr '\\0' ' ' <$f; done >all 2>/dev/null\nexit 7\n"
    )
    sbatch.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    given = (("KEY", secret), ("PATH", "/usr/bin:/bin"), ("UID", "4"), ("SHELLOPTS", "x")) if stored else None
    call = Submission(("-n", "2", "--comment=a b"), ("--lr", "3"), script, given, (("FROM", "/c 1"),))
    if not stored:
        monkeypatch.setenv("KEY", secret)
    (answer,) = run_here([call.command()])
    assert (answer.code, answer.err.strip()) == (7, b"")
    assert (tmp_path / "key").read_text() == secret
    assert (tmp_path / "script").read_text() == script
    assert (tmp_path / "args").read_text().split("\n")[:-1] == [
        "--parsable", "-n", "2", "--comment=a b", "/dev/stdin", "--lr", "3",
    ]  # fmt: skip
    assert "FROM=/c 1" in (tmp_path / "env").read_text().splitlines()
    assert "TG_SBATCH" not in (tmp_path / "env").read_text()
    assert "sk-it" not in (tmp_path / "all").read_text()


SHOWN = (
    "JobId=47 MCS_label=N/A Deadline=N/A Requeue={Requeue} TimeMin=N/A ExcNodeList={ExcNodeList} "
    "Socks/Node=* NtasksPerN:B:S:C={NtasksPerN:B:S:C} CoreSpec=* MinMemoryNode={MinMemoryNode} MinTmpDiskNode=0 "
    "Features=(null) DelayBoot=00:00:00 OverSubscribe={OverSubscribe} Contiguous=0 Licenses=(null) Network=(null) {more}"
)
PLAIN = {
    "Requeue": "1", "ExcNodeList": "(null)", "NtasksPerN:B:S:C": "0:0:*:*", "MinMemoryNode": "0",
    "OverSubscribe": "OK", "more": "",
}  # fmt: skip


def shown(**more: str) -> str:
    text = SHOWN
    for key, value in (PLAIN | more).items():
        text = text.replace(f"{{{key}}}", value)
    return text


def test_all_that_scontrol_shows_of_a_job_is_asked_for_again() -> None:
    assert set(told_options(detail(shown=shown()))) - set(told_options(detail())) == {"--requeue"}
    given = shown(
        Requeue="0", ExcNodeList="n[3-4]", MinMemoryNode="64G", OverSubscribe="NO",
        more="TresPerJob=gres:gpu:a100:8 CpusPerTres=gres/gpu:4", **{"NtasksPerN:B:S:C": "4:0:*:*"},
    )  # fmt: skip
    assert {
        "--no-requeue", "--exclude=n[3-4]", "--mem=64G", "--exclusive", "--gpus=a100:8", "--cpus-per-gpu=4",
        "--ntasks-per-node=4",
    } <= set(told_options(detail(shown=given)))  # fmt: skip


@pytest.mark.parametrize(
    "more",
    [{"more": "BurstBuffer=pool"}, {"more": "TresPerJob=gres:fpga:1"}, {"NtasksPerN:B:S:C": "0:0:2:*"}],
)
def test_what_is_set_and_can_not_be_asked_for_again_is_refused(more: dict[str, str]) -> None:
    with pytest.raises(RefusedError, match="submit line"):
        told_options(detail(shown=shown(**more)))
