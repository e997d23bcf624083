"""The four prescribed folders, the links to them and the packaging table say the same."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from prefect.flows import Flow, load_flow_from_entrypoint

TOP = Path(__file__).parent.parent
FOLDERS = ("blocks", "deployments", "flows", "tasks")
PROJECT = tomllib.loads((TOP / "pyproject.toml").read_text())
PACKAGES = PROJECT["tool"]["setuptools"]["packages"]


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_prescribed_folder_is_real_and_linked_from_the_package(folder: str) -> None:
    link = TOP / "trainguard" / folder
    assert not (TOP / folder).is_symlink()
    assert link.is_symlink()
    assert str(link.readlink()) == f"../{folder}"
    assert PROJECT["tool"]["setuptools"]["package-dir"][f"trainguard.{folder}"] == folder


def test_every_package_is_in_the_table_and_nothing_else() -> None:
    found = {
        ".".join(path.parent.relative_to(TOP).parts)
        for path in (TOP / "trainguard").rglob("__init__.py")
        if "__pycache__" not in path.parts
    }
    found |= {f"trainguard.{folder}" for folder in FOLDERS}
    assert set(PACKAGES) == found


@pytest.mark.parametrize("folder", FOLDERS)
def test_no_file_is_named_like_a_library(folder: str) -> None:
    """Prefect loads a file entrypoint as `sys.modules[<stem>]` and leaves its folder first on `sys.path`."""
    names = [path.stem for path in (TOP / folder).glob("*.py") if path.stem != "__init__"]
    libraries = {name for name in names if importlib.util.find_spec(name) is not None}
    assert not libraries


def entrypoints() -> list[str]:
    return [
        entry["entrypoint"] for entry in yaml.safe_load((TOP / "prefect.yaml").read_text())["deployments"]
    ]


@pytest.mark.parametrize("entrypoint", sorted(set(entrypoints())))
def test_an_entrypoint_of_prefect_yaml_can_be_imported(
    entrypoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(TOP)
    flow: Flow[..., Any] = load_flow_from_entrypoint(entrypoint, use_placeholder_flow=False)
    assert flow.name in {"guard", "patrol"}


def test_flow_files_define_no_classes() -> None:
    """Loaded by path they live in module `guard`, by name in `trainguard.flows.guard`: two identities."""
    for path in (TOP / "flows").glob("*.py"):
        assert "\nclass " not in path.read_text(), path


def test_the_wheel_holds_trainguard_alone_with_rules_and_migrations(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(TOP)]
    done = subprocess.run(build, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"trainguard"}
    for needed in ("flows/guard.py", "blocks/slurm_cluster.py", "tasks/act.py", "rules/gpu.yaml", "py.typed"):
        assert f"trainguard/{needed}" in names
    assert any(name.startswith("trainguard/ledger/migrations/versions/") for name in names)
