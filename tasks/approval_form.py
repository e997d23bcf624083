"""The form of a question in Prefect: shown on a paused run, read from it, taken down."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
from copy import copy
from typing import Any, Literal
from uuid import UUID

from prefect.client.schemas.objects import StateType
from prefect.exceptions import NotPausedError, Pause
from prefect.flow_runs import apause_flow_run, aresume_flow_run
from prefect.input import RunInput
from prefect.input.actions import aread_flow_run_input
from prefect.input.run_input import keyset_from_base_key
from prefect.states import Running
from pydantic import Field, create_model

from trainguard.core.action import ActionKind
from trainguard.core.decision import ApprovalAnswer, ApprovalRequest
from trainguard.tasks.context import GuardContext
from trainguard.tasks.durable import durably
from trainguard.tasks.prefect_view import AWAY, prefect

logger = logging.getLogger(__name__)

SHOW_AGAIN_SECONDS = 10.0
POLL_SECONDS = 2
"""How often a paused run looks whether it was resumed."""
TAKE_DOWN_SECONDS = 10.0
"""An answer from elsewhere is shown in Prefect for so long before it is acted on without."""
MARGIN = 900
"""Seconds by which Prefect's own pause outlives our deadline: ours must fire first."""
INCIDENT = "The incident that this answers; leave it as it is."


class ApprovalForm(RunInput):
    """What a person fills in on the paused run's page; shown are the fields that the plan has a use for."""

    decision: Literal["approve", "refuse"] = Field(description="What may happen.")
    decided_by: str = Field(min_length=1, description="Your name: the report says who decided.")
    note: str = Field(default="", description="Anything the report should say.")
    nodes: str = Field(
        default="", description="Other nodes to leave out, comma-separated; empty keeps the plan's."
    )
    memory: str = Field(
        default="",
        pattern=r"^$|^[0-9]{1,6}(\.[0-9]{1,3})?[kKmMgGtT]?$",
        description="Other memory size, such as 64G; empty keeps the plan's.",
    )
    incident: str = Field(default="", description=INCIDENT)


def form_for(request: ApprovalRequest, text: str, question: str) -> type[RunInput]:
    """Make the form of one question: its incident is filled in, and Prefect refuses another.

    The fewer the fields, the more room Prefect gives the text above them; the question stands at the decision,
    where it can't be scrolled out of sight.
    """
    actions = [step.action for step in request.plan.steps]
    left_out = set() if any(action.nodes for action in actions) else {"nodes"}
    if not any(action.kind is ActionKind.RESTART_WITH_MORE_MEMORY for action in actions):
        left_out.add("memory")
    fields: dict[str, Any] = {
        name: (field.annotation, copy(field))
        for name, field in ApprovalForm.model_fields.items()
        if name not in left_out
    }
    fields["decision"][1].description = question
    one = f"^{re.escape(request.incident)}$"
    fields["incident"] = (str, Field(default=request.incident, pattern=one, description=INCIDENT))
    form = create_model("ApprovalForm", __base__=RunInput, **fields)
    return form.with_initial_data(description=text)


async def stored_forms(request: ApprovalRequest) -> list[ApprovalForm]:
    """Read what people entered in any form of a question, oldest first: a dead guard's may not have been read yet."""
    found = [await stored_form(*form) for form in request.forms]
    return [form for form in found if form is not None]


async def stored_form(flow_run_id: str, key: str) -> ApprovalForm | None:
    """Read what a person entered for a paused run, also where the process that asked is dead."""
    try:
        return await _entered(flow_run_id, key)
    except (*AWAY, ValueError) as problem:
        logger.debug("the form of flow run %s can't be read now: %s", flow_run_id, problem)
        return None


async def _entered(flow_run_id: str, key: str) -> ApprovalForm | None:
    """The same, but raises one of `AWAY` where Prefect does not say, and ValueError for what is no form."""
    raw = await _input(flow_run_id, key, "response")
    return None if raw is None else ApprovalForm.model_validate(raw)


async def _input(flow_run_id: str, key: str, part: Literal["schema", "response"]) -> Any:
    async with prefect():
        kept = keyset_from_base_key(f"paused-{key}")[part]
        return await aread_flow_run_input(kept, flow_run_id=UUID(flow_run_id))


async def pause_for_form(
    context: GuardContext, request: ApprovalRequest, form: type[RunInput]
) -> ApprovalForm:
    """Pause this flow run until somebody fills in the form; asked anew where Prefect was away."""
    number = 0
    while True:
        patience = max(1, int(request.deadline - context.clock()) + MARGIN)
        try:
            filled = await apause_flow_run(
                wait_for_input=form, timeout=patience, poll_interval=POLL_SECONDS, key=request.keyset
            )
            return ApprovalForm.model_validate(filled.model_dump())
        except Pause:
            # An earlier question's form still stands on this run: its answer came from elsewhere.
            await _end_pause(request)
            continue
        except (*AWAY, RuntimeError, ValueError) as problem:
            logger.warning("the question %s may not be shown in Prefect now: %s", request.id, problem)
        entered = await _after_the_pause(request)
        if entered is not None:
            return entered
        number += 1
        request = request.model_copy(update={"keyset": f"{request.keyset}-{number}"})
        request = await durably(context.ledger.ask, context.lease, request)


async def _after_the_pause(request: ApprovalRequest) -> ApprovalForm | None:
    """Wait until a pause that stands is over, then read its form: only one that was never filled in is asked anew."""
    while True:
        await asyncio.sleep(SHOW_AGAIN_SECONDS)
        try:
            async with prefect() as client:
                state = (await client.read_flow_run(UUID(request.flow_run_id))).state
            if state is not None and state.is_final():
                continue  # no form can be shown on it any more; the question stays open elsewhere
            if state is None or state.type is not StateType.PAUSED:
                return await _entered(request.flow_run_id, request.keyset)
            if await _input(request.flow_run_id, request.keyset, "schema") is None:
                await _end_pause(request)  # paused without a form: nobody could answer there
                return None
        except (*AWAY, ValueError) as problem:
            logger.debug("whether %s is still shown can't be told: %s", request.id, problem)


async def _end_pause(request: ApprovalRequest) -> None:
    while True:
        try:
            async with prefect() as client:
                await client.set_flow_run_state(UUID(request.flow_run_id), Running(), force=True)
            return
        except AWAY as problem:
            logger.debug("flow run %s still shows an old question: %s", request.flow_run_id, problem)
        await asyncio.sleep(SHOW_AGAIN_SECONDS)


async def take_down(
    request: ApprovalRequest, answer: ApprovalAnswer, pause: asyncio.Task[ApprovalForm]
) -> None:
    """Show in Prefect that the question was answered elsewhere, also where its form only appears now."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(TAKE_DOWN_SECONDS):
            while not pause.done():
                await _resume(request, answer)
                await asyncio.wait({pause}, timeout=POLL_SECONDS)


async def _resume(request: ApprovalRequest, answer: ApprovalAnswer) -> None:
    form = {"decision": answer.answer.value, "decided_by": answer.by}
    try:
        async with prefect():
            await aresume_flow_run(UUID(request.flow_run_id), run_input=form)
    except NotPausedError:
        logger.debug("%s was answered in its form, which resumed the run", request.id)
    except (*AWAY, RuntimeError) as problem:
        logger.info("Prefect does not show the answer to %s: %s", request.id, problem)
