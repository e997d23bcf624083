"""Asks a language model about what the rules can't tell, within limits, and believes only what it can show."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import secrets
from collections import OrderedDict
from collections.abc import Sequence
from functools import partial
from typing import Protocol

from trainguard.advisors.completion import Completion, ModelRefusedError
from trainguard.advisors.evidence_tools import ToolServer, connected
from trainguard.advisors.prompt import VERSION, Prompt, build_prompt
from trainguard.advisors.question import Consultation, Limits, Question
from trainguard.advisors.talk import Spending, StoppedError, Talk
from trainguard.core.errors import UnreachableError, UserError
from trainguard.core.grounding import Advice, AdviceRejectedError, SentLine, ground, wants_advice
from trainguard.core.masking import Masker

logger = logging.getLogger(__name__)

_REMEMBERED = 1_000
"""Incidents whose spending is kept."""


class AdviceCache(Protocol):
    """Keeps answers by key, so that the same failure is paid for once, and what an incident has cost so far.

    Give one that outlives the process.
    """

    async def get(self, key: str) -> str | None:
        """Give the stored answer, None where there is none."""

    async def put(self, key: str, answer: str) -> None:
        """Store an answer that passed every check, or what was spent."""


class MemoryCache:
    """Keeps the newest answers in the process."""

    def __init__(self, size: int = 256) -> None:
        self._answers: OrderedDict[str, str] = OrderedDict()
        self._size = size

    async def get(self, key: str) -> str | None:
        """Give the stored answer, None where there is none."""
        return self._answers.get(key)

    async def put(self, key: str, answer: str) -> None:
        """Store an answer; the oldest goes."""
        self._answers[key] = answer
        while len(self._answers) > self._size:
            self._answers.popitem(last=False)


class Advisor:
    """A second opinion. It is asked only where the rules are not sure, and without it everything else is the same."""

    def __init__(
        self,
        completion: Completion,
        limits: Limits | None = None,
        *,
        tool_servers: tuple[ToolServer, ...] = (),
        cache: AdviceCache | None = None,
        hide_hosts: bool = True,
    ) -> None:
        self._completion = completion
        self._limits = limits or Limits()
        self._servers = tool_servers
        self._cache = cache or MemoryCache()
        self._hide_hosts = hide_hosts
        self._spent: OrderedDict[str, Spending] = OrderedDict()

    async def advise(self, question: Question) -> Advice | None:
        """Ask, where that makes sense. None for every reason there can be; never raises, but when cancelled."""
        return (await self.consult(question)).advice

    async def consult(self, question: Question) -> Consultation:
        """Ask, and tell what it cost and why there is no advice."""
        if not wants_advice(question.diagnosis):
            return Consultation(reason="the rules are certain")
        spending = await self._spending(question.incident)
        try:
            async with asyncio.timeout(self._limits.timeout):
                return await self._consult(question, spending)
        except TimeoutError:
            reason = f"no answer within {self._limits.timeout:g} s"
        except (StoppedError, ModelRefusedError, UnreachableError, UserError) as problem:
            reason = str(problem)
        except AdviceRejectedError as problem:
            reason = f"the answer was rejected: {problem}"
        logger.warning("no advice on incident %s: %s", question.incident, reason)
        return _told(spending, reason=reason)

    async def _consult(self, question: Question, spending: Spending) -> Consultation:
        masker = Masker(hosts=self._hide_hosts, addresses=self._hide_hosts, known_hosts=question.known_hosts)
        marker = secrets.token_hex(8)
        prompt = await asyncio.to_thread(
            build_prompt, question, masker, marker, self._limits.max_input_tokens
        )
        if not prompt.sent:
            raise StoppedError("there is no evidence to show")
        key = self._key(question, prompt)
        remembered = await self._remembered(key, question, prompt)
        if remembered is not None:
            return _told(spending, advice=remembered).model_copy(update={"cached": True})
        await self._completion.load()
        async with connected(self._servers) as tools:
            keep = partial(self._cache.put, _purse(question.incident))
            talk = Talk(self._completion, self._limits, spending, question, prompt, tools, masker, keep)
            answer = await talk.answer()
        advice = self._grounded(answer, question, prompt.marker, (*prompt.sent, *talk.learnt))
        named = masker.unmask(advice.cause)
        if not talk.learnt and named == advice.cause:
            # What tools said then, or which host it was, need not be so the next time.
            await self._cache.put(key, answer)
        return _told(spending, advice=advice.model_copy(update={"cause": named}))

    async def _remembered(self, key: str, question: Question, prompt: Prompt) -> Advice | None:
        """Take an earlier answer, if what it cites stands in this evidence too."""
        answer = await self._cache.get(key)
        if answer is None:
            return None
        try:
            return self._grounded(answer, question, prompt.marker, prompt.sent)
        except AdviceRejectedError:
            return None

    def _grounded(self, answer: str, question: Question, marker: str, sent: Sequence[SentLine]) -> Advice:
        return ground(answer, sent, question.offered, model=self._completion.model, marker=marker)

    def _key(self, question: Question, prompt: Prompt) -> str:
        """Name the question: by the rules' fingerprint where there is one, else by what is shown."""
        what = question.diagnosis.fingerprint or "\n".join(line.shown for line in prompt.sent)
        parts = (VERSION, self._completion.model, what, *sorted(kind.value for kind in question.offered))
        return hashlib.sha256("\x00".join(parts).encode("utf-8", "replace")).hexdigest()

    async def _spending(self, incident: str) -> Spending:
        """What an incident has cost so far, by this process or by one before it."""
        spending = self._spent.get(incident)
        if spending is None:
            spending = self._spent[incident] = _read(await self._cache.get(_purse(incident)))
        self._spent.move_to_end(incident)
        while len(self._spent) > _REMEMBERED:
            self._spent.popitem(last=False)
        return spending


def _purse(incident: str) -> str:
    """The key under which an incident's spending is kept; answers have hashes for keys."""
    return f"spent on {incident}"


def _read(stored: str | None) -> Spending:
    try:
        return Spending(**json.loads(stored)) if stored else Spending()
    except (ValueError, TypeError):
        logger.warning("what an incident has cost can't be read and is counted anew")
        return Spending()


def _told(spending: Spending, *, advice: Advice | None = None, reason: str = "") -> Consultation:
    return Consultation(
        advice=advice,
        reason=reason,
        calls=spending.calls,
        input_tokens=spending.input_tokens,
        output_tokens=spending.output_tokens,
        cost=spending.cost,
        tools=tuple(spending.tools),
    )
