"""Which regular expressions a rule may use, and which literals every match of one must hold.

The subset is what RE2, Rust's regex and hyperscan share: no lookaround, no backreference, no
nested quantifier. It keeps a hostile line from costing more than one look, and it lets one
matcher look for all rules at once.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
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
_SHORTEST = 3
"""Shorter literals are in every line."""
_DULL = frozenset(
    [
        "error",
        "errors",
        "warning",
        "failed",
        "failure",
        "rank",
        "loss",
        "step",
        "epoch",
        "iteration",
        "cuda",
        "torch",
        "python",
        "file",
        "line",
        "info",
        "node",
        "memory",
        "nccl",
        "worker",
        "process",
        "time",
        "gpu",
        "job",
        "data",
        "the",
        "and",
        "for",
        "with",
        "not",
        "from",
        "was",
        "http",
        "https",
        "message",
        "reason",
        "device",
        "root",
        "name",
        "type",
        "status",
        "exception",
        "runtimeerror",
        "while",
        "when",
        "main",
        "raise",
    ]
)
"""Words of nearly every log: useless for finding a line."""

Literals = frozenset[str]


class PatternError(ValueError):
    """A pattern outside the subset."""


def check(pattern: str, *, searched: bool = True) -> None:
    """Raise PatternError unless the pattern is in the subset and says something.

    A pattern that lines are `searched` for also needs literals to find them by.
    """
    try:
        tree = _parser.parse(pattern)
    except re.error as error:
        raise PatternError(f"{pattern!r} is no regular expression: {error}") from error
    _walk(tree, pattern, repeated=False)
    if re.match(pattern, "") is not None:
        raise PatternError(f"{pattern!r} matches the empty line")
    if searched:
        required_literals(pattern)


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


def required_literals(pattern: str) -> Literals:
    """Lower-case literals of which every match holds at least one. Raises PatternError where there are none."""
    found = _of_sequence(_parser.parse(pattern))
    if found is None or min(map(len, found)) < _SHORTEST:
        raise PatternError(f"{pattern!r} needs {_SHORTEST} fixed characters in a row in each alternative")
    return found


def _worth(literals: Literals) -> int:
    """Length of the dullest literal: the longer, the rarer in a log."""
    return min(_worth_of(text) for text in literals)


def _worth_of(text: str) -> int:
    words = re.findall(r"[^\W_]+", text)
    bright = sum(len(word) for word in words if word not in _DULL)
    dull = (len(text) - bright) // (2 if len(words) > 1 else 4)
    return min(len(text), bright + dull)


def _of_sequence(tree: Any) -> Literals | None:
    """The best choice among a sequence's runs of literals and its groups."""
    choices: list[Literals] = []
    run = ""
    for op, argument in tree:
        letter = _letter(op, argument)
        if letter is not None:
            run += letter
            continue
        if op is _constants.AT:
            continue
        group = _of_group(op, argument)
        if group is not None and len(group) == 1 and op is _constants.SUBPATTERN and _plain(argument[3]):
            run += next(iter(group))
            continue
        if run:
            choices.append(frozenset({run}))
            run = ""
        if group is not None:
            choices.append(group)
    if run:
        choices.append(frozenset({run}))
    return max(choices, key=lambda c: (_worth(c), -len(c), sorted(c)), default=None)


def _plain(tree: Any) -> bool:
    return all(_letter(op, argument) is not None for op, argument in tree)


def _letter(op: Any, argument: Any) -> str | None:
    if op is _constants.LITERAL:
        return chr(argument).lower()
    if op is _constants.IN and all(kind is _constants.LITERAL for kind, _ in argument):
        letters = {chr(value).lower() for _, value in argument}
        if len(letters) == 1:
            return letters.pop()
    return None


def _of_group(op: Any, argument: Any) -> Literals | None:
    if op is _constants.SUBPATTERN:
        return _of_sequence(argument[3])
    if op is _constants.BRANCH:
        every = [_of_sequence(branch) for branch in argument[1]]
        if any(one is None for one in every):
            return None
        return frozenset().union(*(one for one in every if one))
    if op in _REPEATS and argument[0] > 0:
        return _of_sequence(argument[2])
    return None
