"""What a person reads in the approval form. Short: what must be seen stands beside the decision's field.

Prefect gives the text above the form the room that its fields leave, and makes the form as wide as the longest word.
"""

from __future__ import annotations

import re

from trainguard.core.decision import Verdict
from trainguard.core.masking import mask
from trainguard.core.message_formats import breakable, clean, markdown_escape
from trainguard.core.report import IncidentFile, action_detail, what_happened, where, words

_LINES = 3
_LINE = 240
"""Characters of a cited line: the report has it whole."""
_MARKUP = re.compile(r"([*`\[\]<>&\\])")


def approval_page(known: IncidentFile) -> str:
    """Give what stands above the form: the trouble, its cause and the lines that show it, why it is asked."""
    incident, found = known.incident, known.diagnosis
    steps = known.plan.steps if known.plan else ()
    why = dict.fromkeys(step.basis for step in steps if step.verdict is Verdict.ASK)
    parts = [f"**{markdown_escape(known.job.name)}: {what_happened(incident)}**, incident `{incident.id}`"]
    if found is not None:
        parts.append(f"{markdown_escape(found.cause)} ({found.fault}, {found.confidence:.0%} sure)")
        cited = [
            f"- {markdown_escape(f'{where(c)} {mask(c.text)[:_LINE]}')}" for c in found.citations[:_LINES]
        ]
        parts += ["\n".join(cited)] if cited else []
    parts += [f"Asked because: {markdown_escape(basis)}" for basis in why]
    return breakable("\n\n".join(parts))


def approval_question(known: IncidentFile) -> str:
    """Give what stands at the decision's field: what would be done.

    Prefect's first UI reads it as Markdown, its second as plain text: only what would be markup is escaped.
    """
    steps = known.plan.steps if known.plan else ()
    said = "; then ".join(f"{words(step.action.kind)} {action_detail(step)}".rstrip() for step in steps)
    return breakable(_MARKUP.sub(r"\\\1", mask(clean(f"May this be done? {said}"))))
