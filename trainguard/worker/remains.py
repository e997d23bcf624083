"""What a stopped or dead guard leaves in Prefect: subflow runs that look alive."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from datetime import datetime
from uuid import UUID

from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterParentFlowRunId,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import FlowRun, StateType

from trainguard.tasks.prefect_view import AWAY, prefect, settled

logger = logging.getLogger(__name__)

ALIVE = [
    StateType.SCHEDULED,
    StateType.PENDING,
    StateType.RUNNING,
    StateType.PAUSED,
    StateType.CANCELLING,
]
PAGE = 200


async def settle_children(run_id: UUID, message: str, since: datetime | None = None) -> bool:
    """End the subflow runs that a guard left: those that look alive, and those that its stop made crash.

    Gives False where Prefect went away meanwhile.
    """
    try:
        async with prefect() as client:
            for child in await _children(client, [run_id]):
                if child.state is None or _is_settled(child, since):
                    continue
                await client.set_flow_run_state(child.id, settled(message), force=True)
    except AWAY as problem:
        logger.warning("subflows of flow run %s may still look alive: %s", run_id, problem)
        return False
    return True


async def _children(client: PrefectClient, parents: Sequence[UUID]) -> list[FlowRun]:
    """All unfinished or crashed descendants, the nearest first. A patrol's are three deep."""
    found: list[FlowRun] = []
    while parents:
        level = await client.read_flow_runs(
            flow_run_filter=FlowRunFilter(
                parent_flow_run_id=FlowRunFilterParentFlowRunId(any_=list(parents)),
                state=FlowRunFilterState(type=FlowRunFilterStateType(any_=[*ALIVE, StateType.CRASHED])),
            ),
            limit=PAGE,
        )
        found += level
        parents = [run.id for run in level]
    return found


def _is_settled(run: FlowRun, since: datetime | None) -> bool:
    if run.state is None or not run.state.is_final():
        return False
    return since is None or run.end_time is None or run.end_time < since
