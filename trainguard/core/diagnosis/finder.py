"""Where in a block of bytes any of many literals stands.

With hyperscan at memory speed; without it by one pure-Python expression over a trie of the
literals. Both give the same answer: every literal that occurs in a line is reported for it
at least once. What a line means is decided elsewhere, by `re` alone.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any, Protocol

from trainguard.core.diagnosis.pattern import BOUNDARY

Hit = tuple[int, int]
"""Offset of a literal's last byte plus one, and the literal's index."""


class Finder(Protocol):
    """Finds literals."""

    def find(self, data: bytes) -> list[Hit]:
        """All hits in the order of their offsets."""
        ...

    def sharpen(self, patterns: Mapping[int, Sequence[str]]) -> None:
        """Report these literals only where one of their patterns fits, if that can be done fast."""
        ...


def finder(literals: Sequence[str], *, native: bool | None = None) -> Finder:
    """The fastest finder there is; `native` False asks for the pure-Python one."""
    if native is False or not literals:
        return PythonFinder(literals)
    try:
        module = import_module("hyperscan")
    except ImportError:
        if native:
            raise
        return PythonFinder(literals)
    return HyperscanFinder(module, literals)


class HyperscanFinder:
    """Literals by hyperscan, without case; sharpened ones by their whole patterns."""

    def __init__(self, module: Any, literals: Sequence[str]) -> None:
        self._module = module
        self._literals = literals
        self._all = self._of_literals(range(len(literals)))
        self._plain = self._all
        """The literals that are not sharpened."""
        self._sharp: Any = None
        self._patterns: dict[int, Sequence[str]] = {}

    def _of_literals(self, indexes: Sequence[int]) -> list[Any]:
        """Two databases: whole words, which are short, and plain literals."""
        words = [index for index in indexes if _bounded(self._literals[index])]
        plain = [index for index in indexes if not _bounded(self._literals[index])]
        found = []
        if words:
            found.append(self._compiled([(i, _word(self._literals[i])) for i in words]))
        if plain:
            literals = [(i, self._literals[i].strip(BOUNDARY).encode()) for i in plain]
            found.append(self._compiled(literals, literal=True))
        return found

    def _compiled(self, expressions: Sequence[tuple[int, bytes]], *, literal: bool | None = None) -> Any:
        """A database of caseless literals (True), caseless words (None), or patterns as they are (False)."""
        database = self._module.Database(mode=self._module.HS_MODE_BLOCK)
        flag = 0 if literal is False else self._module.HS_FLAG_CASELESS
        database.compile(
            expressions=[expression for _, expression in expressions],
            ids=[index for index, _ in expressions],
            elements=len(expressions),
            flags=[flag] * len(expressions),
            literal=literal is True,
        )
        return database

    def find(self, data: bytes) -> list[Hit]:
        """All hits in the order of their offsets."""
        hits: list[Hit] = []
        append = hits.append

        def note(index: int, _start: int, end: int, _flags: int, _context: object) -> None:
            append((end, index))

        # other than ASCII bytes count differently in the two engines
        blunt = self._sharp is None or not data.isascii()
        for database in self._all if blunt else (*self._plain, self._sharp):
            database.scan(data, match_event_handler=note)
        hits.sort()
        return hits

    def sharpen(self, patterns: Mapping[int, Sequence[str]]) -> None:
        """Report these literals only where one of their patterns fits."""
        together = {**self._patterns, **patterns}
        expressions = [(index, _loosened(p)) for index, several in together.items() for p in several]
        plain = [index for index in range(len(self._literals)) if index not in together]
        try:
            sharp, self._plain = self._compiled(expressions, literal=False), self._of_literals(plain)
        except self._module.HyperscanError:
            return  # they stay as they are: slower, with the same answers
        self._sharp, self._patterns = sharp, together


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

    def sharpen(self, patterns: Mapping[int, Sequence[str]]) -> None:
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
