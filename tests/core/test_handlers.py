"""Exit codes find their script, as often as the owner lets, and mistakes in the file are named."""

from __future__ import annotations

from typing import Any

import pytest

from trainguard.core.errors import ConfigError
from trainguard.core.handlers import handlers_from, match_handler

FILE: dict[str, Any] = {
    "failure_handlers": [
        {
            "name": "known_errors",
            "rules": [
                {"exit_codes": [10, 11], "recovery_script": "./recover.sh", "max_retries": 2},
                {"exit_codes": [11, 42], "recovery_script": "./harder.sh", "max_retries": 1},
            ],
        },
        {"name": "signals", "rules": [{"exit_codes": [137], "recovery_script": "./memory.sh"}]},
    ]
}
HANDLERS = handlers_from(FILE)


@pytest.mark.parametrize(
    ("exit_code", "used", "key"),
    [
        (10, {}, "known_errors#1"),
        (11, {}, "known_errors#1"),
        (11, {"known_errors#1": 1}, "known_errors#1"),
        (11, {"known_errors#1": 2}, "known_errors#2"),
        (11, {"known_errors#1": 2, "known_errors#2": 1}, None),
        (10, {"known_errors#1": 3}, None),
        (137, {"known_errors#1": 9}, "signals#1"),
        (1, {}, None),
        (0, {}, None),
        (None, {}, None),
    ],
)
def test_the_first_rule_with_tries_left_is_taken(
    exit_code: int | None, used: dict[str, int], key: str | None
) -> None:
    match = match_handler(HANDLERS, exit_code, used)
    assert (match.key if match else None) == key


def test_a_match_says_how_many_tries_are_left() -> None:
    match = match_handler(HANDLERS, 10, {"known_errors#1": 1})
    assert match is not None
    assert (match.tries_left, match.rule.recovery_script, match.handler) == (
        1,
        "./recover.sh",
        "known_errors",
    )


def test_a_file_without_handlers_has_none() -> None:
    assert handlers_from({"family": "MINE", "rules": []}) == ()


def rule(**changes: Any) -> dict[str, Any]:
    fields = {"exit_codes": [10], "recovery_script": "./recover.sh", **changes}
    named = {name: value for name, value in fields.items() if value != "left out"}
    return {"failure_handlers": [{"name": "a", "rules": [named]}]}


@pytest.mark.parametrize(
    ("data", "field", "hint"),
    [
        ([], "failure_handlers", "begin it"),
        ({"failure_handlers": {}}, "failure_handlers", "list"),
        ({"failure_handlers": ["x"]}, "failure_handlers[0]", "name"),
        ({"failure_handlers": [{"name": "a"}]}, "failure_handlers[0].rules", "add"),
        ({"failure_handlers": [{"name": "a", "rules": []}]}, "failure_handlers[0].rules", "at least one"),
        ({"failure_handlers": [{"name": "a#1", "rules": [{}]}]}, "failure_handlers[0].name", "known_errors"),
        (
            {"failure_handlers": [*FILE["failure_handlers"], FILE["failure_handlers"][0]]},
            "failure_handlers",
            "own name",
        ),
        (rule(exit_code=[10]), "failure_handlers[0].rules[0].exit_code", "exit_codes"),
        (rule(max_retry=1), "failure_handlers[0].rules[0].max_retry", "max_retries"),
        (rule(exit_codes="left out"), "failure_handlers[0].rules[0].exit_codes", "add"),
        (rule(exit_codes=[]), "failure_handlers[0].rules[0].exit_codes", "list"),
        (rule(exit_codes=10), "failure_handlers[0].rules[0].exit_codes", "- "),
        (rule(exit_codes=[0]), "failure_handlers[0].rules[0].exit_codes", "out"),
        (rule(exit_codes=[256]), "failure_handlers[0].rules[0].exit_codes", ""),
        (rule(exit_codes=[True]), "failure_handlers[0].rules[0].exit_codes", ""),
        (rule(exit_codes=["10"]), "failure_handlers[0].rules[0].exit_codes", ""),
        (rule(recovery_script=""), "failure_handlers[0].rules[0].recovery_script", "recover.sh"),
        (rule(recovery_script=["a", "b"]), "failure_handlers[0].rules[0].recovery_script", "recover.sh"),
        (rule(max_retries=0), "failure_handlers[0].rules[0].max_retries", ""),
        (rule(max_retries=1.5), "failure_handlers[0].rules[0].max_retries", ""),
        (rule(timeout_seconds=0), "failure_handlers[0].rules[0].timeout_seconds", ""),
    ],
)
def test_a_mistake_is_named_with_its_remedy(data: object, field: str, hint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        handlers_from(data)
    assert caught.value.field == field
    assert hint in f"{caught.value} {caught.value.remedy}"
