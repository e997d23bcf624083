"""The action `run_recovery_script`: the guard runs it itself, at most once, as any other action."""

from __future__ import annotations

import asyncio
import logging
import os
from pathlib import Path

from trainguard.core.action import Action, Fence, Outcome, OutcomeStatus
from trainguard.core.decision import Intent
from trainguard.core.handlers import DEFAULT_TIMEOUT, rule_of
from trainguard.tasks.context import GuardContext
from trainguard.tasks.handler import STOPPED, ScriptResult, run_recovery_script

logger = logging.getLogger(__name__)

_POLL_SECONDS = 1.0


async def perform_script(context: GuardContext, action: Action, fence: Fence) -> Outcome:
    """Run the script of an action once. Whatever keeps it from ending well is told in the outcome."""
    rule = rule_of(context.handlers, action.handler)
    if rule is None or rule.recovery_script != action.script or action.exit_code is None:
        return _outcome(context, fence.token, "the rules file no longer names this script for this exit code")
    try:
        result = await run_recovery_script(
            action.script,
            job_key=context.job.key,
            incident=fence.incident,
            exit_code=action.exit_code,
            attempt=action.incarnation.attempt,
            checkpoint=action.checkpoint,
            timeout=rule.timeout,
            mark=_mark(fence.token),
        )
    except OSError as problem:
        return _outcome(context, fence.token, f"{action.script} could not be run: {problem}")
    return _outcome(context, fence.token, _failure(result), _last_line(result.output))


async def what_became(context: GuardContext, intent: Intent) -> Outcome:
    """Find out how a script ended that a guard before this one started. It is never run again on doubt."""
    rule = rule_of(context.handlers, intent.action.handler)
    deadline = intent.at + (rule.timeout if rule else DEFAULT_TIMEOUT) + _POLL_SECONDS
    said = _mark_of(intent)
    while not said and context.clock() < deadline:
        await asyncio.sleep(_POLL_SECONDS)
        said = _mark_of(intent)
    if said == "0":
        return _outcome(context, intent.fence.token, "")
    how = {"": "whether it did its work is not known", STOPPED: "it was stopped in the middle"}
    return _outcome(
        context, intent.fence.token, f"{intent.action.script}: {how.get(said, f'it exited with {said}')}"
    )


def _outcome(context: GuardContext, fence: str, why_not: str, said: str = "") -> Outcome:
    status = OutcomeStatus.REFUSED if why_not else OutcomeStatus.DONE
    detail = "; it said: ".join(filter(None, (why_not, said))) if why_not else said
    return Outcome(fence=fence, status=status, at=context.clock(), detail=detail)


def _failure(result: ScriptResult) -> str:
    if result.succeeded:
        return ""
    if result.timed_out:
        return f"the recovery script did not end within {result.seconds:.0f} s"
    return f"the recovery script exited with {result.exit_code}"


def _last_line(output: str) -> str:
    return next((line.strip()[:500] for line in reversed(output.splitlines()) if line.strip()), "")


def _mark(fence: str) -> Path:
    base = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
    folder = Path(base).expanduser() / "trainguard" / "scripts"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder / fence


def _mark_of(intent: Intent) -> str:
    """What the script left of its end; nothing where its mark can't be read."""
    try:
        mark = _mark(intent.fence.token)
        return mark.read_text() if mark.is_file() else ""
    except OSError as problem:
        logger.warning("the mark of %s can't be read: %s", intent.action.script, problem)
        return ""
