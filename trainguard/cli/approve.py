"""`trainguard approve`: one of the ways to answer a guard's question."""

from __future__ import annotations

import asyncio
import getpass
import json
import time
from typing import Annotated

import typer
from rich.markup import escape

from trainguard.cli.terminal import print_table, table
from trainguard.core.decision import Answer, ApprovalAnswer, ApprovalRequest
from trainguard.core.errors import TrainguardError, UserError
from trainguard.core.history import AnswerResult
from trainguard.core.messages import moment
from trainguard.core.report import action_detail, words
from trainguard.core.sizes import parse_size
from trainguard.ledger.ledger import Ledger


class NotCountedError(TrainguardError):
    """The answer came too late, twice, or for another incarnation."""


def approve(
    request: Annotated[
        str | None, typer.Argument(help="The question's id, or its incident's; without it all are listed.")
    ] = None,
    refuse: Annotated[bool, typer.Option("--refuse", help="Refuse instead of approving.")] = False,
    by: Annotated[str, typer.Option(help="Who decides; by default your user name.")] = "",
    note: Annotated[str, typer.Option(help="Anything the report should say.")] = "",
    nodes: Annotated[str, typer.Option(help="Other nodes to leave out, comma-separated.")] = "",
    memory: Annotated[str, typer.Option(help="Another memory size, such as 64G.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON with stable field names.")] = False,
) -> None:
    """Answer a question that a guard asks; without an id, list the open ones."""
    if request is None:
        _list(*asyncio.run(_open_requests()), as_json=as_json)
        return
    answer = ApprovalAnswer(
        request=request,
        answer=Answer.REFUSE if refuse else Answer.APPROVE,
        by=by or getpass.getuser(),
        via="cli",
        at=time.time(),
        note=note,
        nodes=tuple(node.strip() for node in nodes.split(",") if node.strip()) or None,
        memory_bytes=parse_size(memory, "--memory") if memory else None,
    )
    result = asyncio.run(_give(answer))
    if as_json:
        typer.echo(result.model_dump_json(indent=2))
    if not result.accepted:
        raise NotCountedError(f"the answer does not count: {result.reason}")
    if not as_json:
        typer.echo(f"{answer.answer} by {answer.by}: the guard takes it from here")


async def _open_requests() -> tuple[list[ApprovalRequest], dict[str, str]]:
    """Give the open questions, and their jobs' names by key."""
    async with await Ledger.open() as ledger:
        return await ledger.open_requests(), {job.key: job.name for job in await ledger.jobs()}


async def _give(answer: ApprovalAnswer) -> AnswerResult:
    async with await Ledger.open() as ledger:
        question = await ledger.request(answer.request)
        if question is None:
            of_incident = [row for row in await ledger.open_requests() if row.incident == answer.request]
            question = of_incident[0] if of_incident else None
        if question is None:
            raise UserError(f"there is no question {answer.request!r}", "list them: trainguard approve")
        answer = answer.model_copy(update={"request": question.id})
        seen = await ledger.latest_observation(question.job_key)
        current = seen.incarnation.token if seen is not None and seen.incarnation is not None else None
        return await ledger.answer(answer, current, answer.at)


def _list(requests: list[ApprovalRequest], names: dict[str, str], *, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps({"questions": [row.model_dump(mode="json") for row in requests]}, indent=2))
        return
    if not requests:
        typer.echo("No guard waits for an answer.")
        return
    shown = table("question", "job", "may this be done?", "until")
    for row in requests:
        actions = "; ".join(f"{words(s.action.kind)} {action_detail(s)}".rstrip() for s in row.plan.steps)
        cells = (row.id, names.get(row.job_key, row.job_key), actions, moment(row.deadline))
        shown.add_row(*map(escape, cells))
    print_table(shown)
    typer.echo(
        "Answer with: trainguard approve QUESTION, or with --refuse. Its incident says why it is asked."
    )
