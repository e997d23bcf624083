"""Checkpoints on a volume that both the job's pods and the guard have mounted."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from trainguard.core.job import CheckpointSpec
from trainguard.schedulers.kubernetes.volumes import look


def checkpoint(folder: Path, step: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(folder / f"step-{step}.npz", weights=np.zeros(100))


def test_checkpoints_are_told_by_their_path_in_the_pod(tmp_path: Path) -> None:
    checkpoint(tmp_path / "run7", 10)
    checkpoint(tmp_path / "run7", 20)
    (tmp_path / "run7" / "step-30.npz").write_bytes(b"PK")
    found = look(CheckpointSpec(directory="/ckpt/run7"), {"/ckpt/": str(tmp_path)}, writing=False)
    assert found is not None
    assert [(one.path, one.step, one.good) for one in found] == [
        ("/ckpt/run7/step-30.npz", 30, False),
        ("/ckpt/run7/step-20.npz", 20, True),
        ("/ckpt/run7/step-10.npz", 10, True),
    ]


def test_the_innermost_volume_holds_the_directory(tmp_path: Path) -> None:
    checkpoint(tmp_path / "inner", 5)
    (tmp_path / "outer").mkdir()
    volumes = {"/data": str(tmp_path / "outer"), "/data/ckpt": str(tmp_path / "inner")}
    found = look(CheckpointSpec(directory="/data/ckpt"), volumes, writing=False)
    assert found is not None
    assert [one.path for one in found] == ["/data/ckpt/step-5.npz"]


def test_a_directory_on_no_volume_can_not_be_looked_at(tmp_path: Path) -> None:
    assert look(CheckpointSpec(directory="/ckpts"), {"/ckpt": str(tmp_path)}, writing=False) is None


def test_a_volume_that_is_not_mounted_is_not_an_empty_one(tmp_path: Path) -> None:
    spec = CheckpointSpec(directory="/ckpt/run7")
    assert look(spec, {"/ckpt": str(tmp_path)}, writing=False) is None
    assert look(spec, {"/ckpt": str(tmp_path / "nowhere")}, writing=False) is None
    (tmp_path / "other-run").mkdir()
    assert look(spec, {"/ckpt": str(tmp_path)}, writing=False) == ()
