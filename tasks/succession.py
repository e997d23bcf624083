"""Handing a long guard over to a fresh flow run before its page grows too long."""

from __future__ import annotations

import logging
from datetime import datetime

from prefect.context import FlowRunContext
from prefect.deployments import arun_deployment

from trainguard.tasks.context import GuardContext
from trainguard.tasks.duty import remember_later
from trainguard.tasks.prefect_view import AWAY, prefect

logger = logging.getLogger(__name__)

AD_HOC = "started by who started this one"


async def call_successor(context: GuardContext, deadline: datetime | None) -> str:
    """Start the run that goes on with this guard; empty where Prefect is away and it goes on itself.

    A guard without a deployment names no run: whoever started it starts the next one.
    """
    await remember_later(context)
    run = FlowRunContext.get()
    # `prefect.runtime.deployment` would name a patrol's deployment in the guards it runs
    this = run.flow_run if run else None
    own = this.deployment_id if this else None
    if this is None or own is None:
        return AD_HOC
    try:
        # As they were given: those of this run hold loaded blocks, whose secrets are not written out again.
        async with prefect() as client:
            given = (await client.read_flow_run(this.id)).parameters
        until = deadline.isoformat() if deadline else None
        parameters = {**given, "take_over": True, "minutes": None, "until": until}
        successor = await arun_deployment(
            own,
            parameters=parameters,
            timeout=0,
            as_subflow=False,
            idempotency_key=f"after-{context.flow_run_id}",
        )
    except AWAY as problem:
        logger.warning("no successor could be started yet: %s", problem)
        context.checks = 0
        return ""
    return str(successor.id)
