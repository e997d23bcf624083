"""A policy as its owner writes it, and what it says of a slip of the pen."""

from __future__ import annotations

import pytest

from trainguard.core.action import ActionKind
from trainguard.core.errors import ConfigError
from trainguard.core.policy import Preset, read_policy
from trainguard.core.verdict import FaultClass


def test_words_and_tables_are_lines_of_the_whitelist() -> None:
    policy = read_policy(
        {"preset": "observe", "allow": ["restart", {"action": "drain_node", "faults": ["gpu_hardware"]}]}
    )
    assert policy.preset is Preset.OBSERVE
    assert policy.allow[0].covers(ActionKind.RESTART, FaultClass.DATA)
    assert policy.allow[1].covers(ActionKind.DRAIN_NODE, FaultClass.GPU_HARDWARE)
    assert not policy.allow[1].covers(ActionKind.DRAIN_NODE, FaultClass.DATA)


@pytest.mark.parametrize(
    ("table", "field", "remedy"),
    [
        ({"allow": ["restrat"]}, "policy.allow.0.action", "'restart'"),
        (
            {"allow": [{"action": "restart", "faults": ["gpu_hardwear"]}]},
            "policy.allow.0.faults.0",
            "'gpu_hardware'",
        ),
        ({"preset": "autonomus"}, "policy.preset", "'autonomous'"),
        ({"budget": {}}, "policy.budget", "'budgets'"),
        ({"budgets": {"same_caus": 2}}, "policy.budgets.same_caus", "'same_cause'"),
        ({"approval_deadline": -1}, "policy.approval_deadline", ""),
    ],
)
def test_a_slip_is_named_with_the_nearest_valid_word(
    table: dict[str, object], field: str, remedy: str
) -> None:
    with pytest.raises(ConfigError) as raised:
        read_policy(table)
    assert raised.value.field == field
    assert remedy in raised.value.remedy
