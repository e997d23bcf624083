"""What is wrong with a catalogue though it can be read."""

from __future__ import annotations

import re
from collections.abc import Iterator

from trainguard.core.diagnosis.engine import diagnose
from trainguard.core.diagnosis.rule import Catalogue, Rule
from trainguard.core.diagnosis.stream import Stream
from trainguard.core.observation import LogSource

_GREEDY = re.compile(r"(?<!\\)\.[*+](?!\?)")


def problems(catalogue: Catalogue) -> Iterator[str]:
    """One sentence a problem, in the order of the ids."""
    names: dict[str, str] = {}
    for rule in catalogue.rules:
        if rule.name in names:
            yield f"{rule.id}: the name {rule.name} is {names[rule.name]}'s"
        names[rule.name] = rule.id
        yield from _of(rule, catalogue)


def _of(rule: Rule, catalogue: Catalogue) -> Iterator[str]:
    for pattern in rule.any_of:
        if _GREEDY.search(pattern):
            yield f"{rule.id}: {pattern!r} holds an unbounded `.*`: say how far, as in `.{{0,80}}`"
    if rule.any_of and not rule.hits:
        yield f"{rule.id}: has no sample in `hits`"
    for sample in rule.hits:
        said = verdict(rule, sample, catalogue)
        if said != rule.id:
            yield f"{rule.id}: the hit {sample.strip()[:80]!r} is diagnosed as {said or 'nothing'}"
    for sample in rule.misses:
        if verdict(rule, sample, catalogue) == rule.id:
            yield f"{rule.id}: the miss {sample.strip()[:80]!r} is diagnosed as the rule"


def verdict(rule: Rule, sample: str, catalogue: Catalogue) -> str:
    """The id of the rule that the whole catalogue finds in a sample, read as the rule's first source."""
    stream = Stream(LogSource(name="sample"), rule.sources[0], (sample,))
    return diagnose((stream,), catalogue).rule
