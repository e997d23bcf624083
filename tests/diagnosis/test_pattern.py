"""The subset of regular expressions, and the literals that find them."""

from __future__ import annotations

import pytest

from trainguard.core.diagnosis.pattern import PatternError, check, requirements


@pytest.mark.parametrize(
    ("pattern", "why"),
    [
        (r"foo(?=bar)", "lookaround"),
        (r"(?<!x)foo", "lookaround"),
        (r"(foo)\1", "backreference"),
        (r"(?:fooo+)+", "nests"),
        (r"(?:a.*)*foo", "nests"),
        (r"foo(", "no regular expression"),
        (r"(?:foo)?", "empty line"),
        (r"\d+ [a-z]+", "fixed characters"),
        (r"foo|\d\d", "fixed characters"),
    ],
)
def test_what_the_subset_leaves_out_is_refused_with_its_reason(pattern: str, why: str) -> None:
    with pytest.raises(PatternError, match=why):
        check(pattern)


@pytest.mark.parametrize(
    ("pattern", "first"),
    [
        ("GPU has fallen off the bus", {"gpu has fallen off the bus"}),
        (r"RuntimeError: (?:CUDA|HIP) error: (out of memory|an illegal)", {"out of memory", "an illegal"}),
        (r"(?i)[Cc]uda", {"cuda"}),
        (r"loss (?P<n>nan|inf)\b", {"nan\b", "inf\b"}),
        (r"\bOOM\b", {"\bOOM\b".lower()}),
    ],
)
def test_every_match_holds_one_of_the_first_set(pattern: str, first: set[str]) -> None:
    assert requirements(pattern)[0] == first
