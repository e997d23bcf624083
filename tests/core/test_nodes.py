"""At which nodes' door a fault lies, and what is told of them afterwards."""

from __future__ import annotations

from typing import Any

import pytest

from tests.ledger import facts
from trainguard.core.action import ActionKind, OutcomeStatus
from trainguard.core.decision import Decision, Plan, Verdict
from trainguard.core.history import NodeEvent
from trainguard.core.nodes import accused_nodes, node_records, plain_restart_is_left
from trainguard.core.observation import Liveness
from trainguard.core.report import IncidentFile, incident_report
from trainguard.core.verdict import Diagnosis, FaultClass, Suspect

AGAIN, WITHOUT = ActionKind.RESTART, ActionKind.RESTART_EXCLUDING_NODE
TWO = (Suspect(rank=3, node="n2"), Suspect(rank=0, node="n1"))


@pytest.mark.parametrize(
    ("found", "bad", "nodes"),
    [
        ({"actions": (WITHOUT, ActionKind.DRAIN_NODE)}, (), ("n2", "n1")),
        ({"actions": (WITHOUT, AGAIN)}, (), ("n2", "n1")),
        ({"actions": (AGAIN, WITHOUT)}, (), ("n2",)),
        ({"actions": (AGAIN, WITHOUT)}, ("n1",), ("n1",)),
        ({"actions": (WITHOUT,), "suspects": ()}, ("n1",), ("n1",)),
        ({"actions": (WITHOUT,), "suspects": (Suspect(node="evil"), Suspect(rank=1))}, (), ()),
        ({"actions": (WITHOUT,), "confidence": 0.45}, (), ()),
        ({"actions": (AGAIN,)}, ("n1",), ()),
        ({"actions": (ActionKind.FIX_CODE_OR_CONFIG,), "fault": FaultClass.CODE_BUG}, (), ()),
        ({"actions": ()}, (), ()),
    ],
)
def test_a_fault_lies_at_the_door_of_nodes_whose_leaving_out_may_mend_it(
    found: dict[str, Any], bad: tuple[str, ...], nodes: tuple[str, ...]
) -> None:
    known = {"fault": FaultClass.NCCL_COMM, "cause": "a rank left", "confidence": 0.9, "suspects": TWO}
    seen = facts.observation(liveness=Liveness.FAILED, nodes=("n1", "n2"), bad_nodes=bad)
    assert accused_nodes(Diagnosis(**{**known, **found}), seen) == nodes


REFUSED, DONE = OutcomeStatus.REFUSED, OutcomeStatus.DONE


@pytest.mark.parametrize(
    ("kinds", "statuses", "ladder", "attempt", "left"),
    [
        ((WITHOUT,), (REFUSED,), (AGAIN, WITHOUT), 0, True),
        ((ActionKind.SET_ASIDE_CHECKPOINT, WITHOUT), (DONE, REFUSED), (AGAIN, WITHOUT), 0, True),
        ((WITHOUT,), (REFUSED,), (AGAIN, WITHOUT), 1, False),
        ((WITHOUT,), (REFUSED,), (WITHOUT, AGAIN), 0, False),
        ((WITHOUT,), (DONE,), (AGAIN, WITHOUT), 0, False),
        ((AGAIN,), (REFUSED,), (AGAIN, WITHOUT), 0, False),
        ((ActionKind.SET_ASIDE_CHECKPOINT, WITHOUT), (REFUSED,), (AGAIN, WITHOUT), 0, False),
        ((ActionKind.RUN_RECOVERY_SCRIPT, WITHOUT), (DONE, REFUSED), (AGAIN, WITHOUT), 0, False),
        ((), (), (AGAIN, WITHOUT), 0, False),
    ],
)
def test_where_the_nodes_cannot_be_left_out_the_plain_restart_is_left_once(
    kinds: tuple[ActionKind, ...],
    statuses: tuple[OutcomeStatus, ...],
    ladder: tuple[ActionKind, ...],
    attempt: int,
    left: bool,
) -> None:
    found = Diagnosis(fault=FaultClass.NCCL_COMM, cause="a rank left", actions=ladder)
    steps = tuple(
        Decision(action=facts.action(kind), verdict=Verdict.RUN, basis="policy.allow", at=facts.NOW)
        for kind in kinds
    )
    outcomes = [facts.outcome(status=status) for status in statuses]
    assert plain_restart_is_left(found, Plan(incident="inc00001", steps=steps), outcomes, attempt) is left


def event(node: str, incident: str, job: str, fault: FaultClass, at: float) -> NodeEvent:
    return NodeEvent(node=node, incident=incident, job_key=job, fault=fault, at=at)


EVENTS = (
    event("n1", "a", "j1", FaultClass.NODE_FAILURE, facts.NOW - 50),
    event("n2", "b", "j1", FaultClass.GPU_HARDWARE, facts.NOW - 40),
    event("n2", "c", "j2", FaultClass.NCCL_COMM, facts.NOW - 30),
    event("n2", "c", "j2", FaultClass.GPU_HARDWARE, facts.NOW - 20),
)


def test_nodes_are_summed_up_with_the_newest_first() -> None:
    second, first = node_records(EVENTS)
    assert (second.node, second.incidents, second.jobs, second.newest_at) == ("n2", 2, 2, facts.NOW - 20)
    assert second.faults == (FaultClass.GPU_HARDWARE, FaultClass.NCCL_COMM)
    assert (first.node, first.incidents, first.jobs) == ("n1", 1, 1)


def test_the_report_tells_what_its_nodes_are_known_for() -> None:
    known = IncidentFile(job=facts.JOB, incident=facts.incident())
    assert "## Nodes" not in incident_report(known)
    page = incident_report(known.model_copy(update={"node_events": EVENTS}))
    assert "| n2 | gpu_hardware, nccl_comm | 2 | 2 | 2026-05-28 20:26:20 UTC |\n| n1 |" in page
