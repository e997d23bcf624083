"""Reading what Slurm prints: lines seen on 22.05 and 24.11."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainguard.core.errors import AccessRefusedError, RefusedError, UnreachableError
from trainguard.schedulers.slurm.client import check
from trainguard.schedulers.slurm.ids import JobId, expand_hostlist, job_id
from trainguard.schedulers.slurm.parse import (
    SACCT_FIELDS,
    SEP,
    SQUEUE_FIELDS,
    megabytes,
    minutes,
    nodes,
    out_of_service,
    sacct_records,
    squeue_format,
    squeue_records,
    wait_status,
)
from trainguard.transports.posix_shell import Result

MARK = "tg-0123"


def squeue_line(**values: str) -> str:
    """Write one record as squeue prints it."""
    given_ = {
        "JobArrayID": "47",
        "JobID": "47",
        "State": "RUNNING",
        "SubmitTime": "1700000000",
        "Comment": "(null)",
    }
    row = {name: (given_ | values).get(name, "") for name in SQUEUE_FIELDS}
    return SEP.join(row.values()) + MARK + "\n"


@pytest.mark.parametrize(
    ("text", "asked"),
    [
        ("47", JobId(47)),
        ("47_2", JobId(47, task=2)),
        ("53+1", JobId(53, offset=1)),
        ("0", None),
        ("", None),
        ("-h", None),
        ("47;x", None),
        ("47\n", None),
        ("47_[1-3]", None),
        ("٤٧", None),
        ("9" * 40, None),
    ],
)
def test_an_id_is_one_of_slurms_forms_or_nothing(text: str, asked: JobId | None) -> None:
    assert job_id(text) == asked


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("n1", ("n1",)),
        ("n[1-3]", ("n1", "n2", "n3")),
        ("n[08-10],gpu-a", ("n08", "n09", "n10", "gpu-a")),
        ("r[1-2]n[1,3]", ("r1n1", "r2n1", "r1n3", "r2n3")),
    ],
)
def test_a_hostlist_is_expanded(text: str, names: tuple[str, ...]) -> None:
    assert sorted(expand_hostlist(text)) == sorted(names)


@pytest.mark.parametrize("text", ["n[1-", "n]1[", "n[a-b]", "n[1-99999999]", "n[1-1000]m[1-1000]"])
def test_what_is_no_hostlist_or_too_long_raises(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        expand_hostlist(text)


@pytest.mark.parametrize(
    ("text", "status"),
    [("768", (3, 0)), ("35072", (137, 0)), ("11", (0, 11)), ("125", (0, 125)), ("3:0", (3, 0)), ("0:53", (0, 53)),
     ("", (None, 0)), ("N/A", (None, 0))],
)  # fmt: skip
def test_exit_codes_of_both_versions(text: str, status: tuple[int | None, int]) -> None:
    assert wait_status(text) == status


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1:00:00", 60),
        ("1-02:30:00", 1590),
        ("5:00", 5),
        ("30", 30),
        ("UNLIMITED", None),
        ("N/A", None),
        ("2-3", 3060),
    ],
)
def test_time_limits_in_minutes(text: str, value: int | None) -> None:
    assert minutes(text) == value


@pytest.mark.parametrize(
    ("text", "value"), [("100M", 100), ("1.5G", 1536), ("2000", 2000), ("4Gn", 4096), ("x", None)]
)
def test_sizes_in_megabytes(text: str, value: int | None) -> None:
    assert megabytes(text) == value


@given(st.text(alphabet=st.characters(codec="utf-8"), max_size=80))
def test_no_comment_can_forge_another_field_or_record(comment: str) -> None:
    """Separators, newlines and whole forged records in the owner's text stay text."""
    forged = comment + squeue_line(JobArrayID="48", State="FAILED").replace(MARK, "tg-other")
    records = squeue_records(squeue_line(Comment=forged) + squeue_line(JobArrayID="49"), MARK)
    assert [(record.id.base, record.state) for record in records] == [(47, "RUNNING"), (49, "RUNNING")]


def test_the_format_names_each_field_and_ends_records_in_the_mark() -> None:
    assert squeue_format(("JobID", "Comment"), MARK) == f"JobID:{SEP},Comment:{MARK}"


def test_fields_of_a_running_element() -> None:
    line = squeue_line(
        JobArrayID="47_2", JobID="49", RestartCnt="1", NodeList="n[1-2]", exit_code="0", TimeLimit="1:00:00",
        StartTime="1700000005", EndTime="N/A", Requeue="1", **{"tres-alloc": "cpu=4,mem=4G,node=2"},
    )  # fmt: skip
    (record,) = squeue_records(line, MARK)
    assert (record.id, record.restarts, record.nodes) == (JobId(47, 2), 1, ("n1", "n2"))
    assert (record.start, record.end, record.memory, record.time_limit) == (1700000005, None, 2048, 60)


def sacct_line(**values: str) -> str:
    given_ = {"JobID": "1", "State": "COMPLETED", "ExitCode": "0:0", "Submit": "1700000000", "User": "alice"}
    return SEP.join((given_ | values).get(name, "") for name in SACCT_FIELDS) + "\n"


def test_sacct_states_are_cut_to_their_word_and_steps_left_out() -> None:
    text = sacct_line(State="CANCELLED by 1001") + sacct_line(JobID="2", State="OUT_OF_ME+")
    text += sacct_line(JobID="3.batch") + sacct_line(JobID="4_[1-3]")
    assert [(r.id.base, r.state) for r in sacct_records(text)] == [(1, "CANCELLED"), (2, "OUT_OF_ME")]


def test_of_several_records_of_one_id_the_newest_counts_and_the_older_are_its_restarts() -> None:
    text = sacct_line(Submit="1700000100", State="FAILED", ExitCode="3:0") + sacct_line(State="REQUEUED")
    (record,) = sacct_records(text)
    assert (record.state, record.code, record.restarts) == ("FAILED", 3, 1)


def test_a_reused_id_of_another_user_is_no_restart() -> None:
    text = sacct_line(User="bob") + sacct_line(Submit="1700000100")
    (record,) = sacct_records(text)
    assert (record.user, record.restarts) == ("alice", 0)


def test_nodes_in_trouble() -> None:
    rows = [("n1", "idle", "none"), ("n2", "down*", "Not responding"), ("n3", "drained", "bad, node"), ("n4", "idle*", "none"),
            ("n5", "mixed-", "none"), ("n6", "draining", "x\ny"), ("n7", "unknown*", "none")]  # fmt: skip
    text = "".join(SEP.join(row) + MARK + "\n" for row in rows)
    read = nodes(text, MARK)
    assert {(node.name, node.reason) for node in read if node.bad} == {
        ("n2", "Not responding"), ("n3", "bad, node"), ("n4", "none"), ("n6", "x\ny"),
    }  # fmt: skip
    assert [node.name for node in read if node.unknown] == ["n7"]


def test_a_controller_that_has_just_started_calls_no_node_bad() -> None:
    """Slurm 22.05 shows every node as unknown for some seconds then; their jobs run on."""
    (node,) = nodes(SEP.join(("n1", "unknown", "none")) + MARK + "\n", MARK)
    assert (node.bad, node.unknown) == (False, True)


@pytest.mark.parametrize(
    ("state", "out"),
    [("idle", False), ("idle*", False), ("allocated*", False), ("unknown", False), ("mixed", False), ("reboot^", False),
     ("down", True), ("down*", True), ("drained", True), ("draining*", True), ("fail", True), ("inval", True), ("failing", True)],
)  # fmt: skip
def test_which_nodes_are_given_to_no_job_until_somebody_returns_them(state: str, out: bool) -> None:
    assert out_of_service(state) is out


@pytest.mark.parametrize(
    ("said", "code", "error"),
    [
        (
            "sbatch: error: Batch job submission failed: Socket timed out on send/recv operation",
            1,
            UnreachableError,
        ),
        ("slurm_load_jobs error: Unable to contact slurm controller (connect failure)", 1, UnreachableError),
        ("Munge encode failed: Failed to access socket", 1, UnreachableError),
        ("", 124, UnreachableError),
        ("timeout: failed to run command 'scontrol'", 127, UnreachableError),
        ("Access/permission denied for job 7", 1, AccessRefusedError),
        ("slurm_update error: Invalid user id", 1, AccessRefusedError),
        ("Requested operation is presently disabled for job 3", 1, RefusedError),
        ("sbatch: error: Batch job submission failed: Invalid qos specification", 1, RefusedError),
        ("Job can not be altered now, try again later", 1, RefusedError),
        ("sbatch: error: Batch job submission failed: Message receive failure", 1, UnreachableError),
        ("slurm_requeue error: Something never heard of", 1, UnreachableError),
        ("", 125, UnreachableError),
        ("Killed", 137, UnreachableError),
        ("Terminated: invalid", 143, UnreachableError),
    ],
)
def test_what_a_failed_command_means(said: str, code: int, error: type[Exception]) -> None:
    with pytest.raises(error):
        check(Result(code, b"", said.encode()), "x")
