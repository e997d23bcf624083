"""What a person changes in a plan, and what of it can be done."""

from __future__ import annotations

import pytest

from trainguard.core.action import Action, ActionKind
from trainguard.core.decision import Answer, ApprovalAnswer, Decision, Plan, Verdict
from trainguard.core.job import Incarnation, JobRef
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
