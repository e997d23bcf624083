"""Making the plan: everything it rests on is gathered first, then pure logic decides."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence

from prefect import task
from prefect.cache_policies import NO_CACHE

from trainguard.core.action import ActionKind, Outcome, OutcomeStatus
from trainguard.core.decision import Plan
from trainguard.core.history import RecoveryRecord
from trainguard.core.incident import Incident
from trainguard.core.nodes import NODE_MEMORY, plain_restart_is_left
from trainguard.core.planning import Situation, plan
from trainguard.core.verdict import FaultClass
from trainguard.tasks.collect import look_at_checkpoints
from trainguard.tasks.context import GuardContext, current_guard
from trainguard.tasks.durable import durably

logger = logging.getLogger(__name__)


async def make_plan(incident: Incident) -> Plan:
    """Look at the checkpoints, then decide."""
    return await decide(incident, await situation(incident))


async def nothing_to_do(incident: Incident) -> str:
    """Say why no action fits an incident's cause."""
    found = await current_guard().ledger.diagnosis(incident.id)
    if found is None:
        return "no cause is known"
    where = f" ({found.code_location})" if found.code_location else ""
    if ActionKind.FIX_CODE_OR_CONFIG in found.actions:
        return f"for its owner to mend: {found.cause}{where}"
    if ActionKind.WAIT_EXTERNAL in found.actions:
        return f"nothing helps but to wait: {found.cause}"
    return f"no action fits: {found.cause}"


async def situation(incident: Incident) -> Situation:
    """Gather what a plan rests on."""
    context = current_guard()
    seen = await context.watch.fresh(context.job.ref)
    found = await context.ledger.diagnosis(incident.id)
    history = await context.ledger.recovery_history(context.job.key)
    assert found is not None
    nodes = seen.nodes or (context.observation.nodes if context.observation else ())
    nodes_before = await context.ledger.node_history(
        context.job.ref, incident.id, context.clock() - NODE_MEMORY
    )
    earlier = [record for record in history if record.incident != incident.id]
    return Situation(
        job=context.job,
        incident=incident,
        diagnosis=found,
        observation=seen if seen.incarnation is not None else context.observation or seen,
        policy=context.policy,
        access=context.access,
        supported=context.scheduler.supports,
        history=tuple(earlier),
        checkpoints=await look_at_checkpoints(),
        known_nodes=frozenset(nodes),
        excluded_nodes=await _excluded(context),
        node_events=tuple(event for event in nodes_before if event.incident != incident.id),
        refused=await _refused(context, incident),
        alike_jobs=await _alike(context, found.fault),
        handlers=context.handlers,
        script_uses=await _script_uses(context, earlier),
        now=context.clock(),
    )


@task(name="decide", retries=0, cache_policy=NO_CACHE, persist_result=False)
async def decide(incident: Incident, known: Situation) -> Plan:
    """Decide by the policy and write the decisions down."""
    context = current_guard()
    made = plan(known)
    for step in made.steps:
        logger.info("%s %s: %s", step.verdict, step.action.kind, step.basis)
    await durably(context.ledger.add_decisions, context.lease, incident.id, made)
    return made


async def goes_without_detour(incident: Incident, plan: Plan, outcomes: Sequence[Outcome]) -> bool:
    """Whether a plain restart is to be decided on, now that the scheduler can't leave the nodes out."""
    found = await current_guard().ledger.diagnosis(incident.id)
    return found is not None and plain_restart_is_left(found, plan, outcomes, incident.attempt)


async def _refused(context: GuardContext, incident: Incident) -> dict[ActionKind, str]:
    return {
        record.intent.action.kind: record.outcome.detail
        for record in await context.ledger.intents(incident.id)
        if record.outcome is not None and record.outcome.status is OutcomeStatus.REFUSED
    }


async def _script_uses(context: GuardContext, history: Sequence[RecoveryRecord]) -> dict[str, int]:
    """Count the runs of each recovery script since the job last got past one of its failures."""
    uses: Counter[str] = Counter()
    for record in history:
        if record.progressed:
            break
        intents = await context.ledger.intents(record.incident) if context.handlers else ()
        uses.update(known.intent.action.handler for known in intents if known.intent.action.handler)
    return dict(uses)


async def _excluded(context: GuardContext) -> frozenset[str]:
    return frozenset(
        node for intent in await context.ledger.job_intents(context.job.key) for node in intent.action.nodes
    )


async def _alike(context: GuardContext, fault: FaultClass) -> int:
    """Count the jobs of this cluster that failed alike just now, this one included."""
    since = context.clock() - context.policy.budgets.storm_window
    found = await context.ledger.jobs_failed_alike(context.job.ref, fault, since)
    return len(found | {context.job.key})
