"""Which checkpoints a training can be resumed from. The fixtures were written by the real libraries."""

from __future__ import annotations

import io
import json
import os
import pickle
import random
import shutil
import struct
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainguard.core.checkpoint import Checkpoint
from trainguard.core.checkpoint import newest_good as core_newest_good
from trainguard.supervisor import checkpoints
from trainguard.supervisor.checkpoints import CheckpointInfo, find_checkpoints, newest_good, set_aside

REAL = Path(__file__).parents[1] / "fixtures" / "checkpoints"
THEN = 1_780_000_000.0


def only(directory: Path, format: str = "auto") -> CheckpointInfo:
    (found,) = find_checkpoints(directory, format)
    return found


def real(name: str, to: Path) -> Path:
    """Copy a fixture; the copies' times are all the same."""
    source = REAL / name
    target = to / source.name
    if source.is_dir():
        shutil.copytree(source, target)
    else:
        shutil.copy(source, target)
    for path in (target, *target.rglob("*")):
        os.utime(path, (THEN, THEN))
    return target


def write_npz(path: Path, step: int, size: int = 100, at: float = 0.0) -> Path:
    np.savez(path, w=np.arange(size, dtype=np.float64), step=np.int64(step))
    os.utime(path, (THEN + (at or step), THEN + (at or step)))
    return path


def problems(found: list[CheckpointInfo]) -> dict[str, tuple[bool | None, str]]:
    return {Path(one.path).name: (one.good, one.problem) for one in found}


WHOLE = [
    ("torch/step_10.pt", "torch", 10),
    ("torch/epoch=1-step=20.ckpt", "torch", 20),
    ("torch/last.ckpt", "torch", 30),
    ("torch/no_crc_step_10.pt", "torch", 10),
    ("torch/legacy_step_10.pt", "torch", 10),
    ("torch/dtypes_step_10.pt", "torch", 10),
    ("torch/dtypes_legacy_step_10.pt", "torch", 10),
    ("safetensors/step_10.safetensors", "safetensors", 10),
    ("safetensors/step_20", "safetensors", 20),
    ("huggingface/checkpoint-10", "huggingface", 10),
    ("dcp/step_10", "dcp", 10),
    ("deepspeed", "deepspeed", 10),
    ("megatron", "megatron", 10),
    ("orbax", "orbax", 10),
    ("orbax_zarr", "orbax", 10),
]


@pytest.mark.parametrize(("name", "kind", "step"), WHOLE)
def test_what_the_real_libraries_write_is_good(tmp_path: Path, name: str, kind: str, step: int) -> None:
    real(name, tmp_path)
    found = only(tmp_path)
    assert (found.format, found.step, found.good, found.problem) == (kind, step, True, "")
    assert found.size > 0
    assert found.at == THEN


def cuts(length: int) -> Iterator[int]:
    """Lengths to cut to, longest first: all of short files, of long ones some and the last ones."""
    every = 1 if length < 400 else 41 if length < 10_000 else 499
    return (cut for cut in range(length - 1, -1, -1) if cut > length - 30 or cut % every == 0)


@pytest.mark.parametrize("name", [name for name, _, _ in WHOLE if Path(name).suffix])
def test_a_file_cut_anywhere_is_never_good(tmp_path: Path, name: str) -> None:
    path = real(name, tmp_path)
    for cut in range(path.stat().st_size - 1, -1, -1):
        os.truncate(path, cut)
        with pytest.raises((checkpoints.Bad, checkpoints.Unsure)):
            checkpoints.check_file(path)
    assert only(tmp_path).good is False


@pytest.mark.parametrize("name", [name for name, _, _ in WHOLE if not Path(name).suffix])
def test_a_folder_with_any_file_cut_anywhere_is_never_good(tmp_path: Path, name: str) -> None:
    whole = real(name, tmp_path)
    for path in sorted(whole.rglob("*")):
        if not path.is_file() or path.name in MARKS:
            continue
        content = path.read_bytes()
        for cut in cuts(len(content)):
            if cut in RECORD_ENDS.get(path.name, ()):
                continue
            os.truncate(path, cut)
            assert only(tmp_path).good is False, f"{path} cut to {cut} of {len(content)}"
        path.write_bytes(content)
    assert only(tmp_path).good is True


MARKS = {"commit_success.txt", "latest", "latest_checkpointed_iteration.txt"}
"""Their being there counts, or they are no part of the checkpoint."""
RECORD_ENDS: dict[str, set[int]] = {}
"""Where an OCDBT data file can be cut so that what is left is whole records; filled in below."""
for _path in REAL.glob("orbax/**/d/*"):
    _ends, _at, _content = set(), 0, _path.read_bytes()
    while _at < len(_content):
        _ends.add(_at)
        with io.BytesIO(_content) as _file:
            node = _content[_at : _at + 4] == checkpoints.NODE
            length = struct.unpack_from("<Q", _content, _at + 4)[0]
            _at = _at + length if node else checkpoints.zstd_end(_file, _at, len(_content))
    RECORD_ENDS[_path.name] = _ends - {0}


@pytest.mark.parametrize("name", [name for name, _, _ in WHOLE if not Path(name).suffix])
def test_a_folder_that_lost_a_file_is_not_good(tmp_path: Path, name: str) -> None:
    whole = real(name, tmp_path)
    for path in sorted(whole.rglob("*")):
        lost_on_purpose = {*MARKS, "_sharding", "_METADATA", "process_0", "_CHECKPOINT_METADATA"}
        optional = {"optimizer.pt", "scheduler.pt", "rng_state.pth", "model.safetensors.index.json"}
        if not path.is_file() or path.name in lost_on_purpose | optional or path.parent.name == "d":
            continue
        if name == "orbax" and path.parent.name == "ocdbt.process_0":
            continue
        if "rank_1" in path.name or path.parent.name == "mp_rank_01":
            continue  # the last rank is missed by comparing with the checkpoint before
        content = path.read_bytes()
        path.unlink()
        found = find_checkpoints(tmp_path)
        assert not any(one.good for one in found), path
        path.write_bytes(content)


def numpy_files(folder: Path) -> list[Path]:
    odd = np.dtype([("a", "<f4"), ("b", "<U3", (2,)), ("t", "<M8[ns]")])
    np.savez(folder / "step_1.npz", w=np.ones((3, 4)), b=np.ones(2, dtype=">i2"), step=np.int64(1))
    np.savez_compressed(folder / "step_2.npz", w=np.zeros(1000), odd=np.zeros(3, dtype=odd), empty=np.ones(0))
    np.savez(folder / "step_3.npz", objects=np.array([{"a": 1}, "b"], dtype=object))
    np.save(folder / "step_4.npy", np.ones((2, 3), dtype=np.complex64, order="F"))
    np.save(folder / "step_5.npy", np.array([1, None, "x"], dtype=object))
    return sorted(folder.iterdir())


def test_numpy_files_are_good_whole_and_never_cut(tmp_path: Path) -> None:
    for path in numpy_files(tmp_path):
        checkpoints.check_file(path)
        for cut in range(path.stat().st_size - 1, -1, -1):
            os.truncate(path, cut)
            with pytest.raises((checkpoints.Bad, checkpoints.Unsure)):
                checkpoints.check_file(path)


@pytest.mark.parametrize("protocol", range(6))
def test_plain_pickles_are_walked_and_never_run(tmp_path: Path, protocol: int) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
            return os.system, (f"touch {tmp_path}/sprung",)

    path = tmp_path / "step_7.pkl"
    path.write_bytes(pickle.dumps({"trap": Trap(), "list": [1, 2.5, None, (1,), {3}], 4: b"x"}, protocol))
    assert checkpoints.check_pickle(path) is None
    for cut in range(path.stat().st_size - 1, -1, -1):
        os.truncate(path, cut)
        with pytest.raises((checkpoints.Bad, checkpoints.Unsure)):
            checkpoints.check_file(path)
    assert not (tmp_path / "sprung").exists()


@settings(max_examples=300, deadline=None)
@given(noise=st.binary(max_size=300), suffix=st.sampled_from(sorted(checkpoints.FILE_CHECKS)))
def test_noise_is_never_good_and_never_an_accident(
    tmp_path_factory: pytest.TempPathFactory, noise: bytes, suffix: str
) -> None:
    path = tmp_path_factory.getbasetemp() / f"noise_1{suffix}"
    path.write_bytes(noise)
    if suffix in {".pkl", ".pickle"}:
        return  # short noise may be a valid pickle
    with pytest.raises((checkpoints.Bad, checkpoints.Unsure)):
        checkpoints.check_file(path)


@pytest.mark.parametrize(
    "name", ["torch/step_10.pt", "torch/legacy_step_10.pt", "safetensors/step_10.safetensors"]
)
def test_overwritten_bytes_give_a_verdict_not_an_accident(tmp_path: Path, name: str) -> None:
    path = real(name, tmp_path)
    content, chance = path.read_bytes(), random.Random(5)
    for _ in range(400):
        damaged = bytearray(content)
        for _ in range(chance.randint(1, 4)):
            damaged[chance.randrange(len(damaged))] = chance.randrange(256)
        path.write_bytes(damaged)
        assert only(tmp_path).good in {True, False, None}


def test_zeros_where_tensors_were_are_found(tmp_path: Path) -> None:
    path = real("torch/step_10.pt", tmp_path)
    with zipfile.ZipFile(path) as archive:
        place = archive.getinfo("step_10/data/0").header_offset
    content = bytearray(path.read_bytes())
    content[place + 100 : place + 200] = bytes(100)
    path.write_bytes(content)
    found = only(tmp_path)
    assert found.good is False
    assert "damaged" in found.problem or "overwritten" in found.problem


def rezip(path: Path, drop: str = "", shorten: str = "") -> None:
    with zipfile.ZipFile(path) as archive:
        content = {info.filename: archive.read(info) for info in archive.infolist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in content.items():
            if name != drop:
                archive.writestr(name, data[:-4] if name == shorten else data)


@pytest.mark.parametrize(
    ("drop", "shorten", "problem"),
    [
        ("step_10/data.pkl", "", "no data.pkl"),
        ("step_10/data/3", "", "storage 3 is missing"),
        ("", "step_10/data/3", "44 bytes instead of 48"),
        ("", "step_10/data.pkl", "pickle is cut short"),
    ],
)
def test_a_torch_archive_must_hold_all_that_its_pickle_names(
    tmp_path: Path, drop: str, shorten: str, problem: str
) -> None:
    path = real("torch/step_10.pt", tmp_path)
    rezip(path)
    assert only(tmp_path).good is True
    rezip(path, drop, shorten)
    found = only(tmp_path)
    assert found.good is False
    assert problem in found.problem


@pytest.mark.parametrize(
    "name", ["torch/step_10.pt", "torch/legacy_step_10.pt", "safetensors/step_10.safetensors"]
)
def test_what_is_longer_than_it_says_is_bad(tmp_path: Path, name: str) -> None:
    path = real(name, tmp_path)
    with path.open("ab") as file:
        file.write(bytes(64))
    assert only(tmp_path).good is False


def test_an_archive_inside_an_archive_does_not_pass_for_it(tmp_path: Path) -> None:
    inner = (REAL / "torch/step_10.pt").read_bytes()
    (tmp_path / "step_10.pt").write_bytes(b"PK\x03\x04" + bytes(60) + inner)
    assert only(tmp_path).good is False


def test_a_zip_bomb_is_not_inflated(tmp_path: Path) -> None:
    path = tmp_path / "step_1.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("w.npy", "w") as member:
        head = io.BytesIO()
        np.lib.format.write_array_header_1_0(
            head, {"descr": "<f8", "fortran_order": False, "shape": (2**24,)}
        )
        member.write(head.getvalue())
        for _ in range(128):
            member.write(bytes(2**20))
    code = (
        "import resource, sys; from trainguard.supervisor import checkpoints;"
        "resource.setrlimit(resource.RLIMIT_AS, (120 << 20, 120 << 20));"
        "print(checkpoints.find_checkpoints(sys.argv[1])[0].good)"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert ran.stdout == "True\n"


def test_a_pickle_that_claims_to_be_huge_or_endless_is_left_undecided(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoints, "MOST_OPCODES", 1000)
    (tmp_path / "step_1.pkl").write_bytes(b"\x80\x02" + b"N0" * 2000 + b"N.")
    assert only(tmp_path).good is None
    (tmp_path / "step_1.pkl").write_bytes(b"\x80\x04\x8e" + struct.pack("<Q", 2**62) + b"x" * 100)
    assert only(tmp_path).good is False


def test_large_bytes_in_a_pickle_are_stepped_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoints, "MOST_STRING", 1000)
    (tmp_path / "step_1.pkl").write_bytes(pickle.dumps({"blob": b"x" * 50_000, "step": 5}, 4))
    assert only(tmp_path, format="pickle").good is True


@pytest.mark.parametrize(
    ("name", "step"),
    [
        ("step_100.pt", 100), ("step-000120.npz", 120), ("epoch=3-step=4600.ckpt", 4600), ("global_step1500", 1500),
        ("checkpoint-500", 500), ("iter_0001000", 1000), ("ckpt_42.pt", 42), ("model_9.pth", 9), ("1000", 1000),
        ("1000.orbax-checkpoint-tmp-17", 1000), ("model-step300-best.pt", 300), ("it=7.npz", 7),
        ("epoch_5.pt", None), ("last.ckpt", None), ("model-00001-of-00005.safetensors", None), ("rank_3.pt", None),
        ("step_" + "9" * 40, None),
    ],
)  # fmt: skip
def test_the_step_is_read_from_the_name(name: str, step: int | None) -> None:
    assert checkpoints.step_of(name) == step


def test_the_newest_is_that_of_the_highest_step_and_then_the_latest(tmp_path: Path) -> None:
    for step in (90, 100, 1000):
        write_npz(tmp_path / f"step_{step}.npz", step)
    np.savez(tmp_path / "final.npz", w=np.ones(100))
    found = find_checkpoints(tmp_path)
    assert [one.step for one in found] == [1000, 100, 90, None]
    newest = newest_good(tmp_path)
    assert newest is not None
    assert newest.step == 1000


def test_a_cut_newest_one_leaves_the_one_before(tmp_path: Path) -> None:
    for step in (10, 20, 30):
        write_npz(tmp_path / f"step_{step}.npz", step)
    os.truncate(tmp_path / "step_30.npz", 500)
    newest = newest_good(tmp_path)
    assert newest is not None
    assert newest.step == 20
    assert find_checkpoints(tmp_path)[0].good is False


def test_a_far_smaller_one_is_odd(tmp_path: Path) -> None:
    for step in (10, 20, 30):
        write_npz(tmp_path / f"step_{step}.npz", step, size=30 if step == 30 else 1000)
    good, problem = problems(find_checkpoints(tmp_path))["step_30.npz"]
    assert good is None
    assert "its neighbours" in problem


def test_a_later_step_that_is_older_is_left_over_from_another_run(tmp_path: Path) -> None:
    write_npz(tmp_path / "step_500.npz", 500, at=1000)
    write_npz(tmp_path / "step_90.npz", 90, at=2000)
    write_npz(tmp_path / "step_100.npz", 100, at=2100)
    newest = newest_good(tmp_path)
    assert newest is not None
    assert newest.step == 100
    assert problems(find_checkpoints(tmp_path))["step_500.npz"][0] is None


def test_what_is_just_being_written_is_never_called_bad(tmp_path: Path) -> None:
    path = write_npz(tmp_path / "step_10.npz", 10)
    os.truncate(path, 300)
    os.utime(path, (THEN, THEN))
    (fresh,) = find_checkpoints(tmp_path, now=THEN + 5)
    assert fresh.good is None
    assert "perhaps still being written" in fresh.problem
    (stale,) = find_checkpoints(tmp_path, now=THEN + 500)
    assert stale.good is False
    assert only(tmp_path).good is False


def test_what_grows_under_our_eyes_is_not_good_yet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_npz(tmp_path / "step_10.npz", 10)
    check = checkpoints.check_file

    def while_it_grows(checked: Path) -> int | None:
        step = check(checked)
        with path.open("ab") as file:
            file.write(b"more")
        return step

    monkeypatch.setattr(checkpoints, "check_file", while_it_grows)
    found = only(tmp_path)
    assert (found.good, found.problem) == (None, "it is still being written")


@pytest.mark.parametrize(
    "name", ["step_10.npz.tmp", "tmp_step_10.npz", "step_10.npz~", "step_10.npz.incomplete"]
)
def test_a_temporary_name_was_never_finished(tmp_path: Path, name: str) -> None:
    write_npz(tmp_path / "step_10.npz", 10).rename(tmp_path / name)
    found = only(tmp_path)
    assert found.good is False
    assert "temporary name" in found.problem


def test_an_empty_file_and_an_empty_folder_are_bad(tmp_path: Path) -> None:
    (tmp_path / "step_1.pt").touch()
    (tmp_path / "checkpoint-5").mkdir()
    assert {one.problem for one in find_checkpoints(tmp_path)} == {"empty"}
    assert {one.good for one in find_checkpoints(tmp_path)} == {False}


def test_a_rank_that_the_checkpoint_before_had_is_missed(tmp_path: Path) -> None:
    folder = real("deepspeed", tmp_path)
    shutil.copytree(folder / "global_step10", folder / "global_step20")
    (folder / "latest").write_text("global_step20")
    assert newest_good(tmp_path) == find_checkpoints(tmp_path)[0]
    (folder / "global_step20" / "bf16_zero_pp_rank_1_mp_rank_00_optim_states.pt").unlink()
    found = find_checkpoints(tmp_path)
    assert [one.good for one in found] == [False, True]
    assert "rank_1" in found[0].problem


def test_a_rank_in_the_middle_is_missed_without_comparison(tmp_path: Path) -> None:
    folder = real("deepspeed", tmp_path)
    (folder / "global_step10" / "bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt").unlink()
    assert only(tmp_path).problem == "optimizer states of rank 0 is missing"


@pytest.mark.parametrize(
    ("name", "old", "new", "tracker", "text"),
    [
        ("deepspeed", "global_step10", "global_step20", "latest", "global_step10"),
        ("megatron", "iter_0000010", "iter_0000020", "latest_checkpointed_iteration.txt", "10"),
    ],
)
def test_what_the_tracker_does_not_name_yet_was_not_finished(
    tmp_path: Path, name: str, old: str, new: str, tracker: str, text: str
) -> None:
    folder = real(name, tmp_path)
    shutil.copytree(folder / old, folder / new)
    (folder / tracker).write_text(text)
    found = find_checkpoints(tmp_path)
    assert [(one.step, one.good) for one in found] == [(20, False), (10, True)]
    assert f"still names {text}" in found[0].problem
    (folder / tracker).unlink()
    assert [one.good for one in find_checkpoints(tmp_path)] == [True, True]


def test_a_huggingface_folder_without_its_optimizer_is_missed_by_comparison(tmp_path: Path) -> None:
    first = real("huggingface/checkpoint-10", tmp_path)
    second = shutil.copytree(first, tmp_path / "checkpoint-20")
    (second / "trainer_state.json").write_text('{"global_step": 20}')
    assert [one.good for one in find_checkpoints(tmp_path)] == [True, True]
    (second / "optimizer.pt").unlink()
    found = find_checkpoints(tmp_path)[0]
    assert (found.good, found.problem) == (False, "optimizer.pt is missing, which checkpoint-10 has")
    (second / "trainer_state.json").write_text('{"global_step": 11}')
    shutil.copy(first / "optimizer.pt", second)
    assert find_checkpoints(tmp_path)[0].good is None


def test_orbax_without_commit_is_not_finished(tmp_path: Path) -> None:
    folder = real("orbax", tmp_path)
    mark = folder / "10" / "_CHECKPOINT_METADATA"
    state = json.loads(mark.read_text())
    mark.write_text(json.dumps({**state, "commit_timestamp_nsecs": None}))
    assert "commit" in only(tmp_path).problem
    mark.write_text(json.dumps(state))
    (folder / "10").rename(folder / "10.orbax-checkpoint-tmp-3")
    found = only(tmp_path)
    assert (found.step, found.good) == (10, False)


def test_a_zarr_array_without_a_chunk_is_incomplete(tmp_path: Path) -> None:
    folder = real("orbax_zarr", tmp_path)
    (folder / "10" / "w" / "0.0").unlink()
    assert "chunks" in only(tmp_path).problem


def test_shards_are_counted_with_an_index_and_without(tmp_path: Path) -> None:
    folder = real("safetensors/step_20", tmp_path)
    (folder / "model-00001-of-00002.safetensors").unlink()
    assert "model-00001-of-00002.safetensors is missing" in only(tmp_path).problem
    (folder / "model.safetensors.index.json").unlink()
    assert "model-00001-of-00002.safetensors is missing" in only(tmp_path).problem


def test_an_index_can_point_nowhere_else(tmp_path: Path) -> None:
    folder = real("safetensors/step_20", tmp_path)
    shutil.copy(folder / "model-00001-of-00002.safetensors", tmp_path / "outside.safetensors")
    index = {"weight_map": {"a": "../outside.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    found = next(one for one in find_checkpoints(tmp_path) if one.step == 20)
    assert found.good is False


def test_a_declared_glob_names_the_steps(tmp_path: Path) -> None:
    for name in ("run/a-10.npz", "run/a-20.npz", "run/b-99.npz", "a-30.npz"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write_npz(tmp_path / name, 1)
    found = find_checkpoints(tmp_path, "glob", "run/a-{step}.npz")
    assert [(one.step, one.good) for one in found] == [(20, True), (10, True)]
    assert [one.step for one in find_checkpoints(tmp_path, "glob", "*/?-{step}.npz")] == [99, 20, 10]


def test_an_unknown_format_is_judged_by_its_neighbours_alone(tmp_path: Path) -> None:
    def glob() -> list[bool | None]:
        return [one.good for one in find_checkpoints(tmp_path, "glob", "s{step}.dat")]

    (tmp_path / "s1.dat").write_bytes(b"x" * 1000)
    assert glob() == [None]
    (tmp_path / "s2.dat").write_bytes(b"x" * 1001)
    assert glob() == [True, True]
    (tmp_path / "s3.dat").write_bytes(b"x" * 700)
    assert glob() == [None, True, True]
    (tmp_path / "s3.dat").write_bytes(b"x" * 300)
    assert glob() == [False, True, True]


def test_lightning_folders_are_looked_into(tmp_path: Path) -> None:
    folder = tmp_path / "lightning_logs" / "version_0" / "checkpoints"
    folder.mkdir(parents=True)
    real("torch/epoch=1-step=20.ckpt", folder)
    (folder / "last.ckpt").symlink_to("epoch=1-step=20.ckpt")
    assert only(tmp_path).step == 20
    assert only(tmp_path, format="lightning").step == 20


def test_the_directory_itself_may_be_the_checkpoint(tmp_path: Path) -> None:
    folder = real("dcp/step_10", tmp_path)
    found = only(folder)
    assert (found.path, found.step, found.good) == (str(folder), 10, True)


def test_a_format_that_was_asked_for_hides_the_others(tmp_path: Path) -> None:
    real("torch/step_10.pt", tmp_path)
    write_npz(tmp_path / "step_20.npz", 20)
    assert only(tmp_path, format="torch").step == 10
    assert only(tmp_path, format="numpy").step == 20
    with pytest.raises(ValueError, match="unknown format"):
        find_checkpoints(tmp_path, "keras")
    with pytest.raises(ValueError, match="belong together"):
        find_checkpoints(tmp_path, "glob")


def test_links_lead_in_no_circles_and_count_as_nothing(tmp_path: Path) -> None:
    path = write_npz(tmp_path / "step_10.npz", 10)
    (tmp_path / "round").symlink_to(tmp_path)
    (tmp_path / "step_99.npz").symlink_to("step_99.npz")
    (tmp_path / "latest.npz").symlink_to(path)
    assert only(tmp_path).step == 10
    shards = tmp_path / "step_20"
    shards.mkdir()
    (shards / "w.npz").symlink_to("w.npz")
    assert find_checkpoints(tmp_path)[0].good is None


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "step_10.pt")
    (tmp_path / "checkpoint-5").mkdir()
    os.mkfifo(tmp_path / "checkpoint-5" / "trainer_state.json")
    real("safetensors/step_10.safetensors", tmp_path / "checkpoint-5").rename(
        tmp_path / "checkpoint-5/model.safetensors"
    )
    assert not any(one.good for one in find_checkpoints(tmp_path))


def test_a_huge_directory_is_bounded(tmp_path: Path) -> None:
    content = write_npz(tmp_path / "step_0.npz", 1).read_bytes()
    for step in range(1, 3000):
        (tmp_path / f"step_{step}.npz").write_bytes(content if step > 2950 else b"")
    found = find_checkpoints(tmp_path)
    assert [one.step for one in found] == list(range(2999, 2999 - checkpoints.CHECKED, -1))


def test_names_may_hold_anything(tmp_path: Path) -> None:
    write_npz(tmp_path / "step_10\n\x1b[31mgood.npz", 10)
    odd = os.fsdecode(b"step_20\xff.npz")
    write_npz(tmp_path / "x.npz", 20).rename(tmp_path / odd)
    ran = subprocess.run(
        [sys.executable, checkpoints.__file__, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert len(ran.stdout.splitlines()) == 2
    assert "\x1b" not in ran.stdout


@pytest.fixture
def public() -> Iterator[Path]:
    """A folder that another user may enter: pytest's own are closed."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


def test_what_may_not_be_read_is_unknown_and_says_so(public: Path) -> None:
    write_npz(public / "step_10.npz", 10)
    write_npz(public / "step_20.npz", 20).chmod(0)
    folder = real("huggingface/checkpoint-10", public).rename(public / "checkpoint-30")
    folder.chmod(0)
    code = (
        "import os, sys; from trainguard.supervisor import checkpoints;"
        "from dataclasses import asdict; import json; os.geteuid() or os.setuid(65534);"
        "print(json.dumps([asdict(one) for one in checkpoints.find_checkpoints(sys.argv[1])]))"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code, str(public)], capture_output=True, text=True, check=False
    )
    folder.chmod(0o755)
    assert ran.returncode == 0, ran.stderr
    found = {one["step"]: one for one in json.loads(ran.stdout)}
    assert found[10]["good"] is True
    assert found[20]["good"] is found[30]["good"] is None
    assert "can't be read (Permission denied)" in found[20]["problem"]
    assert "can't be read (Permission denied)" in found[30]["problem"]


def test_set_aside_moves_deletes_nothing_and_overwrites_nothing(tmp_path: Path) -> None:
    moved = []
    for number in range(2):
        path = write_npz(tmp_path / "step_10.npz", 10 + number)
        content = path.read_bytes()
        moved.append(set_aside(path, "cut short"))
        assert not path.exists()
        assert Path(moved[-1]).read_bytes() == content
    assert [Path(one).name for one in moved] == [f".step_10.npz.trainguard-set-aside-{n}" for n in (1, 2)]
    note = json.loads(Path(f"{moved[0]}.json").read_text())
    assert (note["was"], note["reason"]) == (str(tmp_path / "step_10.npz"), "cut short")
    assert find_checkpoints(tmp_path) == []
    with pytest.raises(FileNotFoundError):
        set_aside(tmp_path / "step_10.npz", "again")
    folder = real("huggingface/checkpoint-10", tmp_path)
    set_aside(folder, "its weights are cut short")
    assert not folder.exists()
    assert find_checkpoints(tmp_path) == []


def test_what_another_tool_moved_away_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "set-aside").mkdir()
    write_npz(tmp_path / "set-aside" / "step_10.npz", 10)
    assert find_checkpoints(tmp_path) == []


def test_the_command_prints_facts_that_the_guard_can_take(tmp_path: Path) -> None:
    write_npz(tmp_path / "step_10.npz", 10)
    os.truncate(write_npz(tmp_path / "step_20.npz", 20), 100)
    script = shutil.copy(checkpoints.__file__, tmp_path / "copied.py")
    command = [sys.executable, "-I", "-S", str(script)]
    ran = subprocess.run([*command, str(tmp_path), "--json"], capture_output=True, text=True, check=True)
    facts = tuple(Checkpoint.model_validate(one) for one in json.loads(ran.stdout)["checkpoints"])
    newest = core_newest_good(facts)
    assert newest is not None
    assert newest.step == 10
    assert [one.good for one in facts] == [False, True]
    gone = subprocess.run(
        [*command, str(tmp_path / "no"), "--json"], capture_output=True, text=True, check=False
    )
    assert gone.returncode == 2
    assert "No such file" in json.loads(gone.stderr)["problem"]
    bad = facts[0].path
    ran = subprocess.run(
        [*command, "--set-aside", bad, "--reason", "cut"], capture_output=True, text=True, check=True
    )
    assert Path(json.loads(ran.stdout)["path"]).exists()
    assert not Path(bad).exists()
