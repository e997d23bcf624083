"""What a log says last in words that no rule knows: the general words of a failure still tell its kind."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

from trainguard.core.diagnosis.candidate import Candidate
from trainguard.core.diagnosis.echo import echo_of
from trainguard.core.diagnosis.rule import Catalogue, Rule
from trainguard.core.diagnosis.scan import Hit, Scanned
from trainguard.core.diagnosis.text import Head, clean, head
from trainguard.core.evidence import EvidenceKind
from trainguard.core.verdict import FaultClass

_LINES = 200
"""Lines from the end of a stream that are looked at."""
CALM = re.compile(
    r"(?i)\b(?:INFO|DEBUG|NOTICE|TRACE|WARN(?:ING)?)\b|(?:^|\s)Normal {2,}|^\W{0,3}[IWD] ?\d{4} |\[[IWD]\d{3,4} "
    r"|[:=]\s{0,3}(?:[0.]{1,4}|0x0+|No|None|N/A|Not Active|false|OK|PASS|Disabled|Enabled)\s{0,3}$"
    r"|\b(?:no|zero|without|0) (?:\S{1,20} ){0,3}(?:errors?|faults?|failures?|problems?|issues?|violations?)\b"
    r"|\bcorrected\b|falling back|fall back|\bignor(?:ed|ing)\b|\bskipp(?:ed|ing)\b|retry|deprecated|\boptional\b"
)
"""Lines that say of themselves that they tell of no failure: by their level, a zero, a way around it."""
_GRAVE = re.compile(
    r"(?i)\bfatal|\bcrit(?:ical)?\b|panic|emerg|\bdead\b|unrecover|uncorrect|unhealthy|not healthy|shut ?down|\bhung\b|"
    r"Warning {2,}|\bfailed\b.{0,20}$|violation"
)
"""The system prints much that failed in no way that matters: of its lines only such count."""
_MEASURED = re.compile(r"[:=]\s{0,3}[-+]?\d[\d.,]*(?:\s?\w{1,3})?\s{0,3}$")
"""A line of a listing: a name and its number."""
_JOBS_WORDS = frozenset({EvidenceKind.LOG, EvidenceKind.STACKS})


def last_words(scanned: Sequence[Scanned], catalogue: Catalogue) -> list[Candidate]:
    """Candidates from the rules for last words, in the lines after each stream's last progress."""
    rules = sorted((rule for rule in catalogue.rules if rule.last), key=lambda rule: rule.rank)
    healthy = [rule for rule in catalogue.rules if rule.healthy and rule.vetoes == "line"]
    found: dict[str, list[Hit]] = {}
    for one in scanned if rules else ():
        for number, text, line, before in _lines(one):
            rule = _fitting(rules, one, line, before)
            if rule is not None and not any(_fits(h, line.body) or _fits(h, text) for h in healthy):
                found.setdefault(rule.id, []).append(_hit(rule, one, number, text, line))
    return [Candidate(catalogue.by_id[name], hits, count=len(hits)) for name, hits in found.items()]


def _lines(one: Scanned) -> Iterator[tuple[int, str, Head, str]]:
    """Number, text, prefixes and message before, of each late line that may speak of a failure."""
    raws = one.tail.split(b"\n")
    first = one.lines - len(raws) + 1
    well = max((p.line for p in one.progress), default=0)
    well = max([well, *(h.line for h in one.hits() if h.rule.healthy and not h.rule.survivable)])
    before = ""
    for number, raw in list(enumerate(raws, start=first))[-_LINES:]:
        if number <= well or not raw.strip():
            continue
        text = clean(raw[:2000])
        line = head(text)
        system = one.stream.kind not in _JOBS_WORDS
        if CALM.search(text) is None and (not system or _grave(text)):
            yield number, text, line, before
        before = line.body


def _grave(text: str) -> bool:
    return _GRAVE.search(text) is not None and _MEASURED.search(text) is None


def _fitting(rules: Iterable[Rule], one: Scanned, line: Head, before: str) -> Rule | None:
    """The first of the rules that a line fits."""
    for rule in rules:
        if one.stream.kind not in rule.sources or not _fits(rule, line.body):
            continue
        found = next(m for p in rule.patterns if (m := p.search(line.body)) is not None)
        if echo_of(line.body, found.start(), found.end(), before) is None:
            return rule
    return None


def _fits(rule: Rule, text: str) -> bool:
    return any(p.search(text) for p in rule.patterns) and not any(p.search(text) for p in rule.excluded)


def _hit(rule: Rule, one: Scanned, number: int, text: str, line: Head) -> Hit:
    return Hit(
        rule,
        one.index,
        number,
        text,
        line.rank,
        line.node,
        line.stamp,
        line.kernel,
        {},
        None,
        one.stream.kind,
    )


_TOLD_BY_PROGRAMS = frozenset(
    {
        FaultClass.GPU_OOM,
        FaultClass.HOST_OOM,
        FaultClass.GPU_HARDWARE,
        FaultClass.CHECKPOINT_CORRUPTION,
        FaultClass.NUMERICAL,
        FaultClass.NCCL_COMM,
        FaultClass.CONFIG_PERMISSION,
        FaultClass.DEPENDENCY,
        FaultClass.DATA,
        FaultClass.NETWORK_EXTERNAL,
    }
)
"""What a program's exception may speak of with some right; of nodes and queues it knows nothing."""


def words_of(root: Candidate, catalogue: Catalogue) -> Candidate | None:
    """What the words of an exception of the most general kind tell of its cause; None where they do not."""
    rules = sorted((rule for rule in catalogue.rules if rule.last), key=lambda rule: rule.rank)
    for hit in root.hits:
        body = head(hit.text).body
        for rule in rules:
            if rule.fault in _TOLD_BY_PROGRAMS and _fits(rule, body):
                return Candidate(rule, [hit], count=1, when=root.when, unlike=root.unlike)
    return None
