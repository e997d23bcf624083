"""Evidence is kept whole, once, and its texts are what they say they are."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.ledger import facts
from trainguard.core.decision import Lease
from trainguard.core.errors import LedgerUnavailableError
from trainguard.ledger.exhibits import LOST
from trainguard.ledger.ledger import Ledger
from trainguard.ledger.texts import folder


@pytest.fixture
async def opened(ledger: Ledger, lease: Lease) -> Lease:
    await ledger.open_incident(lease, facts.incident())
    return lease


def files(ledger: Ledger) -> list[Path]:
    assert ledger.location.path is not None
    return sorted(path for path in folder(ledger.location.path).rglob("*") if path.is_file())


async def test_evidence_comes_back_in_order_whatever_its_bytes(ledger: Ledger, opened: Lease) -> None:
    given = [facts.evidence("b\x00\ud800\r\n"), facts.evidence(""), facts.evidence("ä" * 100_000)]
    await ledger.add_evidence(opened, "inc00001", given)
    assert await ledger.evidence("inc00001") == given
    assert await ledger.evidence("nothing") == []


async def test_the_same_excerpt_is_kept_once_and_the_same_text_of_two_sources_twice(
    ledger: Ledger, opened: Lease
) -> None:
    for _ in range(2):
        await ledger.add_evidence(opened, "inc00001", [facts.evidence("x"), facts.evidence("x", "b.log")])
    assert await ledger.evidence("inc00001") == [facts.evidence("x"), facts.evidence("x", "b.log")]


async def test_a_fenced_guard_leaves_no_text_behind(sqlite: Ledger, sqlite_fenced: Lease) -> None:
    with pytest.raises(Exception, match="no longer guards"):
        await sqlite.add_evidence(sqlite_fenced, "inc00001", [facts.evidence("x")])
    assert files(sqlite) == []


async def test_a_text_changed_or_removed_since_is_named_so(sqlite: Ledger, sqlite_lease: Lease) -> None:
    given = [facts.evidence("first"), facts.evidence("second")]
    await sqlite.add_evidence(sqlite_lease, "inc00001", given)
    first = next(path for path in files(sqlite) if path.stem == given[0].sha256)
    second = next(path for path in files(sqlite) if path.stem == given[1].sha256)
    first.write_text("forged")
    second.unlink()
    found = await sqlite.evidence("inc00001")
    assert [(item.text, item.truncated) for item in found] == [(LOST, True), (LOST, True)]
    assert [item.source for item in found] == [item.source for item in given]


async def test_a_text_cut_short_by_a_crash_is_written_again(sqlite: Ledger, sqlite_lease: Lease) -> None:
    await sqlite.add_evidence(sqlite_lease, "inc00001", [facts.evidence("whole")])
    (path,) = files(sqlite)
    path.write_text("wh")
    await sqlite.add_evidence(sqlite_lease, "inc00001", [facts.evidence("whole")])
    assert await sqlite.evidence("inc00001") == [facts.evidence("whole")]


async def test_texts_that_cant_be_written_leave_no_rows(sqlite: Ledger, sqlite_lease: Lease) -> None:
    assert sqlite.location.path is not None
    folder(sqlite.location.path).write_text("a file where the folder should be")
    with pytest.raises(LedgerUnavailableError, match="can't be written"):
        await sqlite.add_evidence(sqlite_lease, "inc00001", [facts.evidence("x")])
    assert await sqlite.evidence("inc00001") == []


async def test_only_the_owner_can_read_the_texts_and_the_ledger(sqlite: Ledger, sqlite_lease: Lease) -> None:
    await sqlite.add_evidence(sqlite_lease, "inc00001", [facts.evidence("x")])
    assert sqlite.location.path is not None
    for path in (*files(sqlite), sqlite.location.path):
        assert path.stat().st_mode & 0o077 == 0
