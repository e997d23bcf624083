"""Where in a block of bytes any of many literals or patterns stands.

With hyperscan at memory speed; without it by one pure-Python expression over a trie of the
literals. Both lead to the same answer: for every line that fits a pattern, the pattern or one of
its literals is reported at least once. What a line means is decided elsewhere, by `re` alone.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Iterable, Sequence
from functools import cached_property
from importlib import import_module
from threading import Lock
from typing import Any, Protocol

from trainguard.core.diagnosis.pattern import BOUNDARY
from trainguard.core.diagnosis.stream import bounds

Hit = tuple[int, int]
"""Offset of the last byte found plus one, and the index: of a literal, or after these of a pattern."""


class Finder(Protocol):
    """Finds literals, or whole patterns."""

    def find(self, data: bytes) -> list[Hit]:
        """All hits in the order of their offsets."""
        ...

    def sharpen(self) -> None:
        """Look for the whole patterns from now on, if that can be done fast: it takes seconds to prepare."""
        ...


class Store(Protocol):
    """Keeps what took long to work out. What it gives back is what was put, or nothing."""

    def get(self, name: str) -> bytes | None:
        """What was put last; None where nothing sound is there."""
        ...

    def put(self, name: str, content: bytes) -> None:
        """Keep, if that can be done."""
        ...


def finder(
    literals: Sequence[str],
    patterns: Sequence[str] = (),
    *,
    common: int = 0,
    only_common: Collection[str] = (),
    native: bool | None = None,
    store: Store | None = None,
) -> Finder:
    """The fastest finder there is; `native` False asks for the pure-Python one.

    The literals of the first `common` patterns are in very many lines: where that can be done, these
    patterns are looked for whole from the start, and `only_common`, the literals that no others need, are not.
    """
    if native is False or not literals:
        return PythonFinder(literals)
    try:
        module = import_module("hyperscan")
    except ImportError:
        if native:
            raise
        return PythonFinder(literals)
    rare = [literal not in only_common for literal in literals]
    return HyperscanFinder(module, literals, rare, patterns, common, store)


_STORED = "patterns.hs"
_SCANNING = Lock()
"""A database's scratch space serves one scan at a time, and guards of one process share the catalogue."""
_ODD = re.compile(rb"[^\t\x20-\x7e]")
"""Bytes that count differently in the two engines, or are gone before `re` sees the line."""
_ODD_PATTERN = rb"[^\t\n\r\x20-\x7e]"
_Numbered = tuple[int, bytes, int]
"""An expression with its number and flags."""


class HyperscanFinder:
    """Rare literals and the patterns without one by hyperscan; when sharpened, whole patterns alone.

    Lines with odd bytes are looked for by literals in any case.
    """

    def __init__(
        self,
        module: Any,
        literals: Sequence[str],
        rare: Sequence[bool],
        patterns: Sequence[str],
        common: int,
        store: Store | None,
    ) -> None:
        self._module = module
        self._literals = literals
        self._rare = rare
        self._patterns = patterns
        self._common = common
        self._store = store
        self._hopeless = False
        self._exact = self._recalled()

    @property
    def sharp(self) -> bool:
        """Whether whole patterns are looked for."""
        return self._exact is not None

    @cached_property
    def _blunt(self) -> list[Any]:
        """Databases of the rare literals and the common patterns."""
        return [*self._of_literals(rare=True), self._compiled(self._whole(self._common))]

    @cached_property
    def _odd(self) -> list[Any]:
        """Databases of all literals that the others do not look for."""
        return self._of_literals(rare=False) + (self._of_literals(rare=True) if self.sharp else [])

    def _of_literals(self, *, rare: bool) -> list[Any]:
        """Two databases: short whole words, and plain literals."""
        wanted = [(i, literal) for i, literal in enumerate(self._literals) if self._rare[i] is rare]
        caseless = self._module.HS_FLAG_CASELESS
        words = [(i, _word(literal), caseless) for i, literal in wanted if _bounded(literal)]
        plain = [(i, t.strip(BOUNDARY).encode(), caseless) for i, t in wanted if not _bounded(t)]
        found = [self._compiled(words)] if words else []
        return found + ([self._compiled(plain, literal=True)] if plain else [])

    def _compiled(self, expressions: Sequence[_Numbered], *, literal: bool = False) -> Any:
        """A database of numbered expressions with their flags."""
        database = self._module.Database(mode=self._module.HS_MODE_BLOCK)
        database.compile(
            expressions=[expression for _, expression, _ in expressions],
            ids=[index for index, _, _ in expressions],
            elements=len(expressions),
            flags=[flags for _, _, flags in expressions],
            literal=literal,
        )
        return database

    def find(self, data: bytes) -> list[Hit]:
        """All hits in the order of their offsets."""
        hits = self._scanned(self._blunt if self._exact is None else (self._exact,), data)
        odd = len(self._literals) + len(self._patterns)
        known = [hit for hit in hits if hit[1] != odd]
        if len(known) != len(hits):
            known += [hit for hit in self._scanned(self._odd, data) if _in_odd_line(data, hit[0])]
        known.sort()
        return known

    @staticmethod
    def _scanned(databases: Iterable[Any], data: bytes) -> list[Hit]:
        hits: list[Hit] = []
        append = hits.append

        def note(index: int, _start: int, end: int, _flags: int, _context: object) -> None:
            append((end, index))

        with _SCANNING:
            for database in databases:
                database.scan(data, match_event_handler=note)
        return hits

    def sharpen(self) -> None:
        """Look for the whole patterns from now on."""
        if self._exact is not None or self._hopeless or not self._patterns:
            return
        try:
            exact = self._compiled(self._whole())
        except self._module.HyperscanError:
            self._hopeless = True  # it stays as it is: slower, with the same answers
            return
        self._exact = exact
        self.__dict__.pop("_odd", None)
        if self._store is not None:
            self._store.put(_STORED, self._key() + self._module.dumpb(self._exact))

    def _whole(self, number: int | None = None) -> list[_Numbered]:
        """The first patterns, or all, and one that says once whether a block holds odd bytes."""
        first = len(self._literals)
        found = [(first + index, _loosened(p), 0) for index, p in enumerate(self._patterns[:number])]
        odd = first + len(self._patterns)
        return [*found, (odd, _ODD_PATTERN, self._module.HS_FLAG_SINGLEMATCH)]

    def _key(self) -> bytes:
        """What the database was made from and by. Other processors refuse it themselves."""
        made = repr((self._module.__version__, self._literals, self._whole()))
        return hashlib.blake2b(made.encode(), digest_size=32).digest()

    def _recalled(self) -> Any:
        """The database that an earlier process compiled; None where there is none that fits."""
        kept = self._store.get(_STORED) if self._store is not None and self._patterns else None
        if kept is None or kept[:32] != self._key():
            return None
        try:
            database = self._module.loadb(kept[32:], self._module.HS_MODE_BLOCK)
            database.scratch = self._module.Scratch(database)
            self._scanned((database,), b"any text")
        except self._module.HyperscanError:
            return None
        return database


def _in_odd_line(data: bytes, offset: int) -> bool:
    start, end = bounds(data, offset)
    return _ODD.search(data, start, end) is not None


_GROUP_NAME = re.compile(r"\(\?P<\w+>")
_ANCHORS = re.compile(r"(?<![\\\[])[$^]")


def _loosened(pattern: str) -> bytes:
    """The pattern without names and anchors: it fits at least where the pattern does."""
    return _ANCHORS.sub("", _GROUP_NAME.sub("(?:", pattern)).encode()


_SHORT_WORD = 6
"""Longer words are rare enough as they are."""
_WORD_BYTES = frozenset(b"abcdefghijklmnopqrstuvwxyz0123456789_")


def _bounded(literal: str) -> bool:
    return BOUNDARY in literal and len(literal.strip(BOUNDARY)) <= _SHORT_WORD


def _word(literal: str) -> bytes:
    text = literal.strip(BOUNDARY)
    left, right = literal.startswith(BOUNDARY), literal.endswith(BOUNDARY)
    return (r"\b" * left + re.escape(text) + r"\b" * right).encode()


class PythonFinder:
    """Literals by one expression over their trie, without case."""

    def __init__(self, literals: Sequence[str]) -> None:
        self._marked = [literal if _bounded(literal) else "" for literal in literals]
        self._literals = [literal.strip(BOUNDARY).lower().encode() for literal in literals]
        heads: dict[bytes, list[int]] = {}
        for index, literal in enumerate(self._literals):
            heads.setdefault(literal[:_HEAD], []).append(index)
        self._heads = heads
        self._expression = re.compile(_trie(sorted(heads))) if heads else None

    def find(self, data: bytes) -> list[Hit]:
        """All hits in the order of their offsets."""
        if self._expression is None:
            return []
        lower = data.lower()
        hits: list[Hit] = []
        position = 0
        search = self._expression.search
        while (match := search(lower, position)) is not None:
            start = match.start()
            position = start + 1
            for length in range(_SHORTEST, min(_HEAD, len(lower) - start) + 1):
                for index in self._heads.get(lower[start : start + length], ()):
                    if self._is_at(lower, start, index):
                        hits.append((start + len(self._literals[index]), index))
        hits.sort()
        return hits

    def _is_at(self, lower: bytes, start: int, index: int) -> bool:
        literal, marked = self._literals[index], self._marked[index]
        if not lower.startswith(literal, start):
            return False
        end = start + len(literal)
        if marked.startswith(BOUNDARY) and start and lower[start - 1] in _WORD_BYTES:
            return False
        return not (marked.endswith(BOUNDARY) and end < len(lower) and lower[end] in _WORD_BYTES)

    def sharpen(self) -> None:
        """Nothing: here the literals are the fast part."""


_SHORTEST = 3
_HEAD = 6
"""Bytes of a literal that the expression looks at; the rest is compared at the spot."""


def _trie(words: Sequence[bytes]) -> bytes:
    """An expression that matches wherever one of the words begins, branching by byte."""
    tree: dict[int, Any] = {}
    for word in words:
        node = tree
        for byte in word:
            node = node.setdefault(byte, {})
        node[-1] = {}
    return _branch(tree)


def _branch(tree: dict[int, Any]) -> bytes:
    if -1 in tree:
        return b""  # a shorter word ends here: that is a hit already
    parts = [re.escape(bytes([byte])) + _branch(below) for byte, below in sorted(tree.items())]
    return parts[0] if len(parts) == 1 else b"(?:" + b"|".join(parts) + b")"
