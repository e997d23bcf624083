"""What a model may change about a diagnosis, and what never."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainguard.core.action import ActionKind
from trainguard.core.evidence import Citation
from trainguard.core.grounding import (
    MODEL_CONFIDENCE_CAP,
    Advice,
    AdviceRejectedError,
    SentLine,
    combine,
    ground,
    wants_advice,
)
from trainguard.core.observation import LogSource
from trainguard.core.verdict import Diagnosis, FaultClass, SaidBy, Suspect

CITATION = Citation(source=LogSource(name="rank0.log"), line=7, text="OSError: stale handle")
SENT = (SentLine(shown="OSError: stale handle", citation=CITATION),)
UNKNOWN = Diagnosis(fault=FaultClass.UNKNOWN, cause="nothing known", suspects=(Suspect(node="gpu-1"),))
ADVICE = Advice(
    fault=FaultClass.STORAGE_IO,
    cause="The file server went away.",
    transient=True,
    actions=(ActionKind.RESTART,),
    citations=(CITATION,),
    confidence=1.0,
    model="test",
)


def ruled(fault: FaultClass, confidence: float) -> Diagnosis:
    return Diagnosis(
        fault=fault, cause="by rule", by=SaidBy.RULE, confidence=confidence, actions=(ActionKind.RESTART,)
    )


@pytest.mark.parametrize(
    ("diagnosis", "wanted"),
    [
        (UNKNOWN, True),
        (ruled(FaultClass.NCCL_COMM, 0.3), True),
        (ruled(FaultClass.NCCL_COMM, 0.5), False),
        (ruled(FaultClass.GPU_HARDWARE, 0.95), False),
        (ruled(FaultClass.HEALTHY, 0.1), False),
    ],
)
def test_a_model_is_wanted_only_where_the_rules_are_not_sure(diagnosis: Diagnosis, wanted: bool) -> None:
    assert wants_advice(diagnosis) is wanted


def test_an_unknown_cause_becomes_the_models_but_never_certain_and_never_with_its_suspects() -> None:
    combined = combine(UNKNOWN, ADVICE)
    assert (combined.fault, combined.by, combined.cause) == (
        FaultClass.STORAGE_IO,
        SaidBy.MODEL,
        ADVICE.cause,
    )
    assert combined.confidence == MODEL_CONFIDENCE_CAP < 0.5
    assert combined.citations == (CITATION,)
    assert combined.suspects == UNKNOWN.suspects


def test_a_certain_rule_only_notes_the_disagreement() -> None:
    certain = ruled(FaultClass.GPU_HARDWARE, 0.9)
    combined = combine(certain, ADVICE)
    assert combined == certain.model_copy(update={"model_opinion": combined.model_opinion})
    assert combined.model_opinion == "storage_io: The file server went away. (test)"


def test_an_unsure_rule_keeps_its_word_and_loses_confidence_where_a_model_disagrees() -> None:
    combined = combine(ruled(FaultClass.NCCL_COMM, 0.48), ADVICE)
    assert (combined.fault, combined.by) == (FaultClass.NCCL_COMM, SaidBy.RULE)
    assert combined.confidence == MODEL_CONFIDENCE_CAP
    assert combined.model_opinion
    assert combined.look_next


@pytest.mark.parametrize("advice", [None, ADVICE.model_copy(update={"fault": FaultClass.UNKNOWN})])
def test_no_opinion_changes_nothing(advice: Advice | None) -> None:
    for diagnosis in (UNKNOWN, ruled(FaultClass.NCCL_COMM, 0.3)):
        assert combine(diagnosis, advice) == diagnosis


def test_agreement_raises_nothing() -> None:
    unsure = ruled(FaultClass.STORAGE_IO, 0.3)
    assert combine(unsure, ADVICE) == unsure


@given(
    st.sampled_from(FaultClass),
    st.floats(0, 1),
    st.sampled_from(FaultClass),
    st.floats(0, 1),
    st.lists(st.sampled_from(ActionKind), max_size=3).map(tuple),
)
def test_no_advice_raises_confidence_to_where_destruction_may_rest_on_it(
    fault: FaultClass, confidence: float, said: FaultClass, sure: float, actions: tuple[ActionKind, ...]
) -> None:
    diagnosis = ruled(fault, confidence)
    advice = ADVICE.model_copy(update={"fault": said, "confidence": sure, "actions": actions})
    combined = combine(diagnosis, advice)
    assert combined.confidence <= max(confidence, MODEL_CONFIDENCE_CAP)
    assert combined.suspects == diagnosis.suspects
    if fault is not FaultClass.UNKNOWN:
        assert (combined.fault, combined.actions) == (diagnosis.fault, diagnosis.actions)


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    )
)
def test_any_other_json_is_rejected_and_never_an_accident(value: object) -> None:
    with pytest.raises(AdviceRejectedError):
        ground(json.dumps(value), SENT, (ActionKind.RESTART,))


def test_the_sentence_of_a_model_is_one_short_visible_line() -> None:
    answer = {
        "fault": "storage_io",
        "cause": "first\nsecond \x1b[31m\u202ethird " + "x" * 1000,
        "transient": None,
        "actions": [],
        "citations": ["OSError: stale handle"],
        "confidence": 0.5,
    }
    advice = ground(json.dumps(answer), SENT, ())
    assert "\n" not in advice.cause
    assert "\x1b" not in advice.cause
    assert "\\u202e" in advice.cause
    assert len(advice.cause) <= 300
