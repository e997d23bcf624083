"""One row of the fault catalogue, and the catalogue itself.

A row says which lines mean which fault. It is data: it can be wrong, it can't do anything.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Literal

from pydantic import ConfigDict, Field, field_validator, model_validator

from trainguard.core.action import ActionKind
from trainguard.core.diagnosis.pattern import PatternError, check
from trainguard.core.evidence import EvidenceKind
from trainguard.core.fact import Fact
from trainguard.core.verdict import FaultClass

if TYPE_CHECKING:
    from trainguard.core.diagnosis.finder import Store
    from trainguard.core.diagnosis.matcher import Matcher

_SCOPES = frozenset({"job", "node", "cluster", "workspace", "code", "data", "money"})


def _searched(patterns: tuple[str, ...]) -> tuple[str, ...]:
    return _checked(patterns, searched=True)


def _excluding(patterns: tuple[str, ...]) -> tuple[str, ...]:
    return _checked(patterns, searched=False)


def _checked(patterns: tuple[str, ...], *, searched: bool) -> tuple[str, ...]:
    for pattern in patterns:
        try:
            check(pattern, searched=searched)
        except PatternError as error:
            raise ValueError(str(error)) from error
    return patterns


class _Row(Fact):
    """A part of a row. Without docstrings as descriptions: reading them back takes longer than the catalogue."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=False)


class Near(_Row):
    """Another line that must be close by for the rule to hold."""

    any_of: tuple[str, ...] = Field(min_length=1)
    within: int = Field(default=20, ge=0, le=1000)
    """Lines before or after."""

    _patterns = field_validator("any_of")(_searched)


class Value(_Row):
    """What the number in a named group must be. One comparison that holds is enough."""

    group: str
    above: float | None = None
    below: float | None = None
    equals: tuple[str, ...] = ()
    """Words, compared without case."""
    finite: bool | None = None
    """False asks for NaN or an infinity."""

    @model_validator(mode="after")
    def _compares(self) -> Value:
        if self.above is None and self.below is None and not self.equals and self.finite is None:
            raise ValueError("value: needs above, below, equals or finite")
        return self


class FactsMatch(_Row):
    """What the scheduler itself says. Every field that is given must hold; within a list one is enough."""

    oom_killed: bool | None = None
    exit_code: tuple[int, ...] = ()
    exit_signal: tuple[int, ...] = ()
    native: tuple[str, ...] = ()
    """The scheduler's own words (`NODE_FAIL`), compared without case."""

    @model_validator(mode="after")
    def _says_something(self) -> FactsMatch:
        if self.oom_killed is None and not (self.exit_code or self.exit_signal or self.native):
            raise ValueError("facts: needs oom_killed, exit_code, exit_signal or native")
        return self


class Rule(_Row):
    """One condition: how it shows, what it means, what fits."""

    id: str = Field(pattern=r"^[A-Z][A-Z0-9]*-[0-9]{3}$")
    name: str = Field(pattern=r"^[a-z0-9]+(-[a-z0-9]+)*$")
    fault: FaultClass
    rank: int = Field(ge=0, le=100)
    """Nearer to the root is lower. 80 and more: a symptom of something else."""
    scope: str
    transient: bool | None
    cascade: bool = False
    """A consequence of a failure elsewhere: it is the root only where nothing else is found."""
    survivable: bool = True
    """Training progress after the line shows that it was survived. False for a line that is final
    whatever is printed after it (the scheduler's own words, NaN losses, a stall)."""
    weak: bool = False
    """Too common to say anything beside other findings (a bare exit code): loses against any other root."""
    last: bool = False
    """Too general to be looked for in every line: tried on the last lines alone, where no other rule is the root."""
    vague: bool = False
    """Says what kind of exception it was and nothing of its cause: its words are tried by the rules for last words."""
    vetoes: Literal["line", "words"] = "line"
    """What a healthy rule explains: the whole line, or only the words that it fits (`0 errors`)."""
    sources: tuple[EvidenceKind, ...] = tuple(EvidenceKind)
    any_of: tuple[str, ...] = ()
    none_of: tuple[str, ...] = ()
    near: Near | None = None
    not_near: Near | None = None
    facts: FactsMatch | None = None
    """Holds on its own; together with `any_of`, either is enough."""
    value: Value | None = None
    detector: Literal["loss_divergence"] | None = None
    """A look at the whole series of a stream, in place of patterns."""
    at_least: int = Field(default=1, ge=1)
    """How many lines must match."""
    explain: str = Field(min_length=10)
    actions: tuple[ActionKind, ...] = ()
    references: tuple[str, ...] = ()
    hits: tuple[str, ...] = ()
    misses: tuple[str, ...] = ()

    _searched_for = field_validator("any_of")(_searched)
    _excluded = field_validator("none_of")(_excluding)

    @field_validator("scope")
    @classmethod
    def _known_scope(cls, scope: str) -> str:
        if scope not in _SCOPES:
            raise ValueError(f"scope must be one of {', '.join(sorted(_SCOPES))}")
        return scope

    @model_validator(mode="after")
    def _whole(self) -> Rule:
        if not self.any_of and self.facts is None and self.detector is None:
            raise ValueError("needs any_of, facts or detector")
        if self.fault is FaultClass.UNKNOWN:
            raise ValueError("no rule can find `unknown`")
        if self.value is not None and not all(f"(?P<{self.value.group}>" in p for p in self.any_of):
            raise ValueError(f"every pattern needs the group {self.value.group!r} that `value` compares")
        if self.fault is not FaultClass.HEALTHY and not self.actions:
            raise ValueError("a fault needs at least one action")
        return self

    @property
    def healthy(self) -> bool:
        """Whether it explains a look-alike: what it matches is no fault."""
        return self.fault is FaultClass.HEALTHY

    @property
    def family(self) -> str:
        """The part of the id before the number."""
        return self.id.rpartition("-")[0]

    @cached_property
    def patterns(self) -> tuple[re.Pattern[str], ...]:
        """`any_of`, compiled when first asked for."""
        return tuple(re.compile(p) for p in self.any_of)

    @cached_property
    def excluded(self) -> tuple[re.Pattern[str], ...]:
        """`none_of`, compiled."""
        return tuple(re.compile(p) for p in self.none_of)


class Catalogue:
    """All rules, by id. Two rules with one id are an error of whoever loads them."""

    def __init__(self, rules: Iterable[Rule], store: Store | None = None) -> None:
        self._store = store
        by_id: dict[str, Rule] = {}
        for rule in rules:
            if rule.id in by_id:
                raise ValueError(f"two rules have the id {rule.id}")
            by_id[rule.id] = rule
        self._by_id = dict(sorted(by_id.items()))

    @property
    def rules(self) -> tuple[Rule, ...]:
        """In the order of their ids."""
        return tuple(self._by_id.values())

    @property
    def by_id(self) -> Mapping[str, Rule]:
        """Look-up by id."""
        return self._by_id

    @cached_property
    def matcher(self) -> Matcher:
        """All patterns as one matcher; built when first asked for."""
        from trainguard.core.diagnosis.matcher import Matcher  # it needs the rules above

        return Matcher(self, store=self._store)

    def __len__(self) -> int:
        return len(self._by_id)
