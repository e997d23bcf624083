"""One pass over one stream: which rules fit which lines, and where the training moved."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from trainguard.core.diagnosis.echo import Echo
from trainguard.core.diagnosis.exits import Exit, exit_of
from trainguard.core.diagnosis.matcher import ENOUGH_SIGNS, Entry, Match, Matcher
from trainguard.core.diagnosis.rule import Near, Rule
from trainguard.core.diagnosis.steps import Point, points
from trainguard.core.diagnosis.stream import Stream, bounds, chunks
from trainguard.core.diagnosis.text import Head, Stamp, clean, head
from trainguard.core.diagnosis.traceback import EXCEPTION, RAISED, owners_frame
from trainguard.core.evidence import EvidenceKind

_KEPT = 4
"""Hits of one rule, rank and node that are kept from the beginning, and as many from the end."""
_KEYS = 20_000
"""Rules times ranks that are kept apart."""
_AT_ONCE = 500
"""Fitting lines that are all looked at; after that only forms of lines that are not yet familiar."""
_ALIKE = 4
_FORMS = 8_192
_AT_ONCE_ALL = 50_000
_LAST = 512
"""Familiar lines that are kept, to look at the last ones of a stream at its end."""
_EXITS = 2_000
_LAST_INDEX = 1 << 60
"""After every index of a hit."""
_REGION = 1 << 15
"""Bytes at the beginning and the end of a stream whose every progress line is read."""
_SAMPLE = 1 << 10
_SAMPLED = 1 << 20
"""So many bytes whose progress lines are read at the end of so many others."""
_STAMP_LINES = 40
"""Lines before an unstamped one in which a stamp is sought."""
_LOOKBACK = 1 << 14
"""Bytes before an exception in which its traceback is sought."""
_SHORT_LOOKBACK = 512


@dataclass(frozen=True, slots=True)
class Hit:
    """One line that fits a rule."""

    rule: Rule
    stream: int
    line: int
    text: str
    rank: int | None
    node: str
    stamp: Stamp | None
    kernel: bool
    groups: Mapping[str, str]
    echo: Echo | None
    stream_kind: EvidenceKind
    code: str = ""
    unlike: bool = False
    """Not as a program prints it: an exception without its traceback, or another rank's line in a rank's own file."""


@dataclass(slots=True)
class _Kept:
    first: list[Hit] = field(default_factory=list)
    last: deque[Hit] = field(default_factory=lambda: deque(maxlen=_KEPT))
    count: int = 0


@dataclass(slots=True)
class Scanned:
    """What one stream holds."""

    stream: Stream
    index: int
    lines: int = 0
    size: int = 0
    kept: dict[tuple[str, int | None, str, bool], _Kept] = field(default_factory=dict)
    near: dict[tuple[str, int], deque[int]] = field(default_factory=dict)
    progress: list[Point] = field(default_factory=list)
    tail: bytes = b""
    healthy: Counter[str] = field(default_factory=Counter)
    """Lines that fitted healthy rules, by rule: after some, more say nothing new."""
    exits: list[Exit] = field(default_factory=list)

    def hits(self) -> Iterator[Hit]:
        """The hits that were kept, in the order of their lines within each key."""
        for kept in self.kept.values():
            yield from kept.first
            yield from kept.last

    def count(self, rule: str) -> int:
        """How many lines fitted a rule."""
        return sum(k.count for key, k in self.kept.items() if key[0] == rule and not key[3])

    def close_by(self, hit: Hit, near: Near) -> bool:
        """Whether a line that `near` wants is close enough to a hit."""
        lines = self.near.get((hit.rule.id, id(near)), ())
        return any(abs(line - hit.line) <= near.within for line in lines)


def scan(stream: Stream, index: int, matcher: Matcher) -> Scanned:
    """Read a stream once."""
    return _Scanner(stream, index, matcher).run()


_Waiting = tuple[frozenset[int], int, bytes, bytes]
_VARIABLE = re.compile(rb"\d{1,9}/\d{3,9}\b|\d\d:\d\d(?::\d\d(?:[.,]\d{1,9})?)?|\.\d{2,}|\d{4,}|0x[0-9a-f]+")
"""What tells lines of one form apart. Short numbers (an Xid, an exit code) stay, and by the length magnitudes."""


def _form(raw: bytes) -> int:
    return hash((_VARIABLE.sub(b"#", raw), len(raw)))


class _Scanner:
    def __init__(self, stream: Stream, index: int, matcher: Matcher) -> None:
        self._matcher = matcher
        self._found = Scanned(stream, index)
        self._forms: Counter[int] = Counter()
        self._looked = 0
        self._settled: frozenset[int] = frozenset()
        self._waiting: deque[_Waiting] = deque(maxlen=_LAST)
        self._previous = b""

    def run(self) -> Scanned:
        found = self._found
        for data in chunks(found.stream.blocks):
            if not found.size:
                found.lines = 1
                found.progress += points(data[:_REGION], 1)
            found.lines = self._chunk(data, found.lines)
            if found.size and found.size // _SAMPLED != (found.size + len(data)) // _SAMPLED:
                self._sample(data)
            self._matcher.sharpen()
            found.size += len(data)
            self._previous = data[-_REGION:] if len(data) >= _REGION else (self._previous + data)[-_REGION:]
        self._finish()
        return found

    def _sample(self, data: bytes) -> None:
        """Read the last signs of progress of a block that ends where the lines counted so far do."""
        sample: list[Point] = []
        for back, raw in enumerate(reversed(data[-_SAMPLE:].split(b"\n"))):
            sample = points(raw, self._found.lines - back) + sample
            if len(sample) >= _KEPT:
                break
        self._found.progress += sample[-_KEPT:]

    def _finish(self) -> None:
        found = self._found
        found.tail = self._previous
        for literals, number, raw, before in self._waiting:
            self._line(self._matcher.plausible(literals, raw), number, raw, partial(bytes, before))
        if found.size > _REGION:
            tail = found.tail[found.tail.find(b"\n") + 1 :]
            first = found.lines - tail.count(b"\n")
            read = {point.line for point in found.progress}
            found.progress += [p for p in points(tail, first) if p.line not in read]
            found.progress.sort(key=lambda point: point.line)

    def _chunk(self, data: bytes, number: int) -> int:
        """Look at the lines that were found in a block that begins with line `number`; say where it ends."""
        counted, end = 0, -2
        hits = self._matcher.finder.find(data)
        settled = self._settled
        for offset, index in hits:
            if offset <= end + 1 or index in settled:  # a pattern may end with the line's end
                continue
            start, end = bounds(data, offset)
            first, last = bisect_right(hits, (start, _LAST_INDEX)), bisect_right(hits, (end + 1, _LAST_INDEX))
            here = frozenset([i for _, i in hits[first:last]])
            number += data.count(b"\n", counted, start)
            counted = start
            self._candidate(here, number, data, start, end)
        return number + data.count(b"\n", counted)

    def _candidate(self, literals: frozenset[int], number: int, data: bytes, start: int, end: int) -> None:
        raw = data[start:end]
        form = _form(raw) if self._looked >= _AT_ONCE else 0
        if form and (self._forms[form] >= _ALIKE or self._looked >= _AT_ONCE_ALL):
            self._waiting.append((literals, number, raw, data[max(0, start - _SHORT_LOOKBACK) : start]))
            return
        entries = self._matcher.plausible(literals, raw)
        if not entries:
            self._matcher.in_vain()
            return
        previous = self._previous

        def before() -> bytes:
            near = data[max(0, start - _LOOKBACK) : start]
            return near if start >= _LOOKBACK else previous[start - _LOOKBACK :] + near

        if not self._line(entries, number, raw, before):
            self._matcher.in_vain()
        elif form and len(self._forms) < _FORMS:
            self._forms[form] += 1

    def _line(self, entries: Sequence[Entry], number: int, raw: bytes, before: Callable[[], bytes]) -> bool:
        text = clean(raw)
        entries = self._matcher.fitting(entries, text)
        if not entries:
            return False
        if all(entry.settled(self._found.healthy) for entry in entries):
            return True
        self._looked += 1
        line = head(text)
        kind = self._found.stream.kind
        found = self._matcher.match(entries, line, text, lambda: _message_before(before()), kind)
        if found.probe is not None and len(self._found.exits) < _EXITS:
            lines = _messages(before()[-2048:], line.rank)
            self._found.exits.append(exit_of(found.probe, number, text[:2000], line.stamp, lines))
        for neighbour in found.neighbours:
            key = (neighbour.rule.id, id(neighbour.near))
            self._found.near.setdefault(key, deque(maxlen=1024)).append(number)
        for match in found.matches:
            self._keep(match, number, text, line, before)
        return True

    def _keep(self, match: Match, number: int, text: str, line: Head, before: Callable[[], bytes]) -> None:
        """Keep a hit; look around it only if it is among the first of its kind."""
        found = self._found
        key = (match.rule.id, line.rank, line.node, match.echo is not None)
        kept = found.kept.get(key)
        if kept is None:
            if len(found.kept) >= _KEYS:
                return
            kept = found.kept[key] = _Kept()
        kept.count += 1
        first = len(kept.first) < _KEPT
        code, stamp, unlike = "", line.stamp, False
        if first and not match.rule.healthy:
            stamp = stamp or _stamp_before(before(), line.rank)
            if EXCEPTION.match(line.body) or match.rule.scope == "code":
                code = owners_frame(_messages(before(), line.rank, _FRAMES))
            unlike = self._unlike(line, before)
        hit = Hit(
            match.rule,
            found.index,
            number,
            _excerpt(text, line, match),
            line.rank,
            line.node,
            stamp,
            line.kernel,
            match.groups,
            match.echo,
            found.stream.kind,
            code,
            unlike,
        )
        (kept.first if first else kept.last).append(hit)
        if match.rule.healthy and match.echo is None:
            found.healthy[match.rule.id] += 1
            if found.healthy[match.rule.id] == ENOUGH_SIGNS:
                self._settled = self._matcher.settled(found.healthy)

    def _unlike(self, line: Head, before: Callable[[], bytes]) -> bool:
        own = self._found.stream.source.rank
        if own is not None and line.rank not in (None, own):
            return True
        return RAISED.search(line.body) is not None and not _messages(before(), line.rank, _FRAMES)


_EXCERPT = 2000


def _excerpt(text: str, line: Head, match: Match) -> str:
    """A line, or the part of a long one that fits the rule."""
    start = len(text) - len(line.body) + match.start
    return text[:_EXCERPT] if start < _EXCERPT // 2 else text[start - _EXCERPT // 4 :][:_EXCERPT]


def _message_before(before: bytes) -> str:
    lines = before[-2048:].rstrip(b"\r\n").rsplit(b"\n", 1)
    return head(clean(lines[-1])).body


def _stamp_before(before: bytes, rank: int | None) -> Stamp | None:
    """The time of the last stamped line before one without a stamp (a traceback's)."""
    for raw in reversed(before[-4096:].rsplit(b"\n", _STAMP_LINES)):
        line = head(clean(raw))
        if line.stamp is not None and line.rank == rank:
            return line.stamp
    return None


_FRAMES = re.compile(rb"File |\.py:|Traceback|During handling|direct cause|Cell In")


def _messages(before: bytes, rank: int | None, wanted: re.Pattern[bytes] | None = None) -> list[str]:
    """The messages of one rank before a line, oldest first; only those that hold what is wanted."""
    found = []
    for raw in before.split(b"\n"):
        if wanted is None or wanted.search(raw):
            line = head(clean(raw))
            if line.rank == rank and line.body:
                found.append(line.body)
    return found
