"""The owner's will: what may be done without asking, within which budgets. Deny by default."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from enum import StrEnum
from typing import Any

from pydantic import Field, ValidationError, field_validator

from trainguard.core.action import ActionKind
from trainguard.core.errors import ConfigError
from trainguard.core.fact import Fact
from trainguard.core.verdict import FaultClass


class Preset(StrEnum):
    """Where a policy starts from."""

    OBSERVE = "observe"
    """Watches, diagnoses and reports; acts never, asks never."""
    ASSIST = "assist"
    """Asks a person for everything that is not allowed below."""
    AUTONOMOUS = "autonomous"
    """Job-scope actions run; everything wider is asked."""


class Allow(Fact):
    """One line of the whitelist."""

    action: ActionKind
    faults: tuple[FaultClass, ...] = ()
    """Only for these classes of root cause; empty means any."""

    def covers(self, action: ActionKind, fault: FaultClass) -> bool:
        """Whether this line lets `action` run for `fault`."""
        return action is self.action and (not self.faults or fault in self.faults)

    def __str__(self) -> str:
        """The line as its owner would write it."""
        if not self.faults:
            return f'allow = ["{self.action}"]'
        faults = ", ".join(f'"{fault}"' for fault in self.faults)
        return f'allow = [{{action = "{self.action}", faults = [{faults}]}}]'


class Budgets(Fact):
    """When the automatics stop. Counted only while there is no progress."""

    same_cause: int = Field(default=1, ge=0)
    """Fix attempts per root cause without progress past it; then stop and report."""
    restarts: int = Field(default=6, ge=0)
    """Restarts within `window`, whatever the cause; more is flapping."""
    window: float = Field(default=3600.0, gt=0)
    """Seconds."""
    excluded_nodes: int = Field(default=2, ge=0)
    """Nodes one job may leave out without a person: the blast radius."""
    storm_jobs: int = Field(default=3, ge=2)
    """So many jobs of a cluster failing alike within `storm_window` are one shared cause: a person decides."""
    storm_window: float = Field(default=300.0, gt=0)


class Limits(Fact):
    """How far an action that asks for more may go."""

    memory_factor: float = Field(default=1.5, gt=1)
    memory_bytes: int | None = Field(default=None, gt=0)
    """Never more than this; None leaves it to the scheduler."""
    time_factor: float = Field(default=1.5, gt=1)
    time_limit: float | None = Field(default=None, gt=0)
    """Seconds; never more than this; None leaves it to the scheduler."""


class Teardown(Fact):
    """What happens to rented machines at the end. Without effect on schedulers that rent none."""

    destroy_on_done: bool = False
    destroy_on_fail: bool = False


class Policy(Fact):
    """What a guard may do on its own."""

    preset: Preset = Preset.ASSIST
    allow: tuple[Allow, ...] = ()
    refuse: tuple[ActionKind, ...] = ()
    """Never done and never asked for."""
    budgets: Budgets = Budgets()
    limits: Limits = Limits()
    teardown: Teardown = Teardown()
    approval_deadline: float = Field(default=8 * 3600.0, gt=0)
    """Seconds a question may wait; then the safe answer, refuse, is given."""
    verify_deadline: float = Field(default=3600.0, gt=0)
    """Seconds a restarted job may take to pass the step at which it failed."""
    max_alerts_per_job: int = Field(default=20, ge=0)

    @field_validator("allow", mode="before")
    @classmethod
    def _words_are_lines(cls, lines: object) -> object:
        if not isinstance(lines, list | tuple):
            return lines
        return tuple({"action": line} if isinstance(line, str) else line for line in lines)


def read_policy(table: Mapping[str, Any], where: str = "policy") -> Policy:
    """Read a `[policy]` table. Raises ConfigError that names the field and the nearest valid word."""
    try:
        return Policy.model_validate(dict(table))
    except ValidationError as problem:
        first = problem.errors()[0]
        field = ".".join([where, *(str(part) for part in first["loc"])])
        raise ConfigError(
            field, _explain(first["input"], first["msg"], first["type"]), _remedy(first)
        ) from None


def _explain(value: object, message: str, kind: str) -> str:
    if kind == "extra_forbidden":
        return "there is no such setting"
    if kind == "enum":
        return f"{value!r} is not known"
    return f"{message} (found {value!r})"


def _remedy(error: Mapping[str, Any]) -> str:
    field = next((part for part in reversed(error["loc"]) if isinstance(part, str)), "")
    if error["type"] == "enum":
        word, choices = str(error["input"]), _WORDS.get(field, [])
    elif error["type"] == "extra_forbidden":
        kinds = (Policy, Budgets, Limits, Teardown, Allow)
        word, choices = field, [name for kind in kinds for name in kind.model_fields]
    else:
        return ""
    near = difflib.get_close_matches(word, choices, n=1, cutoff=0.5)
    return f"did you mean {near[0]!r}?" if near else f"known: {', '.join(choices)}" if choices else ""


_ACTIONS = [kind.value for kind in ActionKind if not kind.advice]
_WORDS = {
    "preset": [preset.value for preset in Preset],
    "action": _ACTIONS,
    "refuse": _ACTIONS,
    "faults": [fault.value for fault in FaultClass],
}
"""What may stand in a field that takes one of several words."""
