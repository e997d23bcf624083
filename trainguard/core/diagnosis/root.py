"""Root against cascade: which of the candidates began it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from trainguard.core.diagnosis.candidate import Candidate
from trainguard.core.observation import Liveness, Observation
from trainguard.core.verdict import FaultClass

_BAND = 20
"""Catalogue ranks within a band are equally near to the root: there the earlier one wins."""
_HEARSAY_RANK = 65
"""The kernel's words in a text that the job could write itself are no nearer than this."""
_UNLIKE_RANK = 85
"""What no program prints in this way yields to whatever one does."""
_CONSEQUENCE = 2
"""The tier of what follows from something else."""
_CRASH_LINES = 60
_CRASH_SECONDS = 2.0


@dataclass(slots=True)
class Ranking:
    """What was chosen and what was not."""

    root: Candidate | None = None
    consequences: list[Candidate] = field(default_factory=list)
    others: list[tuple[Candidate, str]] = field(default_factory=list)
    """Runners-up, each with why it is not the root."""
    healthy: list[Candidate] = field(default_factory=list)


def rank(candidates: Sequence[Candidate], observation: Observation | None) -> Ranking:
    """Choose the root among all candidates."""
    ranking = Ranking(healthy=[c for c in candidates if c.rule.healthy and not c.echo])
    faults = [c for c in candidates if not c.rule.healthy]
    standing = sorted((c for c in faults if not c.survived and not c.echo), key=_order)
    set_aside = [c for c in faults if c.survived or c.echo]
    doubted = _doubted(standing, observation)
    standing = [c for c in standing if c not in doubted]
    if not standing:
        standing, set_aside = _last_resort(set_aside, observation, bool(ranking.healthy))
    if standing:
        ranking.root = _nearest(standing)
        for other in standing:
            if other is not ranking.root:
                _place(ranking, other)
    ranking.others += [(c, _DENIED) for c in doubted]
    ranking.others += [(c, _why_aside(c)) for c in sorted(set_aside, key=_order)]
    return ranking


_DENIED = "the scheduler says something else, and only the job's own log says this"


def _doubted(standing: Sequence[Candidate], observation: Observation | None) -> list[Candidate]:
    """What the job's log claims against the scheduler, where something else can be the root."""
    if observation is None:
        return []
    doubted = [c for c in standing if _denied(c, observation)]
    sound = any(c.hits and c.tier < _CONSEQUENCE and c not in doubted for c in standing)
    return doubted if sound else []


def _denied(candidate: Candidate, observation: Observation) -> bool:
    if candidate.fact or not candidate.from_the_job:
        return False
    fault = candidate.rule.fault
    unseen = fault is FaultClass.HOST_OOM and candidate.hearsay and observation.oom_killed is False
    return unseen or _ends_otherwise(fault, observation.native)


def _order(candidate: Candidate) -> tuple[bool, int, int, bool, float, int, int, int, str]:
    rule = candidate.rule
    nearness = _nearness(candidate)
    first = candidate.first
    return (
        candidate.says_only_that,
        candidate.tier,
        nearness // _BAND,
        candidate.when is None,
        candidate.when or 0.0,
        first.stream if first else 0,
        first.line if first else 0,
        nearness,
        rule.id,
    )


def _nearest(standing: list[Candidate]) -> Candidate:
    """Among the lines of one crash the order means nothing: there the rule nearest to the root wins."""
    first = standing[0]
    together = [c for c in standing if _same_band(c, first) and _same_crash(c, first)]
    return min(together, key=lambda c: (_nearness(c), standing.index(c)))


def _same_band(one: Candidate, other: Candidate) -> bool:
    return one.tier == other.tier and _nearness(one) // _BAND == _nearness(other) // _BAND


def _same_crash(one: Candidate, other: Candidate) -> bool:
    first, second = one.first, other.first
    if first is None or second is None:
        return first is second
    if (
        first.stream != second.stream
        or first.rank != second.rank
        or abs(first.line - second.line) > _CRASH_LINES
    ):
        return False
    return one.when is None or other.when is None or abs(one.when - other.when) <= _CRASH_SECONDS


def _nearness(candidate: Candidate) -> int:
    if candidate.unlike:
        return max(candidate.rule.rank, _UNLIKE_RANK)
    return max(candidate.rule.rank, _HEARSAY_RANK) if candidate.hearsay else candidate.rule.rank


def _place(ranking: Ranking, other: Candidate) -> None:
    root = ranking.root
    assert root is not None
    if other.tier > root.tier or other.rule.cascade:
        ranking.consequences.append(other)
    elif other.rule.rank // _BAND > root.rule.rank // _BAND:
        ranking.others.append((other, f"{root.rule.name} is nearer to the root"))
    elif root.when is not None and other.when is not None and other.when > root.when:
        ranking.others.append((other, f"came {other.when - root.when:.0f} s after {root.rule.name}"))
    else:
        ranking.others.append((other, f"came after {root.rule.name}"))


def _why_aside(candidate: Candidate) -> str:
    if candidate.echo:
        return "the line shows source code, not what happened"
    return "the training went on after it"


def _last_resort(
    aside: list[Candidate], observation: Observation | None, healthy: bool
) -> tuple[list[Candidate], list[Candidate]]:
    """What was set aside stands after all where something failed and nothing else explains it."""
    failed = observation is not None and observation.liveness is Liveness.FAILED
    if failed:
        chosen = sorted((c for c in aside if c.survived or c.echo), key=_order)
    elif healthy or any(c.survived for c in aside):
        chosen = []
    else:
        chosen = sorted((c for c in aside if c.echo), key=_order)
    return chosen, [c for c in aside if c not in chosen]


_ENDS = {
    FaultClass.TIME_LIMIT: re.compile(r"TIME|DEADLINE|LIMIT|CANCEL"),
    FaultClass.PREEMPTION: re.compile(r"PREEMPT|EVICT|SPOT|INTERRUPT|CANCEL|TERM|STOP|SHUTDOWN|DISRUPT"),
    FaultClass.NODE_FAILURE: re.compile(r"NODE|LOST|BOOT|UNREACH|UNKNOWN"),
}
"""Ends that a scheduler has a word for: what it would say."""


def _ends_otherwise(fault: FaultClass, native: str) -> bool:
    """Whether a log claims an end of which the scheduler itself says something else."""
    words = _ENDS.get(fault)
    return bool(native) and words is not None and words.search(native.upper()) is None


def confidence(ranking: Ranking, observation: Observation | None) -> float:
    """How far the root can be trusted, 0 to 1."""
    root = ranking.root
    if root is None:
        return 0.0
    value = (0.92, 0.92, 0.88, 0.78, 0.6)[min(root.rule.rank // _BAND, 4)]
    value = min(value, (1.0, 0.65, 0.55)[root.tier])
    rivals = {
        c.rule.fault
        for c, why in ranking.others
        if not (c.survived or c.echo or why == _DENIED) and "nearer" not in why
    }
    if rivals - {root.rule.fault}:
        value -= 0.15
    if root.hearsay or root.unlike or root.echo or root.survived:
        value = min(value, 0.45)
    if root.rule.last:
        value = min(value, 0.4)
    if observation is not None:
        value = _joined(value, root, observation)
    return round(max(0.1, min(value, 0.97)), 2)


def _joined(value: float, root: Candidate, observation: Observation) -> float:
    """Scheduler facts that agree raise, that disagree lower."""
    if observation.liveness is Liveness.SUCCEEDED:
        return value * 0.5
    if observation.oom_killed is not None:
        agrees = observation.oom_killed is (root.rule.fault is FaultClass.HOST_OOM)
        if observation.oom_killed or root.rule.fault is FaultClass.HOST_OOM:
            value = value + 0.05 if agrees else value * 0.7
    if not root.fact and _ends_otherwise(root.rule.fault, observation.native):
        value = min(value, 0.45)
    if root.rule.fault is FaultClass.NODE_FAILURE and observation.bad_nodes:
        value += 0.05
    return value
