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
    encoded = [literal.encode("utf-8") for literal in literals]
    if native is False or not encoded:
        return PythonFinder(encoded)
    try:
        module = import_module("hyperscan")
    except ImportError:
        if native:
            raise
        return PythonFinder(encoded)
    return HyperscanFinder(module, encoded)


class HyperscanFinder:
    """Literals by hyperscan, without case; sharpened ones by their whole patterns."""

    def __init__(self, module: Any, literals: Sequence[bytes]) -> None:
        self._module = module
        self._literals = literals
        self._all = self._of_literals(range(len(literals)))
        self._plain = self._all
        """The literals that are not sharpened."""
        self._sharp: Any = None
        self._patterns: dict[int, Sequence[str]] = {}

    def _of_literals(self, indexes: Sequence[int]) -> Any:
        database = self._module.Database(mode=self._module.HS_MODE_BLOCK)
        database.compile(
            expressions=[self._literals[index] for index in indexes],
            ids=list(indexes),
            elements=len(indexes),
            flags=[self._module.HS_FLAG_CASELESS] * len(indexes),
            literal=True,
        )
        return database

    def find(self, data: bytes) -> list[Hit]:
        """All hits in the order of their offsets."""
        hits: list[Hit] = []
        append = hits.append

        def note(index: int, _start: int, end: int, _flags: int, _context: object) -> None:
            append((end, index))

        if self._sharp is None or not data.isascii():  # other bytes count differently in the two engines
            self._all.scan(data, match_event_handler=note)
        else:
            self._plain.scan(data, match_event_handler=note)
            self._sharp.scan(data, match_event_handler=note)
        hits.sort()
        return hits

    def sharpen(self, patterns: Mapping[int, Sequence[str]]) -> None:
        """Report these literals only where one of their patterns fits."""
        together = {**self._patterns, **patterns}
        expressions = [(index, _loosened(p)) for index, several in together.items() for p in several]
        plain = [index for index in range(len(self._literals)) if index not in together]
        database = self._module.Database(mode=self._module.HS_MODE_BLOCK)
        try:
            database.compile(
                expressions=[expression for _, expression in expressions],
                ids=[index for index, _ in expressions],
                elements=len(expressions),
                flags=[0] * len(expressions),
            )
            self._plain = self._of_literals(plain)
        except self._module.HyperscanError:
            return  # they stay as they are: slower, with the same answers
        self._sharp, self._patterns = database, together


_GROUP_NAME = re.compile(r"\(\?P<\w+>")
_ANCHORS = re.compile(r"(?<![\\\[])[$^]")


def _loosened(pattern: str) -> bytes:
    """The pattern without names and anchors: it fits at least where the pattern does."""
    return _ANCHORS.sub("", _GROUP_NAME.sub("(?:", pattern)).encode()


class PythonFinder:
    """Literals by one expression over their trie, without case."""

    def __init__(self, literals: Sequence[bytes]) -> None:
        self._literals = [literal.lower() for literal in literals]
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
            for length in range(_SHORTEST, _HEAD + 1):
                for index in self._heads.get(lower[start : start + length], ()):
                    literal = self._literals[index]
                    if lower.startswith(literal, start):
                        hits.append((start + len(literal), index))
        hits.sort()
        return hits

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
