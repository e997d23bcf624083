"""Asking the language model where rules can't tell and the owner configured one."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from trainguard.advisors import Question
from trainguard.core.action import ActionKind, Scope
from trainguard.core.errors import LedgerUnavailableError
from trainguard.core.evidence import Evidence
from trainguard.core.grounding import combine, wants_advice
from trainguard.core.incident import Incident
from trainguard.core.verdict import Diagnosis
from trainguard.tasks.context import GuardContext, current_guard

logger = logging.getLogger(__name__)

OFFERED = {Scope.NOTHING, Scope.JOB, Scope.WORKSPACE}


class LedgerCache:
    """Keeps answers and spending in the ledger: a guard that comes after another does not pay again, nor anew."""

    def __init__(self, context: GuardContext) -> None:
        self._context = context

    async def get(self, key: str) -> str | None:
        """Give the stored answer, None where there is none or the ledger is away."""
        try:
            return await self._context.ledger.advice(key)
        except LedgerUnavailableError as problem:
            logger.warning("earlier advice can't be looked up: %s", problem)
            return None

    async def put(self, key: str, answer: str) -> None:
        """Store an answer, if the ledger can be written."""
        try:
            await self._context.ledger.keep_advice(key, answer, self._context.clock())
        except LedgerUnavailableError as problem:
            logger.warning("the advice is not kept: %s", problem)


async def ask_advisor(incident: Incident, found: Diagnosis, evidence: Sequence[Evidence]) -> Diagnosis:
    """Give the diagnosis, with the model's advice where it was asked. Without a model nothing changes."""
    context = current_guard()
    if context.model is None or not wants_advice(found):
        return found
    if context.advisor is None:
        context.advisor = context.model.make_advisor(LedgerCache(context))
    told = await context.advisor.consult(_question(context, incident, found, evidence))
    if told.advice is None:
        logger.info("the language model gave no advice: %s", told.reason)
    return combine(found, told.advice)


def _question(
    context: GuardContext, incident: Incident, found: Diagnosis, evidence: Sequence[Evidence]
) -> Question:
    supported = context.scheduler.supports
    offered = [kind for kind in ActionKind if kind.scope in OFFERED and (kind.advice or kind in supported)]
    seen = context.observation
    facts = (
        (("state", seen.native), ("reason", seen.reason), ("exit_code", str(seen.exit_code))) if seen else ()
    )
    return Question(
        incident=incident.id,
        diagnosis=found,
        evidence=tuple(evidence),
        offered=tuple(offered),
        facts=facts,
        known_hosts=seen.nodes if seen else (),
    )
