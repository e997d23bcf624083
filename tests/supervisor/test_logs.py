"""Logs are written in pieces and read once, whole, bounded, whatever happens to them."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.supervisor.running import Supervised, until
from trainguard.supervisor import supervisor
from trainguard.supervisor.supervisor import LogWriter, pieces, read_logs

MIB = 1 << 20


def make_attempt(folder: Path, number: int = 1) -> None:
    (folder / "logs").mkdir(exist_ok=True)
    (folder / "attempts" / f"{number:04d}").mkdir(parents=True)
    supervisor.write_json(folder / "attempts" / f"{number:04d}" / "spec.json", {})


def end_attempt(folder: Path, number: int = 1) -> None:
    supervisor.write_json(folder / "attempts" / f"{number:04d}" / "exit.json", {})


def read_all(folder: Path, cursor: str, limit: int) -> tuple[bytes, str, int]:
    data, skipped = b"", 0
    for _ in range(100_000):
        batch = read_logs(folder, cursor, limit)
        got = b"".join(chunk["data"] for chunk in batch["chunks"])
        assert len(got) <= limit
        data, cursor = data + got, batch["cursor"]
        skipped += sum(chunk["skipped"] for chunk in batch["chunks"])
        if not batch["more"]:
            return data, cursor, skipped
    raise AssertionError("the cursor does not move")


WRITES = st.lists(
    st.one_of(st.binary(max_size=300), st.just(b"line\n"), st.just(b"bar\r"), st.just("é".encode()))
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(writes=WRITES, limit=st.integers(1, 400), max_bytes=st.integers(1, 300), ask_every=st.integers(1, 5))
def test_what_was_written_is_read_once_over_any_rotation(
    tmp_path_factory: pytest.TempPathFactory, writes: list[bytes], limit: int, max_bytes: int, ask_every: int
) -> None:
    folder = tmp_path_factory.mktemp("logs")
    make_attempt(folder)
    writer = LogWriter(folder / "logs", 1, max_bytes, 10_000)
    data, cursor = b"", "1:0:0"
    for index, written in enumerate(writes):
        writer.write(written)
        if index % ask_every == 0:
            more, cursor, skipped = read_all(folder, cursor, limit)
            data += more
            assert not skipped
    end_attempt(folder)
    data += read_all(folder, cursor, limit)[0]
    assert data == b"".join(writes)


@settings(max_examples=100, deadline=None)
@given(
    lines=st.lists(st.integers(0, 200), min_size=1, max_size=60),
    keep=st.integers(1, 3),
    hurt=st.integers(0, 59),
    how=st.sampled_from(["truncate", "delete", "nothing"]),
)
def test_after_damage_every_line_comes_at_most_once_and_the_last_one_comes(
    tmp_path_factory: pytest.TempPathFactory, lines: list[int], keep: int, hurt: int, how: str
) -> None:
    folder = tmp_path_factory.mktemp("logs")
    make_attempt(folder)
    writer = LogWriter(folder / "logs", 1, 700, keep)
    seen, cursor = b"", "1:0:0"
    for index, size in enumerate(lines):
        writer.write(b"%04d %s\n" % (index, b"x" * size))
        if index == hurt and how != "nothing":
            path = pieces(folder / "logs", 1)[-1][1]
            path.unlink() if how == "delete" else os.truncate(path, 0)
        if index % 7 == 0:
            more, cursor, _ = read_all(folder, cursor, 500)
            seen += more
    writer.write(b"9999 the last\n")
    seen += read_all(folder, cursor, 500)[0]
    numbers = [int(line[:4]) for line in seen.splitlines()]
    assert numbers == sorted(set(numbers))
    assert numbers[-1] == 9999


def test_rotation_keeps_so_many_pieces_and_says_what_was_skipped(tmp_path: Path) -> None:
    make_attempt(tmp_path)
    writer = LogWriter(tmp_path / "logs", 1, 1000, 3)
    for number in range(1000):
        writer.write(b"%06d\n" % number)
    found = pieces(tmp_path / "logs", 1)
    assert len(found) == 3
    data, _, skipped = read_all(tmp_path, "1:0:0", MIB)
    assert skipped == found[0][0] > 0
    assert data.splitlines()[-1] == b"000999"
    assert len(data) + skipped == 7000
    assert (tmp_path / "logs" / "current.log").resolve() == found[-1][1]


def test_pieces_end_with_a_line(tmp_path: Path) -> None:
    make_attempt(tmp_path)
    writer = LogWriter(tmp_path / "logs", 1, 1000, 99)
    writer.write(b"".join(b"%06d\n" % number for number in range(1000)))
    for number in range(1000):
        writer.write(b"%06d\n" % number)
    assert all(path.read_bytes().endswith(b"\n") for _, path in pieces(tmp_path / "logs", 1))


def test_line_numbers_are_those_of_the_attempt(tmp_path: Path) -> None:
    make_attempt(tmp_path)
    writer = LogWriter(tmp_path / "logs", 1, 100, 99)
    writer.write(b"".join(b"%06d\n" % number for number in range(1, 101)))
    first = read_logs(tmp_path, "1:0:0", 350)
    assert first["chunks"][0]["first_line"] == 1
    second = read_logs(tmp_path, first["cursor"], 350)
    assert second["chunks"][0]["first_line"] == 51
    assert second["chunks"][0]["data"].startswith(b"000051\n")
    assert read_logs(tmp_path, "", 70)["chunks"][0]["first_line"] is None


def test_two_gigabytes_are_read_at_their_end_only(tmp_path: Path) -> None:
    make_attempt(tmp_path)
    path = tmp_path / "logs" / "attempt-0001.log"
    with path.open("wb") as file:
        file.truncate(2 << 30)
        file.seek(0, 2)
        file.write(b"\nstep 7/9\n")
    batch = read_logs(tmp_path, "", 4096)
    assert batch["chunks"][0]["data"] == b"step 7/9\n"
    assert sum(len(chunk["data"]) for chunk in batch["chunks"]) <= 4096
    assert not batch["more"]
    assert supervisor.last_bytes(supervisor.Attempt(tmp_path, 1), 100).endswith(b"step 7/9\n")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_full_disk_costs_log_and_says_how_much(tmp_path: Path) -> None:
    make_attempt(tmp_path)
    writer = LogWriter(tmp_path / "logs", 1, MIB, 9)
    path = tmp_path / "logs" / "attempt-0001.log"
    path.symlink_to("/dev/full")
    writer.write(b"lost\n")
    assert writer.dropped == 5
    path.unlink()
    writer.descriptor = None
    writer.write(b"kept\n")
    text = path.read_bytes()
    assert b"5 bytes of log were lost: No space left on device" in text
    assert text.endswith(b"kept\n")
    assert writer.dropped == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
def test_a_job_on_a_full_disk_runs_on_and_its_end_is_recorded_when_there_is_room(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = supervisor.output_of(("sh", "-c", f"mount -t tmpfs -o size=1m none {disk} && echo mounted"))
    if "mounted" not in mounted:
        pytest.skip("no tmpfs can be mounted here")
    job = Supervised(disk)
    try:
        script = tmp_path / "train.py"
        script.write_text(
            "import sys, time\nfor n in range(200):\n    print('x' * 10000, flush=True); time.sleep(0.002)\n"
            "print('last words', flush=True)\nsys.exit(3)\n"
        )
        assert job.start(sys.executable, str(script), config={"gate": {"disk_free": 0}}).returncode == 0
        until(lambda: supervisor.free_bytes(disk) == 0, "the disk is full")
        (job.state / "logs" / "attempt-0001.log").unlink()
        seen = job.until_status("failed")
        assert seen["exit_code"] == 3
        until(lambda: "last words" in job.log(), "its last words")
    finally:
        job.end()
        until(lambda: supervisor.output_of(("sh", "-c", f"umount {disk} && echo gone")), "unmounted")


def test_hostile_bytes_and_a_megabyte_line_pass_through(job: Supervised) -> None:
    job.start_python(
        "import os\n"
        "os.write(1, b'\\xff\\xfe\\x00\\x1b[31m' + b'z' * 1_000_000 + b'\\n')\n"
        "os.write(2, b'10%\\r20%\\rstep 5/9')\n"
    )
    job.until_status("done")
    data, _, skipped = read_all(job.state, "1:0:0", 65536)
    assert not skipped
    assert data == b"\xff\xfe\x00\x1b[31m" + b"z" * 1_000_000 + b"\n10%\r20%\rstep 5/9"


def test_a_flood_is_written_whole(job: Supervised) -> None:
    job.start("sh", "-c", "seq -w 0 299999", config={"log": {"max_bytes": 100_000, "keep": 10_000}})
    job.until_status("done", seconds=60)
    data, _, skipped = read_all(job.state, "1:0:0", MIB)
    assert not skipped
    assert data.splitlines() == [b"%06d" % number for number in range(300_000)]


@pytest.mark.parametrize(
    ("line", "step", "total"),
    [
        (b"step 4600/5155 loss 2.1", 4600, 5155),
        (b"{'step': 12, 'loss': 1.0}", 12, None),
        (b'{"global_step": 77}', 77, None),
        (b" 45%|####      | 4600/10000 [12:01<13:07, 6.9it/s]", 4600, 10000),
        (b"iteration      300/   5000 | lm loss", 300, 5000),
        (b"iter 250: loss 3.3", 250, None),
        (b"nothing of the kind", None, None),
        (b"footstep 4", None, None),
    ],
)
def test_the_cheap_look_at_the_step(line: bytes, step: int | None, total: int | None) -> None:
    assert supervisor.find_step(line, "") == (step, total)


def test_a_declared_pattern_is_used_instead() -> None:
    assert supervisor.find_step(b"step 1/2 tick<7>", r"tick<(?P<step>\d+)>") == (7, None)
