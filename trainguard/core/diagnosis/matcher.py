"""The whole catalogue as one matcher: literals or whole patterns find the lines, expressions decide."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from trainguard.core.diagnosis.echo import Echo, echo_of
from trainguard.core.diagnosis.exits import PROBES
from trainguard.core.diagnosis.finder import Finder, Store, finder
from trainguard.core.diagnosis.pattern import BOUNDARY, is_common, requirements
from trainguard.core.diagnosis.rule import Catalogue, Near, Rule, Value
from trainguard.core.diagnosis.text import Head
from trainguard.core.evidence import EvidenceKind

_ANCHOR = re.compile(r"(?<![\[\\])\^")
_NUMBER = re.compile(r"[-+]?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?")


@dataclass(frozen=True, slots=True)
class Match:
    """One rule on one line."""

    rule: Rule
    groups: Mapping[str, str]
    echo: Echo | None
    start: int
    end: int
    """Where its words stand in the message."""


@dataclass(frozen=True, slots=True)
class Neighbour:
    """A line that some rule wants near."""

    rule: Rule
    near: Near


@dataclass(slots=True)
class Found:
    """What one line is good for."""

    matches: list[Match]
    neighbours: list[Neighbour]
    probe: re.Match[str] | None = None
    """The end of a process."""


@dataclass(frozen=True)
class Entry:
    """One pattern and what it is for."""

    rule: Rule | None
    """None for a probe."""
    near: Near | None
    pattern: str

    @cached_property
    def also(self) -> tuple[tuple[bytes, ...], ...]:
        """Literals beside those that found the line: one of each is in every line that fits."""
        return tuple(
            tuple(t.strip(BOUNDARY).encode() for t in sorted(s)) for s in requirements(self.pattern)[1:]
        )

    @cached_property
    def loose(self) -> str:
        """The pattern without its anchors to the beginning of the message."""
        return _ANCHOR.sub("", self.pattern)

    def settled(self, healthy: Mapping[str, int]) -> bool:
        """Whether it is a healthy sign that was seen often enough."""
        rule = self.rule
        return (
            rule is not None
            and self.near is None
            and rule.healthy
            and healthy.get(rule.id, 0) >= ENOUGH_SIGNS
        )

    @property
    def key(self) -> tuple[str, int, str]:
        """What makes it the same as another."""
        return (self.rule.id if self.rule else "", id(self.near), self.pattern)


class Matcher:
    """Finds which rules a line fits. Built once per catalogue."""

    def __init__(
        self, catalogue: Catalogue, *, native: bool | None = None, store: Store | None = None
    ) -> None:
        self.catalogue = catalogue
        self._native = native
        self._store = store
        self._compiled: dict[str, re.Pattern[str]] = {}
        self._entries: dict[str, list[Entry]] = {}
        self._by_pattern: dict[str, list[Entry]] = {}
        for rule in (r for r in catalogue.rules if not r.last):
            for pattern in rule.any_of:
                self._add(Entry(rule, None, pattern))
            for near in (rule.near, rule.not_near):
                for pattern in near.any_of if near else ():
                    self._add(Entry(rule, near, pattern))
        for pattern in PROBES:
            self._add(Entry(None, None, pattern))
        self._literals = sorted(self._entries)
        self._patterns = sorted(self._by_pattern, key=lambda pattern: (not is_common(pattern), pattern))
        self._common = sum(is_common(pattern) for pattern in self._patterns)
        self._of_index = [self._entries[literal] for literal in self._literals]
        self._of_index += [self._by_pattern[pattern] for pattern in self._patterns]
        self._by_set: dict[frozenset[int], tuple[Entry, ...]] = {}
        self._vain = 0

    def _add(self, entry: Entry) -> None:
        for literal in requirements(entry.pattern)[0]:
            self._entries.setdefault(literal, []).append(entry)
        self._by_pattern.setdefault(entry.pattern, []).append(entry)

    @cached_property
    def finder(self) -> Finder:
        """Finds literals or patterns; made when first asked for."""
        needed = {t for p in self._patterns[self._common :] for t in requirements(p)[0]}
        return finder(
            self._literals,
            self._patterns,
            common=self._common,
            only_common=set(self._literals) - needed,
            native=self._native,
            store=self._store,
        )

    @cached_property
    def _signs(self) -> list[int]:
        """The indexes that only healthy rules wait for."""
        return [
            index
            for index, entries in enumerate(self._of_index)
            if all(e.rule is not None and e.rule.healthy and e.near is None for e in entries)
        ]

    def settled(self, healthy: Mapping[str, int]) -> frozenset[int]:
        """The indexes that say nothing new: healthy signs that were seen often enough."""
        return frozenset(i for i in self._signs if all(e.settled(healthy) for e in self._of_index[i]))

    def _expression(self, pattern: str) -> re.Pattern[str]:
        found = self._compiled.get(pattern)
        if found is None:
            found = self._compiled[pattern] = re.compile(pattern)
        return found

    def _candidates(self, literals: frozenset[int]) -> tuple[Entry, ...]:
        found = self._by_set.get(literals)
        if found is None:
            entries: dict[tuple[str, int, str], Entry] = {}
            for index in sorted(literals):
                for entry in self._of_index[index]:
                    entries[entry.key] = entry
            found = tuple(entries.values())
            if len(self._by_set) < _MEMO:
                self._by_set[literals] = found
        return found

    def plausible(self, literals: frozenset[int], raw: bytes) -> tuple[Entry, ...]:
        """Those whose every literal is in the line: most lines that hold a common word end here."""
        lower = raw.lower()
        return tuple(
            entry
            for entry in self._candidates(literals)
            if all(any(text in lower for text in texts) for texts in entry.also)
        )

    def in_vain(self) -> None:
        """Count a line that was found for nothing."""
        self._vain += 1

    def sharpen(self) -> None:
        """Have lines found by whole patterns, once too many were found for nothing.

        It changes how lines are found, never which.
        """
        if self._vain > _PATIENCE:
            self._vain = 0
            self.finder.sharpen()

    def fitting(self, entries: Sequence[Entry], text: str) -> tuple[Entry, ...]:
        """Those that fit somewhere in the line, wherever its message begins."""
        return tuple(entry for entry in entries if self._expression(entry.loose).search(text) is not None)

    def match(
        self, entries: Sequence[Entry], head: Head, text: str, before: Callable[[], str], kind: EvidenceKind
    ) -> Found:
        """The rules that fit a line, those that wanted such a line near, and what it tells of an exit."""
        matches: dict[str, Match] = {}
        found = Found([], [])
        for entry in entries:
            rule = entry.rule
            if rule is None:
                found.probe = found.probe or self._search(entry.pattern, head, text)
            elif entry.near is not None:
                if self._search(entry.pattern, head, text) is not None:
                    found.neighbours.append(Neighbour(rule, entry.near))
            elif kind in rule.sources and (rule.id not in matches or matches[rule.id].echo is not None):
                match = self._match(rule, entry.pattern, head, text, before)
                if match is not None:
                    matches[rule.id] = match
        found.matches = _explained(list(matches.values()))
        return found

    def _search(self, pattern: str, head: Head, text: str) -> re.Match[str] | None:
        expression = self._expression(pattern)
        found = expression.search(head.body)
        if found is None and len(head.body) != len(text):
            found = expression.search(text)
        return found

    def _match(
        self, rule: Rule, pattern: str, head: Head, text: str, before: Callable[[], str]
    ) -> Match | None:
        found = self._search(pattern, head, text)
        if found is None or (rule.value is not None and not _holds(rule.value, found)):
            return None
        if any(self._expression(p).search(text) for p in rule.none_of):
            return None
        shift = 0 if found.string is head.body else len(text) - len(head.body)
        start, end = max(0, found.start() - shift), max(0, found.end() - shift)
        groups = {name: value for name, value in found.groupdict().items() if value}
        return Match(rule, groups, echo_of(head.body, start, end, before()), start, end)


ENOUGH_SIGNS = 64
"""Lines that fit a healthy rule, after which more of them say nothing."""
_PATIENCE = 100_000
"""Lines looked at in vain before all patterns are compiled. To compile takes about as long as so many lines,
so that no log takes twice as long as it had to; it is done once, and may be kept."""
_MEMO = 4096
"""Sets of literals whose candidate rules are kept."""


def _explained(matches: list[Match]) -> list[Match]:
    """Without what healthy rules explain, and without weak rules where a better one fits the line."""
    healthy = [match for match in matches if match.rule.healthy]
    if any(match.rule.vetoes == "line" for match in healthy):
        return healthy
    faults = [
        match
        for match in matches
        if not match.rule.healthy and not any(h.start < match.end and match.start < h.end for h in healthy)
    ]
    strong = [match for match in faults if not match.rule.weak]
    return healthy + (strong or faults)


def _holds(value: Value, found: re.Match[str]) -> bool:
    word = found[value.group]
    if word is None:
        return False
    if value.equals and word.strip().lower() in {v.lower() for v in value.equals}:
        return True
    number = _number(word)
    if number is None:
        return False
    if value.finite is not None and math.isfinite(number) is value.finite:
        return True
    if value.above is not None and number > value.above:
        return True
    return value.below is not None and number < value.below


def _number(word: str) -> float | None:
    text = word.strip().lower().replace(",", "")
    if "nan" in text:
        return math.nan
    if "inf" in text:
        return math.inf
    found = _NUMBER.search(text)
    return float(found.group()) if found else None
