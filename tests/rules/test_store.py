"""What is kept for the next start is believed only where nobody else could have written it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from trainguard.rules import load_catalogue
from trainguard.rules.store import OwnFolder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def test_what_was_put_is_given_back_and_nobody_else_may_read_it(folder: Path) -> None:
    OwnFolder(folder).put("thing", b"content")
    assert OwnFolder(folder).get("thing") == b"content"
    assert (folder.stat().st_mode & 0o777, (folder / "thing").stat().st_mode & 0o777) == (0o700, 0o600)
    assert [path.name for path in folder.iterdir()] == ["thing"]


def test_what_others_may_write_is_not_believed(folder: Path) -> None:
    store = OwnFolder(folder)
    store.put("thing", b"content")
    (folder / "thing").chmod(0o620)
    assert store.get("thing") is None
    (folder / "thing").chmod(0o600)
    folder.chmod(0o777)
    assert store.get("thing") is None


def test_a_link_is_not_followed(folder: Path) -> None:
    store = OwnFolder(folder)
    store.put("elsewhere", b"content")
    (folder / "thing").symlink_to(folder / "elsewhere")
    assert store.get("thing") is None


@pytest.mark.parametrize("spoil", [lambda b: b[:-1], lambda b: b + b"x", lambda b: b[:40], lambda b: b""])
def test_what_is_torn_counts_as_missing(folder: Path, spoil: object) -> None:
    store = OwnFolder(folder)
    store.put("thing", b"content" * 100)
    (folder / "thing").write_bytes(spoil((folder / "thing").read_bytes()))  # type: ignore[operator]
    assert store.get("thing") is None


def test_an_unwritable_place_is_no_harm(folder: Path) -> None:
    folder.write_text("a file stands in the way")
    OwnFolder(folder).put("thing", b"content")
    assert OwnFolder(folder).get("thing") is None


def test_a_warm_start_reads_the_same_rules_without_their_yaml(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cold = load_catalogue((), OwnFolder(folder))
    monkeypatch.setattr("trainguard.rules._document", None)
    assert load_catalogue((), OwnFolder(folder)).rules == cold.rules


def test_a_catalogue_kept_from_other_files_is_not_used(folder: Path) -> None:
    store = OwnFolder(folder)
    cold = load_catalogue((), store)
    kept = json.loads(store.get("catalogue.json") or b"")
    for spoiled in (b"[]", b"{", json.dumps({**kept, "key": "another", "families": {}}).encode()):
        store.put("catalogue.json", spoiled)
        assert load_catalogue((), store).rules == cold.rules
