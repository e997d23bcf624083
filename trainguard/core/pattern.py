"""Owner-written regular expressions, checked before they meet a log.

A pattern runs over text that nobody vouches for. Python's engine backtracks, and a repeated group that
repeats inside itself can take longer than the job; such a pattern is refused when it is loaded.
"""

from __future__ import annotations

import re
from functools import lru_cache

from trainguard.core.errors import ConfigError

MAX_PATTERN = 500
"""Characters."""
MAX_LINE = 1_000
"""Characters of a line that an owner's pattern is tried on."""

_FIELD = "watching.progress_pattern"
_GROUPS = frozenset({"step", "total", "loss"})
_TOKEN = re.compile(r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]|\(\?#[^)]*\)|[*+?]|\{\d*,?\d*\}|[()|]", re.DOTALL)
_SINGLE = re.compile(r"\{0?[01]\}|\{0?,1\}|\{1,1\}|\?")


@lru_cache(maxsize=256)
def compile_pattern(pattern: str) -> re.Pattern[str]:
    """Compile `Watching.progress_pattern`.

    Raises ConfigError where it is no regular expression, is too long, lacks the group `step`, has other
    named groups than `step`, `total` and `loss`, or repeats a group that repeats or branches inside.
    """
    if len(pattern) > MAX_PATTERN:
        raise ConfigError(_FIELD, f"is longer than {MAX_PATTERN} characters")
    try:
        compiled = re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        raise ConfigError(_FIELD, f"is no regular expression: {error}") from error
    names = set(compiled.groupindex)
    if "step" not in names:
        raise ConfigError(
            _FIELD, "has no group named step", r"write e.g. done (?P<step>\d+) of (?P<total>\d+)"
        )
    if names - _GROUPS:
        raise ConfigError(
            _FIELD, f"has a group {sorted(names - _GROUPS)[0]!r}; known are step, total and loss"
        )
    if _explodes(pattern):
        raise ConfigError(
            _FIELD,
            "repeats a group that repeats or branches inside: it could run for ever on a hostile line",
            "take the inner + or * or | out of the repeated group",
        )
    return compiled


def _explodes(pattern: str) -> bool:
    """Whether a group with a repetition or a branch inside is itself repeated."""
    open_groups: list[bool] = [False]
    closed = False
    for match in _TOKEN.finditer(pattern):
        piece = match.group()
        after_group = closed and pattern[match.start() - 1] == ")"
        closed = False
        if piece == "(":
            open_groups.append(False)
        elif piece == ")" and len(open_groups) > 1:
            closed = open_groups.pop()
            open_groups[-1] = open_groups[-1] or closed
        elif piece == "|":
            open_groups[-1] = True
        elif piece[0] in "*+{" and not _SINGLE.fullmatch(piece):
            if after_group:
                return True
            open_groups[-1] = True
    return False
