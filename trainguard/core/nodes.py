"""At which nodes' door a fault lies, and what is remembered of them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from trainguard.core.action import ActionKind, Outcome, OutcomeStatus
from trainguard.core.decision import Plan
from trainguard.core.fact import Fact
from trainguard.core.history import NodeEvent
from trainguard.core.observation import Observation
from trainguard.core.verdict import CERTAIN_ENOUGH, Diagnosis, FaultClass

NODE_MEMORY = 30 * 86_400.0
"""Seconds for which a fault laid at a node's door counts."""


class NodeRecord(Fact):
    """What incidents laid at one node's door."""

    node: str
    faults: tuple[FaultClass, ...]
    """Each once, the newest first."""
    incidents: int
    jobs: int
    newest_at: float


def suspect_nodes(diagnosis: Diagnosis, seen: Observation, known: Collection[str]) -> tuple[str, ...]:
    """Give the suspects that the scheduler itself names: a node that only a log names is no target."""
    suspects = [suspect.node for suspect in diagnosis.suspects if suspect.node]
    return tuple(dict.fromkeys(node for node in (*suspects, *seen.bad_nodes) if node in known))


def accused_nodes(diagnosis: Diagnosis, seen: Observation) -> tuple[str, ...]:
    """Give the nodes at whose door a fault lies; none where it is not certain or no other node would mend it."""
    if diagnosis.confidence < CERTAIN_ENOUGH or not any(kind.names_nodes for kind in diagnosis.actions):
        return ()
    suspects = suspect_nodes(diagnosis, seen, seen.nodes)
    if not restarts_first(diagnosis):
        return suspects
    # Of a fault that may pass by itself, the others are often those that complain of the one.
    return tuple(node for node in suspects if node in seen.bad_nodes) or suspects[:1]


def restarts_first(diagnosis: Diagnosis) -> bool:
    """Whether the ladder tries the same nodes once more before it leaves any out."""
    ladder = [kind for kind in diagnosis.actions if kind in _EITHER]
    return ladder[:1] == [ActionKind.RESTART] and ActionKind.RESTART_EXCLUDING_NODE in ladder


def plain_restart_is_left(
    diagnosis: Diagnosis, plan: Plan, outcomes: Sequence[Outcome], attempt: int
) -> bool:
    """Whether the scheduler can't leave the nodes out and the ladder itself would begin with a plain restart.

    Then that is decided on, once: no job stays down for what earlier incidents said of a node.
    """
    kinds = [step.action.kind for step in plan.steps]
    if (
        attempt
        or not outcomes
        or len(outcomes) < len(kinds)
        or outcomes[-1].status is not OutcomeStatus.REFUSED
    ):
        return False
    if kinds[-1] is not ActionKind.RESTART_EXCLUDING_NODE or ActionKind.RUN_RECOVERY_SCRIPT in kinds:
        return False
    return restarts_first(diagnosis)


_EITHER = frozenset({ActionKind.RESTART, ActionKind.RESTART_EXCLUDING_NODE})


def node_records(events: Iterable[NodeEvent]) -> tuple[NodeRecord, ...]:
    """Sum up events by node, the one with the newest first."""
    by_node: dict[str, list[NodeEvent]] = {}
    for event in sorted(events, key=lambda event: event.at, reverse=True):
        by_node.setdefault(event.node, []).append(event)
    return tuple(
        NodeRecord(
            node=node,
            faults=tuple(dict.fromkeys(event.fault for event in known)),
            incidents=len({event.incident for event in known}),
            jobs=len({event.job_key for event in known}),
            newest_at=known[0].at,
        )
        for node, known in by_node.items()
    )


def named_before(events: Iterable[NodeEvent]) -> str:
    """Say which nodes earlier incidents named, and how many did; empty where none did."""
    return "; ".join(
        f"{record.node} was named by {record.incidents} earlier incident{'s' * (record.incidents != 1)} "
        f"of {record.jobs} job{'s' * (record.jobs != 1)} within {NODE_MEMORY / 86_400:.0f} days"
        for record in node_records(events)
    )
