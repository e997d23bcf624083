"""Two finders, one answer."""

from __future__ import annotations

import random
from importlib.util import find_spec

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.diagnosis.generator import generate
from trainguard.core.diagnosis import Catalogue, diagnose
from trainguard.core.diagnosis.finder import PythonFinder, finder
from trainguard.core.diagnosis.matcher import Matcher
from trainguard.core.diagnosis.stream import Stream
from trainguard.core.evidence import EvidenceKind
from trainguard.core.observation import LogSource

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
    assert tired._sharpened, "the log was meant to tire the matcher"
    assert diagnose([stream], catalogue, matcher=tired) == before
    assert diagnose([stream], catalogue, matcher=Matcher(catalogue, native=False)) == before
