"""Two finders, one answer."""

from __future__ import annotations

import random
from importlib.util import find_spec
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.diagnosis.generator import generate
from trainguard.core.diagnosis import Catalogue, diagnose
from trainguard.core.diagnosis.finder import HyperscanFinder, PythonFinder, finder
from trainguard.core.diagnosis.matcher import Matcher
from trainguard.core.diagnosis.stream import Stream
from trainguard.core.evidence import EvidenceKind
from trainguard.core.observation import LogSource
from trainguard.rules.store import OwnFolder

native = pytest.mark.skipif(find_spec("hyperscan") is None, reason="hyperscan is not installed")

LITERALS = ("out of memory", "xid (", "nan\b", "\boom\b", "inf\b", "oom-kill", "ecc", "nvrm: xid (")


def test_without_the_native_matcher_literals_are_found_too() -> None:
    found = PythonFinder(LITERALS).find(b"NVRM: Xid (PCI) Out Of Memory OOM INFO inf")
    assert {LITERALS[index] for _, index in found} == set(LITERALS) - {"nan\b", "oom-kill", "ecc"}


@native
@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.sampled_from([*"oiINFO nax(\n_é", "OOM", "inf", "out of memory", "Xid (", "ecc", "nan"]),
        max_size=40,
    )
)
def test_both_finders_say_the_same(parts: list[str]) -> None:
    data = "".join(parts).encode()
    assert finder(LITERALS, native=True).find(data) == finder(LITERALS, native=False).find(data)


@native
@pytest.mark.parametrize("seed", range(6))
def test_both_finders_lead_to_the_same_diagnosis(seed: int, catalogue: Catalogue) -> None:
    incident = generate(seed, ranks=16)
    fast = diagnose(incident.streams, catalogue, matcher=Matcher(catalogue, native=True))
    slow = diagnose(incident.streams, catalogue, matcher=Matcher(catalogue, native=False))
    assert fast == slow


@native
def test_giving_up_dull_literals_changes_no_answer(
    catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainguard.core.diagnosis.matcher._PATIENCE", 5)
    rng = random.Random(3)
    words = ["INFO", "loss: nan", "error", "failed", "loss: inf", "CUDA out of memory", "checkpoint", "user"]
    text = "\n".join(" ".join(rng.choices(words, k=4)) for _ in range(8_000))
    stream = Stream(LogSource(name="job.log"), EvidenceKind.LOG, (text,))
    tired = Matcher(catalogue, native=True)
    before = diagnose([stream], catalogue, matcher=tired)
    assert isinstance(tired.finder, HyperscanFinder) and tired.finder.sharp, (
        "the log was meant to tire the matcher"
    )
    assert diagnose([stream], catalogue, matcher=tired) == before
    assert diagnose([stream], catalogue, matcher=Matcher(catalogue, native=False)) == before


PATTERNS = (r"loss: {0,3}(?P<n>nan|inf)\b", r"^Out of .{2,8}y$", r"(?i)xid\s{1,3}\d{1,3}\b")


@native
def test_whole_patterns_are_reported_and_in_odd_lines_their_literals_too() -> None:
    found = finder(LITERALS, PATTERNS, native=True)
    found.sharpen()
    plain, odd = b"Xid 79 and oom and info\nout of memory", "Xid\u00a079 oom é\n".encode()
    first = len(LITERALS)
    assert {index for _, index in found.find(plain)} == {first + 2}
    both = found.find(plain + b"\n" + odd)
    assert {index for offset, index in both if offset <= len(plain)} == {first + 2}
    assert {LITERALS[index] for offset, index in both if offset > len(plain)} == {"\boom\b"}


@native
@pytest.mark.parametrize("odd", ["\x01", "é", "\u200b", "\x0b", "\u00a0", "█"])
def test_characters_that_engines_count_differently_change_no_answer(
    odd: str, catalogue: Catalogue, sharpened: Matcher
) -> None:
    for base in ("CUDA out of memory.", "loss: nan", "NVRM: Xid (PCI:0000:3b:00): 79, pid=1"):
        lines = [base[:cut] + odd * times + base[cut:] for cut in range(len(base)) for times in (1, 40)]
        stream = Stream(LogSource(name="job.log"), EvidenceKind.LOG, ("\n".join(lines),))
        slow = diagnose([stream], catalogue, matcher=Matcher(catalogue, native=False))
        assert diagnose([stream], catalogue, matcher=sharpened) == slow


@pytest.fixture(scope="module")
def sharpened(catalogue: Catalogue) -> Matcher:
    matcher = Matcher(catalogue, native=True)
    matcher.finder.sharpen()
    return matcher


@native
@pytest.mark.parametrize("seed", range(6))
def test_whole_patterns_lead_to_the_same_diagnosis(
    seed: int, catalogue: Catalogue, sharpened: Matcher
) -> None:
    incident = generate(seed, ranks=16)
    slow = diagnose(incident.streams, catalogue, matcher=Matcher(catalogue, native=False))
    assert diagnose(incident.streams, catalogue, matcher=sharpened) == slow


@native
def test_what_was_compiled_is_used_again_and_only_for_the_same_patterns(tmp_path: Path) -> None:
    store = OwnFolder(tmp_path / "cache")
    first = finder(LITERALS, PATTERNS, native=True, store=store)
    first.sharpen()
    again = finder(LITERALS, PATTERNS, native=True, store=store)
    assert isinstance(again, HyperscanFinder) and again.sharp
    assert again.find(b"xid 79\n") == first.find(b"xid 79\n") != []
    other = finder(LITERALS, PATTERNS[:2], native=True, store=store)
    assert isinstance(other, HyperscanFinder) and not other.sharp


@native
def test_a_database_that_is_none_is_not_used(tmp_path: Path) -> None:
    store = OwnFolder(tmp_path / "cache")
    finder(LITERALS, PATTERNS, native=True, store=store).sharpen()
    kept = store.get("patterns.hs")
    assert kept is not None
    for spoiled in (kept[:32], kept[:32] + b"no database", kept[:-9], kept[:200] + bytes(64) + kept[264:]):
        store.put("patterns.hs", spoiled)
        found = finder(LITERALS, PATTERNS, native=True, store=store)
        assert isinstance(found, HyperscanFinder) and not found.sharp


@native
def test_a_pattern_whose_literals_are_everywhere_is_looked_for_whole_from_the_start() -> None:
    found = finder(
        ("norm", "xid ("), (r"norm: \d{5,9}", r"Xid \(\d"), common=1, only_common={"norm"}, native=True
    )
    assert found.find(b"norm: 0.12\nXid (\n") == [(16, 1)]
    assert {index for _, index in found.find(b"norm: 123456\n")} == {2}
    assert {index for _, index in found.find("norm: 0.12 é\n".encode())} == {0}
