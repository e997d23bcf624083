"""What to look at next where a diagnosis is not certain."""

from __future__ import annotations

import re
from collections.abc import Sequence

from trainguard.core.diagnosis.candidate import Candidate
from trainguard.core.diagnosis.lastwords import CALM
from trainguard.core.diagnosis.scan import Scanned
from trainguard.core.diagnosis.steps import points
from trainguard.core.diagnosis.text import clean, head
from trainguard.core.evidence import EvidenceKind

_BAD_END = re.compile(
    r"^(?:Traceback \(most recent call last\)|[\w.]*(?:Error|Exception)\b: |Fatal |FATAL|Segmentation fault|Killed\b|"
    r"terminate called|E\d{3,4} \d\d:|\*\*\* SIG|Aborted|Bus error)|core dumped|Traceback \(most recent call last\)|\baborted\b|exit(?:ed with)? (?:code|status):? ?-?[1-9]"
)
_ENOUGH = 0.75
"""From this confidence on nothing more is asked for."""


def ends_badly(scanned: Sequence[Scanned]) -> bool:
    """Whether words of a crash that no rule knows stand after the last progress of a stream."""
    return any(_ends_badly(one) for one in scanned)


def _ends_badly(one: Scanned) -> bool:
    for raw in reversed(one.tail[-8192:].split(b"\n")[-60:]):
        if points(raw, 1):
            return False
        text = clean(raw)
        if _BAD_END.search(head(text).body) or _BAD_END.match(text):
            return True
    return False


_TROUBLE = re.compile(
    rb"(?i)err(?!ors?\W{0,4}0\b)|fail|(?<!de)fault|fatal|panic|\boops|\bbug\b|kill|abort|time(?:d )?-?out|reset|stall|lockup|hung|"
    rb"lost|corrupt|exception|denied|refus|unable|cannot|critical|warn|evict|preempt|unreachable|unhealthy|not ready"
)


def all_quiet(scanned: Sequence[Scanned]) -> bool:
    """Whether there is some text, all of which was read, and no line of it speaks of trouble."""
    return bool(scanned) and all(
        one.size <= len(one.tail) and one.lines > 2 and not any(map(_troubled, one.tail.split(b"\n")))
        for one in scanned
    )


def _troubled(raw: bytes) -> bool:
    return _TROUBLE.search(raw) is not None and CALM.search(clean(raw)) is None


def look_next(root: Candidate | None, confidence: float, scanned: Sequence[Scanned]) -> tuple[str, ...]:
    """The sources that would settle it, the most telling first."""
    if root is not None and confidence >= _ENOUGH:
        return ()
    kinds = {one.stream.kind for one in scanned}
    asked = []
    if root is not None and root.rule.cascade:
        asked.append("The log of the rank that failed first: this one shows only what the others saw of it.")
    if root is not None and root.hearsay:
        asked.append("The node's own kernel log: the job's log only repeats such a line.")
    if EvidenceKind.KERNEL not in kinds:
        asked.append("The kernel log of the job's nodes (`dmesg -T`): Xid, OOM killer, file system errors.")
    if EvidenceKind.ACCOUNTING not in kinds and EvidenceKind.STATUS not in kinds:
        asked.append("What the scheduler says: state, exit code, signal, whether memory killed it.")
    if EvidenceKind.STACKS not in kinds and root is None:
        asked.append("Stacks of the processes, if they still live (`py-spy dump`).")
    if root is None:
        asked.append("The log of every rank, not of rank 0 alone, and its last lines above all.")
    return tuple(asked)
