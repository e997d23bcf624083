"""Checks a model's answer against what it was shown, and puts it beside the rules' diagnosis.

A model sees text that anybody may have written. So its answer counts only in a closed form, only with lines that
were really sent, only with actions that were offered, and never against a rule that is certain.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from trainguard.core.action import ActionKind
from trainguard.core.errors import TrainguardError
from trainguard.core.evidence import Citation
from trainguard.core.fact import Fact
from trainguard.core.message_formats import clean
from trainguard.core.verdict import Diagnosis, FaultClass, SaidBy

_W = TypeVar("_W", FaultClass, ActionKind)
CERTAIN = 0.5
"""From this confidence on a rule's word stands and no model is asked."""
MODEL_CONFIDENCE_CAP = 0.45
"""A model alone never reaches the confidence on which anything destructive may rest."""
_ANSWER_LIMIT = 32_000
_CAUSE_LIMIT = 300
_FENCED = re.compile(r"\s*```(?:json)?\s*\n(.*)\n\s*```\s*", re.DOTALL)
_TELLING = re.compile(r"[^\W\d_]{3}")
"""A citation must hold at least a word: a bracket or a number shows nothing."""
FAULTS = tuple(fault for fault in FaultClass if fault is not FaultClass.HEALTHY)
"""What a model may say. Not `healthy`: nobody may talk a failure away."""


class AdviceRejectedError(TrainguardError):
    """The answer has not the form that was asked for, or claims what was not shown."""


class SentLine(Fact):
    """One line as the model saw it, and what it stands for."""

    shown: str
    citation: Citation
    """The same line with its real names."""


class Advice(Fact):
    """A model's answer that passed every check."""

    fault: FaultClass
    cause: str
    transient: bool | None = None
    actions: tuple[ActionKind, ...] = ()
    citations: tuple[Citation, ...]
    confidence: float
    model: str = ""


class ModelAnswer(BaseModel):
    """The closed form a model must answer in."""

    model_config = ConfigDict(extra="forbid", strict=True)

    fault: str
    cause: str = Field(min_length=1, max_length=2000)
    transient: bool | None
    actions: list[str] = Field(max_length=8)
    citations: list[str] = Field(min_length=1, max_length=8)
    confidence: float = Field(ge=0, le=1, allow_inf_nan=False)


def wants_advice(diagnosis: Diagnosis, certain: float = CERTAIN) -> bool:
    """Whether a model may be asked: the rules found nothing, or are not sure."""
    if diagnosis.fault is FaultClass.HEALTHY:
        return False
    return diagnosis.fault is FaultClass.UNKNOWN or diagnosis.confidence < certain


def answer_schema(offered: Iterable[ActionKind]) -> dict[str, object]:
    """The JSON schema of an answer, for models that can be held to one."""
    nullable_boolean = {"type": ["boolean", "null"]}
    properties: dict[str, object] = {
        "fault": {"type": "string", "enum": [fault.value for fault in FAULTS]},
        "cause": {"type": "string"},
        "transient": nullable_boolean,
        "actions": {
            "type": "array",
            "items": {"type": "string", "enum": sorted(kind.value for kind in offered)},
        },
        "citations": {"type": "array", "items": {"type": "string"}},
        "confidence": {"type": "number"},
    }
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def ground(
    answer: str, sent: Iterable[SentLine], offered: Iterable[ActionKind], *, model: str = "", marker: str = ""
) -> Advice:
    """Check an answer. Raises AdviceRejectedError with the reason."""
    parsed = _parse(answer)
    fault = _one_of(parsed.fault, FAULTS, "fault")
    allowed = tuple(offered)
    actions = tuple(dict.fromkeys(_one_of(word, allowed, "action") for word in parsed.actions))
    lines = {line.shown.strip(): line.citation for line in sent}
    return Advice(
        fault=fault,
        cause=_sentence(parsed.cause),
        transient=parsed.transient,
        actions=actions,
        citations=tuple(_cited(_unmarked(text, marker), lines) for text in dict.fromkeys(parsed.citations)),
        confidence=parsed.confidence,
        model=model,
    )


def combine(diagnosis: Diagnosis, advice: Advice | None, certain: float = CERTAIN) -> Diagnosis:
    """Put an advice beside a diagnosis. A certain one only notes the disagreement; suspects are never the model's."""
    if advice is None or advice.fault is FaultClass.UNKNOWN:
        return diagnosis
    if diagnosis.fault is FaultClass.UNKNOWN:
        return _adopted(diagnosis, advice)
    if advice.fault is diagnosis.fault:
        return diagnosis
    noted = diagnosis.model_copy(update={"model_opinion": _opinion(advice)})
    if not wants_advice(diagnosis, certain):
        return noted
    hint = "The rules are not sure and the language model disagrees: a person should read the cited lines."
    return noted.model_copy(
        update={
            "confidence": min(diagnosis.confidence, MODEL_CONFIDENCE_CAP),
            "look_next": (*diagnosis.look_next, hint),
        }
    )


def _adopted(diagnosis: Diagnosis, advice: Advice) -> Diagnosis:
    return diagnosis.model_copy(
        update={
            "fault": advice.fault,
            "cause": advice.cause,
            "by": SaidBy.MODEL,
            "confidence": min(advice.confidence, MODEL_CONFIDENCE_CAP),
            "transient": advice.transient,
            "citations": advice.citations,
            "actions": advice.actions,
        }
    )


def _opinion(advice: Advice) -> str:
    by = f" ({advice.model})" if advice.model else ""
    return f"{advice.fault.value}: {advice.cause}{by}"


def _parse(answer: str) -> ModelAnswer:
    if len(answer) > _ANSWER_LIMIT:
        raise AdviceRejectedError(f"the answer is {len(answer)} characters long")
    fenced = _FENCED.fullmatch(answer)
    try:
        return ModelAnswer.model_validate(json.loads(fenced[1] if fenced else answer))
    except (json.JSONDecodeError, RecursionError) as problem:
        raise AdviceRejectedError("the answer is not JSON") from problem
    except ValidationError as problem:
        wrong = ", ".join(
            sorted({".".join(map(str, error["loc"][:1])) or "form" for error in problem.errors()})
        )
        raise AdviceRejectedError(f"the answer has not the form asked for: {wrong}") from problem


def _one_of(word: str, allowed: tuple[_W, ...], what: str) -> _W:
    for one in allowed:
        if one.value == word:
            return one
    raise AdviceRejectedError(f"{what} {word[:60]!r} was not offered")


def _cited(text: str, lines: dict[str, Citation]) -> Citation:
    bare = text.strip()
    if not _TELLING.search(bare) or bare not in lines:
        raise AdviceRejectedError(f"the cited line is not in the evidence: {bare[:120]!r}")
    return lines[bare]


def _unmarked(text: str, marker: str) -> str:
    head, bar, rest = text.partition("|")
    return rest if marker and bar and head.strip().startswith(marker) else text


def _sentence(text: str) -> str:
    line = " ".join(clean(text).split())
    return line if len(line) <= _CAUSE_LIMIT else line[: _CAUSE_LIMIT - 1].rstrip() + "…"
