"""Values that one line of a training log prints beside its counter: loss, gradient norm, time of a step.

The expressions are linear on lines of bounded length.
"""

from __future__ import annotations

import re

_NUMBER = r"[-+]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d+)?"
VALUE = rf"(?:{_NUMBER}|[-+]?(?:nan|inf(?:inity)?)\b)"
_GIVES = r"['\"]?(?:\s{0,8}[:=]\s{0,8}|\s{1,8})['\"]?(?:tensor\()?"

_LOSS = re.compile(
    rf"(?<![\w])(?P<other>(?:val\w*|eval\w*|test|dev)[ _/.-]{{1,2}})?(?:train(?:ing)?[ _/.-]{{1,2}})?"
    rf"(?:lm[ _]|total_|avg_|mean_|ce_)?loss(?:_step)?{_GIVES}(?P<value>{VALUE})",
    re.IGNORECASE,
)
_GRAD_NORM = re.compile(rf"(?:grad[_ /]?norm|gnorm){_GIVES}(?P<value>{VALUE})", re.IGNORECASE)
_SKIPPED = re.compile(r"overflow|number of skipped iterations:\s{0,8}[1-9]", re.IGNORECASE)

# A word that the line must hold, the expression, and the unit of its number in seconds; None means a rate.
_STEP_TIMES: tuple[tuple[str, re.Pattern[str], float | None], ...] = tuple(
    (word, re.compile(expression.replace("#", rf"(?P<value>{_NUMBER})")), unit)
    for word, expression, unit in (
        ("s/", r"[\s,:]#\s?s/(?:it|step|batch)\b", 1.0),
        ("/s", r"[\s,:]#\s?(?:it|steps?|batch(?:es)?)/s\b", None),
        ("(ms): ", r"elapsed time per iteration \(ms\): #", 1e-3),
        ("(s): ", r"elapsed time per iteration \(s\): #", 1.0),
        ("iter time", r"\biter time \(s\): #", 1.0),
        ("completed step", r"\bcompleted step: \d+, seconds: #", 1.0),
        ("time ", r"\btime #ms", 1e-3),
        ("step_avg", r"\bstep_avg:#ms", 1e-3),
        ("ms/", r"\s#ms/(?:step|it)\b", 1e-3),
        ("us/", r"\s#us/(?:step|it)\b", 1e-6),
        ("took", r"\btook\s+#\s?s\b", 1.0),
        ("ups", r"\bups['\"]?[=:] ?['\"]?#", None),
    )
)


def read_loss(line: str) -> float | None:
    """Give the training loss of a line; NaN and infinity are losses, those of evaluations are not."""
    for match in _LOSS.finditer(line):
        if not match["other"]:
            return float(match["value"])
    return None


def read_grad_norm(line: str) -> float | None:
    """Give the gradient norm; a step that the loss scaler skipped has none."""
    match = _GRAD_NORM.search(line) if "norm" in line.lower() else None
    return float(match["value"]) if match and not _SKIPPED.search(line) else None


def read_step_seconds(line: str) -> float | None:
    """Give the time of one step where the line tells it, in seconds."""
    for word, pattern, unit in _STEP_TIMES:
        if word in line and (match := pattern.search(line)):
            value = float(match["value"])
            seconds = value * unit if unit is not None else (1 / value if value > 0 else 0.0)
            return seconds if 1e-6 <= seconds <= 1e6 else None
    return None


def has_loss(line: str) -> bool:
    """Whether a line prints any loss, an evaluation's too."""
    return _LOSS.search(line) is not None
