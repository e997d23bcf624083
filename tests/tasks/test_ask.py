"""What a person changes in a plan, and what of it can be done."""

from __future__ import annotations

from typing import Any, cast

import pytest
from pydantic import ValidationError

from tests.ledger import facts
from trainguard.core.action import Action, ActionKind
from trainguard.core.decision import Answer, ApprovalAnswer, Decision, Plan, Verdict
from trainguard.core.errors import ConfigError
from trainguard.core.job import Incarnation, JobRef
from trainguard.core.sizes import parse_size
from trainguard.tasks import ask
from trainguard.tasks.approval_form import ApprovalForm
from trainguard.tasks.ask import as_approved

REF = JobRef(scheduler="slurm", cluster="lab", id="7")
KNOWN = frozenset({"n1", "n2", "n3"})


def plan() -> Plan:
    action = Action(
        kind=ActionKind.RESTART_EXCLUDING_NODE, incarnation=Incarnation(job=REF, token="7.1"), nodes=("n2",)
    )
    step = Decision(action=action, verdict=Verdict.ASK, basis="not whitelisted", at=1.0)
    return Plan(incident="abcdefgh", steps=(step,))


@pytest.mark.parametrize(
    ("wanted", "nodes", "said"),
    [
        (None, ("n2",), ""),
        (("n3",), ("n3",), ""),
        (("n1", "n2"), ("n1", "n2"), ""),
        (("typo",), ("n2",), "no node of this job: typo"),
        (("n3", "typo"), ("n3", "n2"), "no node of this job: typo"),
    ],
)
def test_an_edit_never_leaves_a_plan_without_the_node_it_is_about(
    wanted: tuple[str, ...] | None, nodes: tuple[str, ...], said: str
) -> None:
    answer = ApprovalAnswer(
        request="abcdefgh-0", answer=Answer.APPROVE, by="uma", via="ui", at=2.0, nodes=wanted
    )
    (step,) = as_approved(plan(), answer, KNOWN).steps
    assert (step.action.nodes, step.verdict) == (nodes, Verdict.RUN)
    assert step.basis.startswith("approved by uma (ui)") and said in step.basis
    assert bool(said) == ("plan's are kept" in step.basis)


async def test_a_form_for_a_question_that_lost_its_object_is_named_and_not_entered(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def forms(*_: object) -> list[ApprovalForm]:
        return [ApprovalForm(decision="approve", decided_by="uma")]

    async def enter(*_: object) -> None:
        raise AssertionError("it would count")

    monkeypatch.setattr(ask, "_forms_in_prefect", forms)
    monkeypatch.setattr(ask, "give", enter)
    await ask.name_the_overruled(cast(Any, None), facts.request(), None)
    assert "the answer of uma to inc00001-1 does not count" in caplog.text


@pytest.mark.parametrize("memory", ["", "64G", "1.5t", "999999T", "500000"])
def test_a_size_that_the_form_takes_can_be_read(memory: str) -> None:
    form = ApprovalForm(decision="approve", decided_by="uma", memory=memory)
    assert not memory or parse_size(form.memory) < 2**63


@pytest.mark.parametrize("memory", ["9" * 400, "1" * 7 + "T", "64 apples", "-1"])
def test_a_size_beyond_any_machine_is_refused_by_the_form(memory: str) -> None:
    with pytest.raises(ValidationError):
        ApprovalForm(decision="approve", decided_by="uma", memory=memory)


def test_a_size_beyond_any_machine_is_bad_input_on_the_command_line_too() -> None:
    with pytest.raises(ConfigError, match="more than any machine has"):
        parse_size("9" * 400)
