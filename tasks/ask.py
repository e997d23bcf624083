"""Asking a person: one question, one answer, whichever way it comes."""

from __future__ import annotations

import asyncio
import logging
from typing import Any
from uuid import UUID

from prefect.client.schemas.objects import StateType

from trainguard.core.decision import CANCEL, Answer, ApprovalAnswer, ApprovalRequest, Plan, Verdict
from trainguard.core.incident import Incident
from trainguard.core.observation import Liveness
from trainguard.core.planning import stale
from trainguard.core.sizes import parse_size
from trainguard.tasks.approval_form import ApprovalForm, stored_forms
from trainguard.tasks.check import take_in
from trainguard.tasks.context import GuardContext
from trainguard.tasks.durable import durably
from trainguard.tasks.incidents import note_signals
from trainguard.tasks.prefect_view import AWAY, OURS, prefect, stop_if_cancelled
from trainguard.tasks.wait import stop_if_wanted

logger = logging.getLogger(__name__)

LOOK_SECONDS = 10.0
"""Seconds after which answers are looked for again, whether or not there was a look at the job."""


async def put_question(
    context: GuardContext, incident: Incident, plan: Plan, flow_run_id: str, key: str
) -> ApprovalRequest:
    """Store the question before it is shown; asked again after a crash it keeps its deadline."""
    now = context.clock()
    request = ApprovalRequest(
        id=incident.question,
        incident=incident.id,
        job_key=context.job.key,
        incarnation=incident.incarnation,
        plan=plan,
        asked_at=now,
        deadline=now + context.policy.approval_deadline,
        flow_run_id=flow_run_id,
        keyset=key,
    )
    stored: ApprovalRequest = await durably(context.ledger.ask, context.lease, request)
    return stored


async def earlier_answer(context: GuardContext, request_id: str) -> ApprovalAnswer | None:
    """Give the answer that came while no guard was listening: from the ledger, or from Prefect's stored form."""
    answer = await context.ledger.answer_of(request_id)
    if answer is not None:
        return answer
    request = await context.ledger.request(request_id)
    if request is None:
        return None
    for form in await stored_forms(request):
        answer = await give(context, request, form, "ui")
        if answer is not None:
            return answer
    return None


async def give(
    context: GuardContext, request: ApprovalRequest, form: ApprovalForm, via: str
) -> ApprovalAnswer | None:
    """Enter a form as the one answer. Gives the answer that counts, which may be another's."""
    seen = context.observation
    answer = ApprovalAnswer(
        request=request.id,
        answer=Answer(form.decision),
        by=form.decided_by,
        via=via,
        at=context.clock(),
        note=form.note,
        nodes=tuple(node.strip() for node in form.nodes.split(",") if node.strip()) or None,
        memory_bytes=parse_size(form.memory) if form.memory else None,
    )
    current = seen.incarnation.token if seen is not None and seen.incarnation is not None else None
    result = await durably(context.ledger.answer, answer, current, context.clock())
    if not result.accepted:
        logger.warning("the answer of %s to %s does not count: %s", answer.by, request.id, result.reason)
    standing: ApprovalAnswer | None = result.standing
    return standing


async def wait_for_answer(
    context: GuardContext, incident: Incident, request: ApprovalRequest, pause: asyncio.Task[ApprovalForm]
) -> ApprovalAnswer | None:
    """Wait for the first of: an answer in the ledger, the form in Prefect, our deadline.

    Gives None where the question has lost its object: the job moved on by itself. Raises GuardCancelledError
    where the guard's time is up or a person cancelled it: the question then stays open for the next one.
    """
    refused: list[ApprovalForm] = []
    while True:
        answer: ApprovalAnswer | None = await durably(context.ledger.answer_of, request.id)
        if answer is not None:
            return answer
        answer = await _given_in_prefect(context, request, pause, refused)
        if answer is not None:
            return answer
        if context.clock() >= request.deadline:
            safe = ApprovalForm(decision="refuse", decided_by="nobody", note="the deadline passed")
            return await give(context, request, safe, "deadline")
        if await _refused_by_cancelling(context, request):
            # Prefect does not say who it was.
            refusal = ApprovalForm(decision="refuse", decided_by="who cancelled the run")
            return await give(context, request, refusal, CANCEL)
        if lost_its_object(context, incident, request.plan):
            return None
        await stop_if_wanted(context)
        await _next_look(context, pause)


async def _given_in_prefect(
    context: GuardContext,
    request: ApprovalRequest,
    pause: asyncio.Task[ApprovalForm],
    refused: list[ApprovalForm],
) -> ApprovalAnswer | None:
    """Enter what people filled in, each form once; those that can't count are added to `refused`."""
    entered = await _forms_in_prefect(context, request.id)
    if pause.done():
        entered.append(pause.result())
    for form in entered:
        if form in refused:
            continue
        answer = await give(context, request, form, "ui")
        if answer is not None:
            return answer
        refused.append(form)
    return None


async def name_the_overruled(
    context: GuardContext, request: ApprovalRequest, answer: ApprovalAnswer | None
) -> None:
    """Say on the run's page that a form filled in there does not count: another came first, or the question is void."""
    for form in await _forms_in_prefect(context, request.id):
        if answer is None:
            void = "the question has lost its object"
            logger.warning("the answer of %s to %s does not count: %s", form.decided_by, request.id, void)
        elif (form.decided_by, form.decision) != (answer.by, answer.answer.value):
            await give(context, request, form, "ui")


async def _forms_in_prefect(context: GuardContext, request_id: str) -> list[ApprovalForm]:
    # Read anew: a form that could not be shown was stored under another key.
    request: ApprovalRequest | None = await durably(context.ledger.request, request_id)
    return [] if request is None else await stored_forms(request)


async def _refused_by_cancelling(context: GuardContext, request: ApprovalRequest) -> bool:
    """Whether a person cancelled the question alone.

    Without a page of its own it is shown on the guard's, and Prefect cancels the runs of a cancelled guard or patrol
    with it: that stops the guard and answers nothing.
    """
    if request.flow_run_id == context.flow_run_id or not await _cancelled(request.flow_run_id):
        return False
    return await stop_if_cancelled(context, at_once=True)


async def _cancelled(flow_run_id: str) -> bool:
    """Whether a person cancelled the run that shows the question; that its guard was thought dead is no answer."""
    try:
        async with prefect() as client:
            state = (await client.read_flow_run(UUID(flow_run_id))).state
    except AWAY:
        return False
    if state is None or state.type not in {StateType.CANCELLING, StateType.CANCELLED}:
        return False
    return not (state.message or "").startswith(OURS)


def lost_its_object(context: GuardContext, incident: Incident, plan: Plan) -> str:
    """Say why the question needs no answer any more; empty where it does."""
    seen = context.observation
    if seen is None or seen.liveness is Liveness.UNKNOWN:
        return ""
    reasons = (stale(incident, step.action, seen, context.health, context.step) for step in plan.steps)
    return next((reason for reason in reasons if reason), "")


async def _next_look(context: GuardContext, pause: asyncio.Task[ApprovalForm]) -> None:
    """Take in the next look, unless the form is filled in first. Only the waiting for it is ever broken off."""
    looking = asyncio.create_task(context.watch.next(context.job.ref, after=context.looks))
    waiting: set[asyncio.Task[Any]] = {looking} if pause.done() else {looking, pause}
    try:
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED, timeout=LOOK_SECONDS)
        if looking.done():
            context.looks, seen = looking.result()
            await note_signals(context, await take_in(context, seen))
    finally:
        looking.cancel()


def as_approved(plan: Plan, answer: ApprovalAnswer, known_nodes: frozenset[str]) -> Plan:
    """Give the plan as a person approved it, with the edits made. For a node nobody knows the plan's are kept."""
    steps = []
    for step in plan.steps:
        changes: dict[str, object] = {}
        said = ""
        if answer.nodes is not None and step.action.nodes:
            changes["nodes"], said = _edited(answer.nodes, step.action.nodes, known_nodes)
        if answer.memory_bytes is not None and step.action.kind == "restart_with_more_memory":
            changes["memory_bytes"] = answer.memory_bytes
        verdict = Verdict.RUN if step.verdict is Verdict.ASK else step.verdict
        basis = f"approved by {answer.by} ({answer.via}){said}" if step.verdict is Verdict.ASK else step.basis
        action = step.action.model_copy(update=changes)
        steps.append(
            step.model_copy(update={"action": action, "verdict": verdict, "basis": basis, "by": answer.by})
        )
    return plan.model_copy(update={"steps": tuple(steps)})


def _edited(
    wanted: tuple[str, ...], planned: tuple[str, ...], known: frozenset[str]
) -> tuple[tuple[str, ...], str]:
    """Give the nodes to act on, and what is to be said of names that are no nodes of this job."""
    unknown = tuple(node for node in wanted if node not in known and node not in planned)
    if not unknown and wanted:
        return wanted, ""
    kept = tuple(dict.fromkeys((*(node for node in wanted if node not in unknown), *planned)))
    return kept, f"; no node of this job: {', '.join(unknown)}, so the plan's are kept" if unknown else ""
