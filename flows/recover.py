"""Bringing one job back: plan, decide, ask, act, verify. Each step goes on from where a dead guard stopped."""

from __future__ import annotations

import asyncio
from typing import Any

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.runtime import flow_run
from prefect.states import Cancelled, Completed, Failed

from trainguard.core.action import Outcome, OutcomeStatus
from trainguard.core.decision import CANCEL, Answer, ApprovalAnswer, ApprovalRequest, Plan, Verdict
from trainguard.core.incident import Incident, IncidentState
from trainguard.core.masking import mask
from trainguard.tasks.act import act_all, step_used
from trainguard.tasks.approval_form import form_for, pause_for_form, take_down
from trainguard.tasks.ask import (
    as_approved,
    earlier_answer,
    lost_its_object,
    name_the_overruled,
    put_question,
    wait_for_answer,
)
from trainguard.tasks.beside import Beside
from trainguard.tasks.context import current_guard
from trainguard.tasks.decide import goes_without_detour, make_plan, nothing_to_do
from trainguard.tasks.durable import durably
from trainguard.tasks.incidents import the_incident, the_plan
from trainguard.tasks.report import approval_text, set_status, show_guard_page, show_incident_report
from trainguard.tasks.subflow import in_subflow, steps
from trainguard.tasks.tell import tell_asked, tell_closed
from trainguard.tasks.verify import verify


@flow(
    name="recover",
    flow_run_name="recover {job_name} {incident_id}",
    retries=0,
    persist_result=False,
    validate_parameters=False,
)
async def recover(incident_id: str, job_name: str) -> State[Any] | None:
    """Take an incident from where it stands to its end. Its report is shown beside that, never waited for."""
    del job_name  # only names the run
    return await steps(_recover(incident_id))


async def _recover(incident_id: str) -> State[Any]:
    context = current_guard()
    incident = await durably(the_incident, context, incident_id)
    async with Beside() as beside:
        beside.do(_report(incident))
        while not incident.state.closed:
            # A question wants a run of its own to show its form; nothing else waits for one.
            asks = incident.state is IncidentState.AWAITING_APPROVAL
            incident = await in_subflow(_STEPS[incident.state](incident), needed=asks)
            await durably(context.ledger.update_incident, context.lease, incident)
            beside.do(_report(incident))
        await durably(tell_closed, incident)
    answer = await durably(context.ledger.answer_of, incident.question)
    return _end_of(incident, answer)


def _end_of(incident: Incident, answer: ApprovalAnswer | None) -> State[Any]:
    """The run's end, in the words of the incident's: the list of runs tells what became of each."""
    if answer is not None and answer.via == CANCEL:
        return Cancelled(message=mask(incident.outcome))
    kind = Failed if incident.state is IncidentState.UNRECOVERABLE else Completed
    return kind(name=incident.state.value.capitalize(), message=mask(incident.outcome))


async def _report(incident: Incident) -> None:
    await in_subflow(show_incident_report(incident.id), needed=True)


async def _decide(incident: Incident) -> Incident:
    plan = await durably(make_plan, incident)
    if plan.verdict is Verdict.RUN:
        return incident.advanced(IncidentState.ACTING)
    if plan.verdict is Verdict.ASK:
        return incident.advanced(IncidentState.AWAITING_APPROVAL)
    refused = next((step.basis for step in plan.steps if step.verdict is Verdict.REFUSE), "")
    return _closed(incident, IncidentState.UNRECOVERABLE, refused or await durably(nothing_to_do, incident))


async def _ask(incident: Incident) -> Incident:
    context = current_guard()
    plan = await durably(the_plan, context, incident.id)
    await durably(set_status, context, "AwaitingApproval", f"incident {incident.id}")
    answer = await durably(earlier_answer, context, incident.question)
    if answer is None:
        run_id = flow_run.id or context.flow_run_id
        request = await put_question(
            context, incident, plan, run_id, key=f"{incident.question}-{context.lease.number}"
        )
        await durably(tell_asked, incident, request)
        async with Beside() as beside:
            beside.do(show_guard_page(context))
            answer = await _paused_until_answered(incident, request)
    if answer is None:
        why = lost_its_object(context, incident, plan)
        return _closed(
            incident, IncidentState.DISMISSED, f"before an answer counted: {why or 'the job moved on'}"
        )
    if answer.answer is Answer.REFUSE:
        return _closed(
            incident, IncidentState.UNRECOVERABLE, f"refused by {answer.by} ({answer.via}) {answer.note}"
        )
    known = frozenset(context.observation.nodes if context.observation else ())
    await durably(context.ledger.add_decisions, context.lease, incident.id, as_approved(plan, answer, known))
    await durably(set_status, context, "Recovering", f"incident {incident.id}")
    return incident.advanced(IncidentState.ACTING)


async def _paused_until_answered(incident: Incident, request: ApprovalRequest) -> ApprovalAnswer | None:
    """Pause this run for the form in the UI; an answer from anywhere else resumes it."""
    context = current_guard()
    text, question = await durably(approval_text, incident)
    form = form_for(request, text, question)
    pause = asyncio.create_task(pause_for_form(context, request, form))
    try:
        answer = await wait_for_answer(context, incident, request, pause)
        if answer is not None:
            await take_down(request, answer, pause)
        await name_the_overruled(context, request, answer)
        return answer
    finally:
        pause.cancel()
        await asyncio.gather(pause, return_exceptions=True)


async def _act(incident: Incident) -> Incident:
    context = current_guard()
    plan = await durably(the_plan, context, incident.id)
    outcomes = await act_all(incident, plan)
    for step, outcome in zip(plan.steps, outcomes, strict=False):
        if step.action.kind.restarts and outcome.status is OutcomeStatus.DONE:
            used = await step_used(step.action, outcome.at)
            return incident.advanced(IncidentState.VERIFYING, acted_at=outcome.at, checkpoint_step=used)
    failed = [outcome for outcome in outcomes if outcome.status is not OutcomeStatus.DONE]
    if outcomes and not failed and not any(step.action.kind.restarts for step in plan.steps):
        return incident.advanced(IncidentState.VERIFYING, acted_at=outcomes[-1].at)
    moved_on = next((outcome.detail for outcome in failed if outcome.stale), "")
    if moved_on:
        return _closed(incident, IncidentState.DISMISSED, moved_on)
    if await durably(goes_without_detour, incident, plan, outcomes):
        return incident.advanced(IncidentState.DIAGNOSED, attempt=incident.attempt + 1)
    return _closed(incident, IncidentState.UNRECOVERABLE, _why_failed(plan, failed))


def _why_failed(plan: Plan, failed: list[Outcome]) -> str:
    if not failed:
        return "done: " + ", ".join(step.action.kind for step in plan.steps)
    return "; ".join(f"{outcome.fence}: {outcome.detail}" for outcome in failed)


async def _verify(incident: Incident) -> Incident:
    context = current_guard()
    verified = await verify(incident)
    if verified.recovered:
        now = context.clock()
        return _closed(incident, IncidentState.RECOVERED, verified.why).model_copy(
            update={"recovered_at": now}
        )
    return _closed(incident, IncidentState.UNRECOVERABLE, f"failed attempt: {verified.why}")


def _closed(incident: Incident, state: IncidentState, outcome: str) -> Incident:
    return incident.advanced(state, closed_at=current_guard().clock(), outcome=outcome)


_STEPS = {
    IncidentState.DIAGNOSED: _decide,
    IncidentState.AWAITING_APPROVAL: _ask,
    IncidentState.ACTING: _act,
    IncidentState.VERIFYING: _verify,
}
