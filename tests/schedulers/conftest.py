"""Lets the contract suite's assertions show their values, though the suite is shipped with the package."""

import pytest

pytest.register_assert_rewrite(
    "trainguard.testing.contract_actions",
    "trainguard.testing.contract_logs",
    "trainguard.testing.contract_observe",
)
