"""What a log tells beside its counters: checkpoints written, pauses announced, workers lost."""

from __future__ import annotations

import re
from enum import StrEnum
from typing import NamedTuple

from trainguard.core.log_formats import MAX_STEP


class Pause(StrEnum):
    """What the log announced that makes a silence plausible."""

    CHECKPOINT = "checkpoint"
    EVALUATION = "evaluation"


class Saved(NamedTuple):
    """A checkpoint that the log says was written."""

    step: int | None
    """None where the line does not name it."""


# e.g. Saved checkpoint to gs://bucket/checkpoints/step-500 for step 500
# e.g. successfully saved checkpoint from iteration     500 to /ckpt   (Megatron-LM)
# e.g. Saving model checkpoint to out/checkpoint-500                   (HF Trainer; it says no more)
_SAVED = re.compile(
    r"\b(?:saved|wrote|written|finished saving)\b[^|]{0,80}?(?:checkpoint|ckpt|\bmodel\b|global_step)"
    r"|(?:checkpoint|ckpt)[^|]{0,120}\b(?:saved|written)\b|saving model checkpoint to",
    re.IGNORECASE,
)
_SAVED_AT = re.compile(
    r"(?:\bsteps?|iteration|iter|checkpoint|global_step|-step)[\s=_:-]{1,12}(?P<step>\d{1,12})(?![\d.]*\d)",
    re.IGNORECASE,
)
_SAVES = re.compile(r"\b(?:saving|writing)\b[^|]{0,40}?(?:checkpoint|ckpt|\bmodel\b|state)", re.IGNORECASE)
# e.g. ray.exceptions.OwnerDiedError: ... · The node ... has been marked dead · (autoscaler) Error: No available node
_TROUBLE: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(expression, re.IGNORECASE), words)
    for expression, words in (
        (r"OwnerDiedError", "the log says that the owner of an object died"),
        (
            r"NodeDiedError|\bnode\b[^|]{0,80}\b(?:died|dead|lost|not ready)\b|dead node",
            "the log says that a node died",
        ),
        (
            r"ActorDiedError|\b(?:worker|raylet|actor)\b[^|]{0,40}\b(?:died|dead)\b",
            "the log says that a worker died",
        ),
        (
            r"unsatisf\w+|infeasible|no available node types|cannot be scheduled right now",
            "the log says that resources asked for are not available",
        ),
    )
)


def read_saved(line: str) -> Saved | None:
    """Give the checkpoint that a line says was written; whether it is good is not said."""
    if not _SAVED.search(line):
        return None
    match = _SAVED_AT.search(line)
    step = int(match["step"]) if match else None
    return Saved(step if step is not None and step <= MAX_STEP else None)


def announces_saving(line: str) -> bool:
    """Whether a line says that a checkpoint begins to be written."""
    return _SAVES.search(line) is not None


def read_trouble(line: str) -> str:
    """Give lost nodes or workers that a line tells of, in our words; empty where it tells of none."""
    return next((words for pattern, words in _TROUBLE if pattern.search(line)), "")
