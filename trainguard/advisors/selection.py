"""Chooses which lines of the evidence a model sees: the most telling first, in the order of the log."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence

from trainguard.core.evidence import Citation, Evidence, EvidenceKind
from trainguard.core.fact import Fact
from trainguard.core.masking import Masker
from trainguard.core.message_formats import clean
from trainguard.core.verdict import Diagnosis

LINE_LIMIT = 400
"""Characters of one line."""
_CONTEXT = 3
_LAST_LINES = 40
_CONSIDERED = 20_000
"""Lines of one source that are looked at, from its end."""
_TROUBLE = re.compile(
    r"error|exception|traceback|fatal|fail|abort|kill|signal|sig[a-z]{3,4}\b|xid|nccl|cuda|oom|out of memory|timeout|"
    r"timed out|refused|denied|no space|corrupt|not found|cannot|can't|unable|reset by peer|panic|nan\b|evict|preempt",
    re.IGNORECASE,
)
_VARIABLE = re.compile(r"[0-9a-f]{6,}|[0-9]+", re.IGNORECASE)
_OFFICIAL = frozenset(
    {EvidenceKind.KERNEL, EvidenceKind.EVENTS, EvidenceKind.STATUS, EvidenceKind.ACCOUNTING}
)


class ShownLine(Fact):
    """One line as it may leave: masked, its controls visible, cut."""

    source: int
    index: int
    """Its place in the source, from 0."""
    text: str
    citation: Citation


def select_lines(
    evidence: Sequence[Evidence], diagnosis: Diagnosis, masker: Masker, budget: int
) -> tuple[ShownLine, ...]:
    """Choose lines worth at most `budget` estimated tokens."""
    candidates: list[tuple[float, ShownLine]] = []
    for number, item in enumerate(evidence):
        lines = _masked_lines(item, masker)
        scores = _scores(item, lines, _cited_texts(diagnosis, masker))
        candidates += [
            (scores[index], _shown(number, item, index, lines[index], masker)) for index in sorted(scores)
        ]
    chosen: list[ShownLine] = []
    left = budget
    for _, line in sorted(candidates, key=lambda one: (-one[0], one[1].source, one[1].index)):
        cost = tokens_of(line.text) + 8
        if cost <= left:
            chosen.append(line)
            left -= cost
    return tuple(sorted(chosen, key=lambda line: (line.source, line.index)))


def tokens_of(text: str) -> int:
    """Estimate tokens with care: logs hold many digits and symbols, about two and a half bytes to a token."""
    return len(text.encode("utf-8", "replace")) * 2 // 5 + 1


def _masked_lines(item: Evidence, masker: Masker) -> list[str]:
    stream = f"{item.kind}:{item.source.name}:{item.source.rank}:{item.source.node}"
    return masker.mask(item.text, stream=stream).split("\n")


def _cited_texts(diagnosis: Diagnosis, masker: Masker) -> frozenset[str]:
    findings = (*diagnosis.runners_up, *diagnosis.consequences)
    cited: Iterable[Citation] = (*diagnosis.citations, *(finding.citation for finding in findings))
    return frozenset(masker.mask(line.text).strip() for line in cited if line.text.strip())


def _scores(item: Evidence, lines: list[str], cited: frozenset[str]) -> dict[int, float]:
    """Weigh lines by what they are; those without weight are left out."""
    first = max(0, len(lines) - _CONSIDERED)
    scores: dict[int, float] = {}
    seen: Counter[str] = Counter()
    official = 20.0 if item.kind in _OFFICIAL else 0.0
    for index in range(first, len(lines)):
        line = lines[index]
        if not line.strip():
            continue
        score = _last(index, len(lines)) + official
        if line.strip() in cited:
            score += 200
        elif _TROUBLE.search(line[:LINE_LIMIT]):
            score += 60
        if not score:
            continue
        shape = _VARIABLE.sub("0", line[:LINE_LIMIT])
        seen[shape] += 1
        scores[index] = score / seen[shape]
    return _with_context(scores, lines)


def _last(index: int, count: int) -> float:
    """The end of a log tells most."""
    return max(0.0, 40.0 - (count - 1 - index) * 40.0 / _LAST_LINES)


def _with_context(scores: dict[int, float], lines: list[str]) -> dict[int, float]:
    """Give the neighbours of the most telling lines a share of their weight."""
    weighed = dict(scores)
    for index, score in scores.items():
        if score < 60:
            continue
        for near in range(max(0, index - _CONTEXT), min(len(lines), index + _CONTEXT + 1)):
            if lines[near].strip():
                weighed[near] = max(weighed.get(near, 0.0), score / 2 - abs(near - index))
    return weighed


def _shown(number: int, item: Evidence, index: int, line: str, masker: Masker) -> ShownLine:
    text = clean(line.rstrip()).replace("\n", "\\r")  # a carriage return must not begin a line of its own
    text = text if len(text) <= LINE_LIMIT else f"{text[:LINE_LIMIT]}…"
    at = None if item.first_line is None else item.first_line + index
    return ShownLine(
        source=number,
        index=index,
        text=text,
        citation=Citation(source=item.source, line=at, text=masker.unmask(text)),
    )
