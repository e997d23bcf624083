"""Which regular expressions a rule may use, and which literals every match of one must hold.

The subset is what RE2, Rust's regex and hyperscan share: no lookaround, no backreference, no
nested quantifier. It keeps a hostile line from costing more than one look, and it lets one
matcher look for all rules at once.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache
from importlib import import_module
from typing import Any

_parser: Any = import_module("re._parser")
_constants: Any = import_module("re._constants")

_REPEATS = {_constants.MAX_REPEAT, _constants.MIN_REPEAT}
_REFUSED = {
    _constants.ASSERT: "lookaround",
    _constants.ASSERT_NOT: "lookaround",
    _constants.GROUPREF: "a backreference",
    _constants.GROUPREF_EXISTS: "a conditional group",
    _constants.ATOMIC_GROUP: "an atomic group",
    _constants.POSSESSIVE_REPEAT: "a possessive quantifier",
}
_UNBOUNDED = 50
"""Quantifiers above this count as unbounded when they are nested."""
BOUNDARY = "\b"
"""At the end of a literal: there a word begins or ends. `inf` is in every INFO, the word is not."""
_SHORTEST = 3
"""Shorter literals are in every line."""
_DULL_WORDS = """
    error errors warning failed failure fail rank loss step epoch iteration cuda torch python file line
    info node memory nccl worker process time gpu job data the and for with not from was http https
    message reason device root name type status exception runtimeerror while when main raise checkpoint
    checkpoints load loading loaded save saving saved read write reading retry retrying config model
    training train dataset batch connection network server client request response version
    norm grad gradient token tokens sample samples learning throughput
"""
_DULL = frozenset(_DULL_WORDS.split())
_DULLEST = frozenset(
    ["error", "errors", "failed", "loss", "step", "rank", "info", "the", "time", "and", "for"]
)
"""Words of nearly every log: useless for finding a line."""

Literals = frozenset[str]


class PatternError(ValueError):
    """A pattern outside the subset."""


def check(pattern: str, *, searched: bool = True) -> None:
    """Raise PatternError unless the pattern is in the subset and says something.

    A pattern that lines are `searched` for also needs literals to find them by.
    """
    if (pattern, searched) in _CHECKED:
        return
    tree = _parsed(pattern)
    _walk(tree, pattern, repeated=False)
    if tree.getwidth()[0] == 0:
        raise PatternError(f"{pattern!r} matches the empty line")
    if searched:
        requirements(pattern)
    _CHECKED.add((pattern, searched))


_CHECKED: set[tuple[str, bool]] = set()
_REQUIRED: dict[str, tuple[Literals, ...]] = {}
ALGORITHM = 2
"""Counts up when other patterns pass, or others literals are found: what was remembered is then void."""

Memory = dict[str, list[list[str]]]
"""Checked patterns and their literals; those that are not searched for have none."""


def remembered() -> Memory:
    """All that was found out about patterns in this process, to be remembered by the next."""
    return {
        pattern: [sorted(literals) for literals in _REQUIRED[pattern]] if searched else []
        for pattern, searched in sorted(_CHECKED)
    }


def count() -> int:
    """How many patterns were checked in this process or an earlier one."""
    return len(_CHECKED)


def remember(memory: Memory) -> None:
    """Take over what an earlier process found out."""
    for pattern, sets in memory.items():
        _CHECKED.add((pattern, bool(sets)))
        if sets:
            _REQUIRED[pattern] = tuple(frozenset(literals) for literals in sets)


@lru_cache(maxsize=8192)
def _parsed(pattern: str) -> Any:
    try:
        return _parser.parse(pattern)
    except re.error as error:
        raise PatternError(f"{pattern!r} is no regular expression: {error}") from error


def _walk(tree: Any, pattern: str, *, repeated: bool) -> None:
    for op, argument in tree:
        if op in _REFUSED:
            raise PatternError(f"{pattern!r} uses {_REFUSED[op]}, which rules may not")
        if op in _REPEATS:
            low, high, inner = argument
            wide = high is _constants.MAXREPEAT or high > _UNBOUNDED
            if repeated and wide:
                raise PatternError(f"{pattern!r} nests quantifiers, which rules may not")
            _walk(inner, pattern, repeated=repeated or (wide and low != high))
        else:
            for inner in _inside(op, argument):
                _walk(inner, pattern, repeated=repeated)


def _inside(op: Any, argument: Any) -> Iterable[Any]:
    if op is _constants.SUBPATTERN:
        return (argument[3],)
    if op is _constants.BRANCH:
        return tuple(argument[1])
    return ()


def requirements(pattern: str) -> tuple[Literals, ...]:
    """Sets of lower-case literals; every match holds one of each set. The first set finds lines best.

    Raises PatternError where no set is of use.
    """
    if pattern in _REQUIRED:
        return _REQUIRED[pattern]
    sets = [s for s in _of_sequence(_parsed(pattern)) if _long_enough(s)]
    if not sets:
        raise PatternError(f"{pattern!r} needs {_SHORTEST} fixed characters in a row in each alternative")
    found = _REQUIRED[pattern] = tuple(sorted(set(sets), key=_value, reverse=True))
    return found


_RARE = 3
"""Worth from which a literal finds lines that are few enough to be looked at one by one."""


def is_common(pattern: str) -> bool:
    """Whether the literals of a pattern are in so many lines that the whole pattern had better be looked for."""
    return min(_worth(text) for text in requirements(pattern)[0]) < _RARE


def _long_enough(literals: Literals) -> bool:
    return min(len(text.strip(BOUNDARY)) for text in literals) >= _SHORTEST


def _value(literals: Literals) -> tuple[bool, int, int, list[str]]:
    return _long_enough(literals), min(_worth(text) for text in literals), -len(literals), sorted(literals)


def _worth(text: str) -> int:
    """Length without what is in every log: the longer, the rarer. A whole word is rarer than a part of one."""
    words = re.findall(r"[^\W\d_]+", text)
    bright = sum(len(word) for word in words if word not in _DULL)
    dull = sum(len(word) for word in words if word in _DULL and word not in _DULLEST)
    rest = len(text) - bright - dull
    return min(len(text), bright + dull // 2 + rest // (2 if len(words) > 1 else 4))


class _Sets:
    """The required sets of a sequence, gathered part by part."""

    def __init__(self) -> None:
        self.found: list[Literals] = []
        self._run = ""
        self._left = self._right = self._plain = False

    def letters(self, text: str) -> None:
        """More fixed text."""
        self._run += text
        self._right = self._plain = False

    def boundary(self) -> None:
        """A word begins or ends here."""
        if self._run:
            self._right = True
        elif self._plain:
            self.found[-1] = frozenset(text + BOUNDARY for text in self.found[-1])
        else:
            self._left = True

    def group(self, sets: list[Literals], *, plain: bool) -> None:
        """A part that is no fixed text. `plain` where it is one of several fixed texts."""
        self.flush()
        if plain and self._left:
            sets = [frozenset(BOUNDARY + text for text in sets[0])]
        self.found += sets
        self._left, self._plain = False, plain

    def flush(self) -> None:
        """The fixed text ends."""
        if self._run:
            marks = (BOUNDARY if self._left else "", BOUNDARY if self._right else "")
            self.found.append(frozenset({self._run.join(marks)}))
            self._left = False
        self._run, self._right = "", False


def _of_sequence(tree: Any) -> list[Literals]:
    """The sets of a sequence: its runs of letters, and what its groups require."""
    sets = _Sets()
    for op, argument in tree:
        letters = _letters(op, argument)
        if letters is not None:
            sets.letters(letters)
        elif op is _constants.AT:
            if argument is _constants.AT_BOUNDARY:
                sets.boundary()
        else:
            sets.group(_of_group(op, argument), plain=_plain(op, argument))
    sets.flush()
    return sets.found


def _plain(op: Any, argument: Any) -> bool:
    """Whether a part is one of several fixed texts."""
    if op is _constants.SUBPATTERN and len(argument[3]) == 1:
        return _plain(*argument[3][0])
    if op is not _constants.BRANCH:
        return False
    return all(None not in [_letters(*part) for part in branch] for branch in argument[1])


def _letters(op: Any, argument: Any) -> str | None:
    """The text that a part of a pattern stands for, if it is one text only but for case."""
    if op is _constants.LITERAL:
        return chr(argument).lower()
    if op is _constants.IN and all(kind is _constants.LITERAL for kind, _ in argument):
        letters = {chr(value).lower() for _, value in argument}
        return letters.pop() if len(letters) == 1 else None
    if op is _constants.SUBPATTERN:
        parts = [_letters(*part) for part in argument[3]]
        return None if None in parts else "".join(part for part in parts if part)
    return None


def _of_group(op: Any, argument: Any) -> list[Literals]:
    if op is _constants.SUBPATTERN:
        return _of_sequence(argument[3])
    if op is _constants.BRANCH:
        every: list[Literals] = [
            max(_of_sequence(branch), key=_value, default=frozenset()) for branch in argument[1]
        ]
        return [frozenset().union(*every)] if all(every) else []
    if op in _REPEATS and argument[0] > 0:
        return _of_sequence(argument[2])
    return []
