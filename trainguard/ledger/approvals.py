"""Questions to people, and the one answer that counts."""

from __future__ import annotations

from sqlalchemy import insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from trainguard.core.decision import Answer, ApprovalAnswer, ApprovalRequest, Lease, Plan
from trainguard.core.errors import LedgerError
from trainguard.core.history import AnswerResult
from trainguard.ledger import tables
from trainguard.ledger.incidents import own_incident, own_job
from trainguard.ledger.store import Store, insert_missing

DEADLINE = "deadline"
"""The `via` of an answer that nobody gave."""


class Approvals(Store):
    """Requests and answers. Answers come from any process and need no lease."""

    async def ask(self, lease: Lease, request: ApprovalRequest) -> ApprovalRequest:
        """Store a question and give it back as stored.

        Asked again under the same id, by a successor, its flow run and keyset change and the earlier ones are
        kept beside them; the deadline stays where it was. Another question under the same id is a LedgerError.
        """

        async def work(tx: AsyncConnection) -> ApprovalRequest:
            own_job(lease, request.job_key)
            await own_incident(tx, lease, request.incident)
            row = {
                "id": request.id,
                "incident": request.incident,
                "job_key": request.job_key,
                "asked_at": request.asked_at,
                "deadline": request.deadline,
                "body": tables.dump(request),
            }
            if await insert_missing(tx, tables.requests, row):
                return request
            return await _ask_again(tx, request)

        return await self._write(work, lease)

    async def answer(
        self, answer: ApprovalAnswer, current_incarnation: str | None, at: float
    ) -> AnswerResult:
        """Give an answer at time `at`; the first valid one counts.

        `current_incarnation` is the job's token now, None where it can't be told (whoever acts must look
        again anyway). Late, second and outdated answers are refused with the reason.
        """

        async def work(tx: AsyncConnection) -> AnswerResult:
            request = await _locked(tx, answer.request)
            if request is None:
                return AnswerResult(accepted=False, reason=f"there is no request {answer.request}")
            standing = await _standing(tx, request.id)
            reason = (
                _already(standing)
                or await _closed(tx, request)
                or objection(request, answer, current_incarnation, at)
            )
            if reason:
                return AnswerResult(accepted=False, reason=reason, standing=standing)
            values = {
                "request": request.id,
                "answer": answer.answer.value,
                "at": at,
                "body": tables.dump(answer),
            }
            await tx.execute(insert(tables.answers).values(values))
            return AnswerResult(accepted=True, standing=answer)

        return await self._write(work)

    async def request(self, request_id: str) -> ApprovalRequest | None:
        """Give one request."""

        async def work(tx: AsyncConnection) -> ApprovalRequest | None:
            return await _stored(tx, request_id)

        return await self._read(work)

    async def answer_of(self, request_id: str) -> ApprovalAnswer | None:
        """Give the answer that counts."""

        async def work(tx: AsyncConnection) -> ApprovalAnswer | None:
            return await _standing(tx, request_id)

        return await self._read(work)

    async def open_requests(self, job_key: str | None = None) -> list[ApprovalRequest]:
        """Give what waits for an answer, newest first; of closed incidents nothing. Some may be late."""

        async def work(tx: AsyncConnection) -> list[ApprovalRequest]:
            requests, answers, incidents = tables.requests, tables.answers, tables.incidents
            found = (
                select(requests.c.body)
                .outerjoin(answers, answers.c.request == requests.c.id)
                .join(incidents, incidents.c.id == requests.c.incident)
                .where(answers.c.request.is_(None), incidents.c.closed.is_(False))
                .order_by(requests.c.asked_at.desc(), requests.c.id)
            )
            if job_key is not None:
                found = found.where(requests.c.job_key == job_key)
            return [tables.load(ApprovalRequest, body) for body in (await tx.execute(found)).scalars()]

        return await self._read(work)


def objection(
    request: ApprovalRequest, answer: ApprovalAnswer, current_incarnation: str | None, at: float
) -> str:
    """Say why an answer can't count by itself; empty if it can."""
    if answer.via == DEADLINE:
        return "" if answer.answer is Answer.REFUSE else "the deadline can only refuse"
    if at >= request.deadline:
        return "too late: the deadline has passed"
    asked = _incarnation(request)
    if asked is not None and current_incarnation is not None and asked != current_incarnation:
        return "outdated: the job was started again since the question was asked"
    return ""


def _incarnation(request: ApprovalRequest) -> str | None:
    """The run that was asked about, else the one that the first action is meant for."""
    if request.incarnation is not None:
        return request.incarnation.token
    return request.plan.steps[0].action.incarnation.token if request.plan.steps else None


def _already(standing: ApprovalAnswer | None) -> str:
    if standing is None:
        return ""
    return f"already answered: {standing.answer} by {standing.by} ({standing.via})"


async def _closed(tx: AsyncConnection, request: ApprovalRequest) -> str:
    incidents = tables.incidents
    state = await tx.scalar(
        select(incidents.c.state).where(incidents.c.id == request.incident, incidents.c.closed.is_(True))
    )
    return "" if state is None else f"the incident has ended: {state}"


async def _locked(tx: AsyncConnection, request_id: str) -> ApprovalRequest | None:
    table = tables.requests
    body = await tx.scalar(select(table.c.body).where(table.c.id == request_id).with_for_update())
    return None if body is None else tables.load(ApprovalRequest, body)


async def _stored(tx: AsyncConnection, request_id: str) -> ApprovalRequest | None:
    body = await tx.scalar(select(tables.requests.c.body).where(tables.requests.c.id == request_id))
    return None if body is None else tables.load(ApprovalRequest, body)


async def _standing(tx: AsyncConnection, request_id: str) -> ApprovalAnswer | None:
    body = await tx.scalar(select(tables.answers.c.body).where(tables.answers.c.request == request_id))
    return None if body is None else tables.load(ApprovalAnswer, body)


async def _ask_again(tx: AsyncConnection, request: ApprovalRequest) -> ApprovalRequest:
    known = await _locked(tx, request.id)
    if known is None or _question(known) != _question(request):
        raise LedgerError(f"another question was already asked as {request.id}")
    form = (request.flow_run_id, request.keyset)
    asked = known.model_copy(
        update={
            "flow_run_id": request.flow_run_id,
            "keyset": request.keyset,
            "earlier": tuple(one for one in known.forms if one != form),
        }
    )
    await tx.execute(
        update(tables.requests).where(tables.requests.c.id == request.id).values(body=tables.dump(asked))
    )
    return asked


def _question(request: ApprovalRequest) -> tuple[object, ...]:
    """What makes two requests the same question: not when they were asked, nor by which run."""
    return request.incident, request.job_key, _incarnation(request), _steps(request.plan)


def _steps(plan: Plan) -> tuple[object, ...]:
    return tuple((step.action, step.verdict) for step in plan.steps)
