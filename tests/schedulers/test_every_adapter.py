"""No adapter without the contract."""

from __future__ import annotations

from pathlib import Path

import pytest

from trainguard.core.action import ActionKind
from trainguard.schedulers.registry import SCHEDULERS, scheduler_class

TESTS = Path(__file__).parents[1]
REAL = sorted(name for name, target in SCHEDULERS.items() if not target.startswith("trainguard.testing."))


@pytest.mark.parametrize("name", REAL)
def test_a_contract_test_holds_it(name: str) -> None:
    holding = [path for path in TESTS.rglob("test_*.py") if "(SchedulerContract)" in path.read_text()]
    assert any(name in str(path.relative_to(TESTS)) for path in holding)


@pytest.mark.parametrize("name", sorted(SCHEDULERS))
def test_it_has_the_name_by_which_it_is_registered_and_supports_no_mere_advice(name: str) -> None:
    adapter = scheduler_class(name)
    assert adapter.name == name
    assert adapter.supports <= {kind for kind in ActionKind if not kind.advice}
