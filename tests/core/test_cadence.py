"""When the next check is due, as a simulation of whole days."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from trainguard.core.cadence import Cadence, next_check

DAY = 86_400.0


def checks(cadence: Cadence, until: float, *, late: float = 0.0, uncertain: bool = False) -> list[float]:
    """Give the times of all checks; each comes `late` seconds after it was due."""
    now, times = 0.0, []
    while (now := now + next_check(cadence, since_start=now, uncertain=uncertain) + late) < until:
        times.append(now)
    return times


def test_after_a_start_it_settles_then_waits_1_2_4_and_8_minutes_then_cruises() -> None:
    times = checks(Cadence(), 4_000)
    assert times[:8] == [120, 180, 300, 540, 1020, 1590, 2160, 2730]


def test_a_day_takes_about_150_checks() -> None:
    assert 150 <= len(checks(Cadence(), DAY)) <= 157
    assert 140 <= len(checks(Cadence(), DAY, late=2.0)) <= 160


def test_uncertainty_shortens_every_wait_and_lengthens_none() -> None:
    assert checks(Cadence(), 2_000, uncertain=True)[:6] == [120, 180, 300, 480, 540, 720]
    assert next_check(Cadence(), since_start=DAY, uncertain=True) == 180


def test_a_check_that_comes_a_moment_early_does_not_cause_another_at_once() -> None:
    assert next_check(Cadence(), since_start=119.99, uncertain=False) > 50


def test_a_clock_that_went_back_waits_for_the_first_check() -> None:
    assert next_check(Cadence(), since_start=-3_600.0, uncertain=False) == 120


def test_every_wait_can_be_set() -> None:
    cadence = Cadence(settle=5, young=(1, 2), steady=10, uncertain=3, least=0.1)
    assert checks(cadence, 40) == [5, 6, 8, 18, 28, 38]
    assert next_check(cadence, since_start=100, uncertain=True) == 3
    assert checks(Cadence(young=()), 2_000) == [120, 690, 1260, 1830]


@pytest.mark.parametrize(
    "wrong", [{"settle": 0}, {"steady": -1}, {"young": (60, 0)}, {"uncertain": float("nan")}]
)
def test_a_wait_that_is_none_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Cadence.model_validate(wrong)


@given(st.floats(-1e6, 1e9), st.booleans())
def test_the_wait_is_always_between_the_least_and_the_longest(since: float, uncertain: bool) -> None:
    cadence = Cadence()
    assert cadence.least <= next_check(cadence, since_start=since, uncertain=uncertain) <= cadence.steady
