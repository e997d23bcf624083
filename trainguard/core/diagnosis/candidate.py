"""Rules that fitted lines, with what speaks for and against each as the root."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice

from trainguard.core.diagnosis.divergence import diverged
from trainguard.core.diagnosis.echo import Echo
from trainguard.core.diagnosis.rule import Catalogue, FactsMatch, Rule
from trainguard.core.diagnosis.scan import Hit, Scanned
from trainguard.core.diagnosis.steps import Point, advanced
from trainguard.core.diagnosis.timeline import Timeline
from trainguard.core.evidence import EvidenceKind
from trainguard.core.observation import Liveness, Observation
from trainguard.core.verdict import FaultClass

_STEPS_THAT_PROVE = 3
"""Steps after a scare line that show it was survived: fewer may be another rank's, or a late buffer."""
SYMPTOM = 80
"""Catalogue ranks from here on are symptoms."""


@dataclass(slots=True)
class Candidate:
    """One rule, its lines, and where it stands."""

    rule: Rule
    hits: list[Hit] = field(default_factory=list)
    """Those that count, the earliest first."""
    count: int = 0
    survived: bool = False
    echo: bool = False
    fact: str = ""
    """What the scheduler says, where it is that which fits."""
    when: float | None = None
    unlike: bool = False
    """None of its lines is as a program prints it, in logs that are known to be whole."""

    @property
    def first(self) -> Hit | None:
        """The earliest line."""
        return self.hits[0] if self.hits else None

    @property
    def tier(self) -> int:
        """0 may be a root, 1 is too common to stand beside one, 2 follows from one."""
        if self.rule.cascade:
            return 2
        return 1 if self.rule.weak or self.rule.rank >= SYMPTOM or self.unlike else 0

    @property
    def from_the_job(self) -> bool:
        """Whether all its lines stand in a text that the job itself could write."""
        return bool(self.hits) and all(hit.stream_kind in _JOBS_WORDS for hit in self.hits)

    @property
    def says_only_that(self) -> bool:
        """Whether it says only that something failed, as a bare exit code does, and nothing of what."""
        return self.rule.cascade and self.rule.weak and self.rule.fault is FaultClass.CODE_BUG

    @property
    def hearsay(self) -> bool:
        """Whether all its lines are the kernel's words in a text that the job itself could write."""
        return bool(self.hits) and all(_hearsay(hit) for hit in self.hits)


_JOBS_WORDS = frozenset({EvidenceKind.LOG, EvidenceKind.STACKS})
"""What the job itself can write."""
_KERNEL_WORDS = re.compile(
    r"NVRM: |\bSXid\b|\bEDAC\b|Kernel panic|Machine check|\bmce: |oom-kill:|oom-killer: |ut of memory: Kill|"
    r"oom_reaper|Hardware Error\]|mlx5_core |nvidia-nvswitch|I/O error, dev |EXT4-fs error|LustreError"
)


def _hearsay(hit: Hit) -> bool:
    if hit.stream_kind not in _JOBS_WORDS:
        return False
    return hit.kernel or _KERNEL_WORDS.search(hit.text) is not None


def gather(
    scanned: Sequence[Scanned], catalogue: Catalogue, timeline: Timeline, observation: Observation | None
) -> list[Candidate]:
    """All candidates, in no order that matters."""
    by_rule: dict[str, list[Hit]] = {}
    for one in scanned:
        for hit in one.hits():
            if _in_place(hit, one):
                by_rule.setdefault(hit.rule.id, []).append(hit)
    found = []
    for name, hits in by_rule.items():
        rule = catalogue.by_id[name]
        count = sum(one.count(name) for one in scanned)
        found += _judged(rule, hits, count, scanned, timeline)
    for candidate in found if observation is not None else ():
        candidate.unlike = candidate.from_the_job and all(hit.unlike for hit in candidate.hits)
    found += _by_series(catalogue, scanned, timeline)
    return found + _by_facts(catalogue, observation, {c.rule.id for c in found})


def _in_place(hit: Hit, one: Scanned) -> bool:
    rule = hit.rule
    if rule.near is not None and not one.close_by(hit, rule.near):
        return False
    return rule.not_near is None or not one.close_by(hit, rule.not_near)


def _judged(
    rule: Rule, hits: list[Hit], count: int, scanned: Sequence[Scanned], timeline: Timeline
) -> list[Candidate]:
    """The rule as it stands, and where no line stands, as it would."""
    real = [hit for hit in hits if hit.echo is None]
    if real and count < rule.at_least:
        return []
    standing = [
        hit for hit in real if not (rule.survivable and _survived(hit, scanned[hit.stream], timeline))
    ]
    if standing:
        return [_candidate(rule, standing, count, timeline)]
    if real:
        candidate = _candidate(rule, real, count, timeline)
        candidate.survived = True
        return [candidate]
    framed = [hit for hit in hits if hit.echo is Echo.FRAME]
    if framed:
        candidate = _candidate(rule, framed, len(framed), timeline)
        candidate.echo = True
        return [candidate]
    return []


def _candidate(rule: Rule, hits: list[Hit], count: int, timeline: Timeline) -> Candidate:
    timed = [(timeline.when(hit), hit) for hit in hits]
    timed.sort(key=lambda pair: (pair[0] is None, pair[0] or 0.0, pair[1].stream, pair[1].line))
    return Candidate(rule, [hit for _, hit in timed], max(count, 1), when=timed[0][0])


def _survived(hit: Hit, one: Scanned, timeline: Timeline) -> bool:
    """Points are looked at one by one: a few steps are enough, and there may be thousands."""
    if advanced((p for p in _after(hit, one, timeline) if p.rank == hit.rank), _STEPS_THAT_PROVE):
        return True
    if any(p.rank == hit.rank for p in _after(hit, one, timeline)):
        return False
    return advanced(_after(hit, one, timeline), _STEPS_THAT_PROVE)


def _after(hit: Hit, one: Scanned, timeline: Timeline) -> Iterator[Point]:
    """By the stamps too, where both have one: output that was kept back in a buffer proves nothing."""
    seen = timeline.wall(hit.stamp)
    for point in islice(one.progress, bisect_right(one.progress, hit.line, key=_line), None):
        said = timeline.wall(point.stamp)
        if said is None or seen is None or said >= seen - 1.0:
            yield point


def _line(point: Point) -> int:
    return point.line


def _by_series(catalogue: Catalogue, scanned: Sequence[Scanned], timeline: Timeline) -> list[Candidate]:
    found = []
    for rule in (r for r in catalogue.rules if r.detector is not None):
        hits = [
            _series_hit(rule, one, point) for one in scanned if (point := diverged(one.progress)) is not None
        ]
        if hits:
            found.append(_candidate(rule, hits, len(hits), timeline))
    return found


def _series_hit(rule: Rule, one: Scanned, point: Point) -> Hit:
    return Hit(
        rule, one.index, point.line, point.text, point.rank, "", point.stamp, False, {}, None, one.stream.kind
    )


def _by_facts(catalogue: Catalogue, observation: Observation | None, known: set[str]) -> list[Candidate]:
    if observation is None or observation.liveness is Liveness.SUCCEEDED:
        return []
    found = []
    for rule in catalogue.rules:
        said = "" if rule.facts is None else fits(rule.facts, observation)
        if said and rule.id not in known:
            found.append(Candidate(rule, count=1, fact=said))
    return found


def fits(facts: FactsMatch, observation: Observation) -> str:
    """What the scheduler says that fits all of the facts; empty where one does not."""
    said = []
    if facts.oom_killed is not None:
        if observation.oom_killed is not facts.oom_killed:
            return ""
        said.append("OOM-killed")
    for wanted, actual, label in (
        (facts.exit_code, observation.exit_code, "exit code"),
        (facts.exit_signal, observation.exit_signal, "signal"),
    ):
        if wanted:
            if actual not in wanted:
                return ""
            said.append(f"{label} {actual}")
    if facts.native:
        if observation.native.lower() not in {word.lower() for word in facts.native}:
            return ""
        said.append(observation.native)
    return ", ".join(said)
