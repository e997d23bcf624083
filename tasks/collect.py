"""Gathering what a diagnosis needs, and finding the root cause in it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

from prefect import task
from prefect.cache_policies import NO_CACHE

from trainguard.core.checkpoint import Checkpoint
from trainguard.core.diagnosis import diagnose as find_fault
from trainguard.core.diagnosis import streams_of
from trainguard.core.errors import SchedulerError
from trainguard.core.evidence import Evidence, EvidenceKind
from trainguard.core.incident import Incident
from trainguard.core.masking import mask
from trainguard.core.observation import LogSource, Observation
from trainguard.core.signal_meaning import meaning_of
from trainguard.core.verdict import Diagnosis, FaultClass
from trainguard.schedulers.sharing import answered
from trainguard.tasks.context import GuardContext, current_guard
from trainguard.tasks.durable import durably

logger = logging.getLogger(__name__)

GUESSED = 0.4
"""Confidence up to which a cause is no more than a general word among the last lines: a signal shows more."""
COLLECT_SECONDS = 300.0
"""Seconds that evidence, or a look at the checkpoints, may take; adapters give up sooner."""


@task(name="collect evidence", retries=0, cache_policy=NO_CACHE, persist_result=False)
async def collect_evidence(incident: Incident) -> tuple[Evidence, ...]:
    """Save what the scheduler and the logs tell before anything is stopped. Masked, then stored."""
    context = current_guard()
    assert context.observation is not None
    told, gate = await asyncio.gather(_told(context, context.observation), _gate_evidence(context))
    evidence = tuple(item.model_copy(update={"text": mask(item.text)}) for item in (*told, *gate))
    await durably(context.ledger.add_evidence, context.lease, incident.id, evidence)
    return evidence


async def _told(context: GuardContext, observation: Observation) -> Sequence[Evidence]:
    """What the scheduler and the logs tell."""
    try:
        return await answered(context.scheduler.collect(context.job, observation), COLLECT_SECONDS)
    except SchedulerError as problem:
        return [_unreadable(context, f"evidence could not be collected: {problem}")]


@task(name="find root cause", retries=0, cache_policy=NO_CACHE, persist_result=False)
async def find_root_cause(incident: Incident, evidence: Sequence[Evidence]) -> Diagnosis:
    """Let the rules judge, off the event loop; give the signals' own meaning where they find nothing."""
    context = current_guard()
    found = await asyncio.to_thread(find_fault, streams_of(evidence), context.catalogue, context.observation)
    return by_signals(incident, found)


def by_signals(incident: Incident, diagnosis: Diagnosis) -> Diagnosis:
    """Say what the signals show where the evidence alone shows nothing: a stall, a NaN, a question."""
    shown = meaning_of(incident)
    if shown is None:
        return diagnosis
    if diagnosis.fault in {FaultClass.UNKNOWN, FaultClass.HEALTHY} or diagnosis.confidence <= GUESSED:
        return shown
    return diagnosis


@task(name="look at checkpoints", retries=0, cache_policy=NO_CACHE, persist_result=False)
async def look_at_checkpoints() -> tuple[Checkpoint, ...] | None:
    """Ask the checkpoint gate what a restart could resume from; None where nothing could be learnt."""
    return await checkpoints_now(current_guard())


async def checkpoints_now(context: GuardContext) -> tuple[Checkpoint, ...] | None:
    """The same, without a task run. Whatever is wrong with the cluster or its answer, it is told and not raised."""
    try:
        return await answered(context.scheduler.checkpoints(context.job), COLLECT_SECONDS)
    except SchedulerError as problem:
        logger.warning("the checkpoints of %s can't be looked at: %s", context.job.name, problem)
        return None


async def _gate_evidence(context: GuardContext) -> list[Evidence]:
    """What the checkpoint gate says of bad checkpoints, in a form that rules can read."""
    found = await checkpoints_now(context) or ()
    lines = [
        f"trainguard checkpoint gate: bad checkpoint {c.path}: {c.problem}" for c in found if c.good is False
    ]
    if not lines:
        return []
    source = LogSource(name="checkpoint gate", kind="status")
    return [Evidence(source=source, kind=EvidenceKind.STATUS, text="\n".join(lines), at=context.clock())]


def _unreadable(context: GuardContext, why: str) -> Evidence:
    return Evidence(
        source=LogSource(name=context.job.ref.scheduler, kind="status"),
        kind=EvidenceKind.STATUS,
        text=why,
        at=context.clock(),
    )
