"""One conversation with a model: requests, retries and evidence tools, until an answer or a limit."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass, field
from typing import Any

from trainguard.advisors.completion import Completion, ModelRefusedError, Reply, ToolRequest
from trainguard.advisors.evidence_tools import EvidenceTools
from trainguard.advisors.prompt import Prompt, marked
from trainguard.advisors.question import Limits, Question
from trainguard.advisors.selection import tokens_of
from trainguard.core.errors import UnreachableError
from trainguard.core.evidence import Citation
from trainguard.core.grounding import SentLine, answer_schema
from trainguard.core.masking import Masker
from trainguard.core.observation import LogSource

BACK_OFF_SECONDS = 1.0
"""Wait before the second request where the server names none; doubled for each further one."""


class StoppedError(Exception):
    """The consultation ends without advice; the message says why."""


@dataclass
class Spending:
    """What one incident has cost so far."""

    calls: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    tool_calls: int = 0
    cost: float = 0.0
    tools: list[str] = field(default_factory=list)

    def stored(self, reserved: float = 0.0) -> str:
        """Write it down; `reserved` is what the request under way may cost: who dies meanwhile has paid it."""
        return json.dumps({**asdict(self), "cost": self.cost + reserved})


class Talk:
    """One conversation: requests, retries and evidence tools, until an answer or a limit."""

    def __init__(
        self,
        completion: Completion,
        limits: Limits,
        spending: Spending,
        question: Question,
        prompt: Prompt,
        tools: EvidenceTools,
        masker: Masker,
        keep: Callable[[str], Awaitable[None]],
    ) -> None:
        self._completion = completion
        self._limits = limits
        self._spending = spending
        self._schema: dict[str, object] | None = answer_schema(question.offered)
        self._prompt = prompt
        self._tools = tools
        self._masker = masker
        self._keep = keep
        """Called with the spending, as it is stored, before and after each request."""
        self._messages: list[dict[str, Any]] = [
            {"role": "system", "content": prompt.system},
            {"role": "user", "content": prompt.user},
        ]
        self.learnt: list[SentLine] = []
        """Lines that tools gave: they may be cited too."""

    async def answer(self) -> str:
        """Talk until the model answers in words. Raises StoppedError at a limit."""
        while True:
            reply = await self._patiently()
            if not reply.tools:
                return reply.text
            self._messages.append({"role": "assistant", "content": "", **reply.message})
            for wanted in reply.tools:
                self._messages.append(await self._use(wanted))

    async def _patiently(self) -> Reply:
        """Ask; where the server is busy or away, wait as it says and ask again."""
        delay = BACK_OFF_SECONDS
        while True:
            reserved = self._check_limits()
            try:
                reply = await self._ask(reserved)
                self._count(reply)
                await self._keep(self._spending.stored())
                return reply
            except UnreachableError as problem:
                wait = delay if problem.retry_after is None else problem.retry_after
                if wait > self._limits.max_wait or self._spending.calls >= self._limits.max_calls:
                    raise
                delay *= 2
                await asyncio.sleep(wait)
            except ModelRefusedError as problem:
                # Some local servers know no schemas; the answer is checked here in any case.
                if problem.status not in {400, 422} or self._schema is None:
                    raise
                self._schema = None

    async def _ask(self, reserved: float) -> Reply:
        self._spending.calls += 1
        await self._keep(self._spending.stored(reserved))
        left = self._limits.max_tool_calls - self._spending.tool_calls
        last = self._spending.calls >= self._limits.max_calls
        return await self._completion.ask(
            self._messages,
            max_tokens=self._limits.max_output_tokens,
            timeout=self._limits.timeout,
            schema=self._schema,
            tools=self._tools.offered if left > 0 and not last else (),
        )

    async def _use(self, wanted: ToolRequest) -> dict[str, Any]:
        if self._spending.tool_calls >= self._limits.max_tool_calls:
            lines = ["No more tools may be used. Answer with what is known."]
        else:
            self._spending.tool_calls += 1
            self._spending.tools.append(wanted.name)
            limit = self._limits.max_tool_characters
            lines = await self._tools.call(wanted.name, wanted.arguments, self._masker, limit)
            source = LogSource(name=f"mcp:{wanted.name}", kind="status")
            self.learnt += [
                SentLine(shown=line, citation=Citation(source=source, line=n, text=self._masker.unmask(line)))
                for n, line in enumerate(lines, 1)
            ]
        return {"role": "tool", "tool_call_id": wanted.id, "content": marked(lines, self._prompt.marker)}

    def _check_limits(self) -> float:
        """Stop before a call that could go over a limit, not after it. Gives the most that it may cost."""
        limits, spent = self._limits, self._spending
        if spent.calls >= limits.max_calls:
            raise StoppedError(f"the limit of {limits.max_calls} calls is reached")
        asking = sum(tokens_of(str(message.get("content", ""))) for message in self._messages)
        if spent.input_tokens + spent.output_tokens + asking + limits.max_output_tokens > limits.max_tokens:
            raise StoppedError(f"the limit of {limits.max_tokens} tokens would be passed")
        expected = self._price(asking, limits.max_output_tokens)
        if spent.cost + expected > limits.max_cost:
            raise StoppedError(
                f"the cost could reach {spent.cost + expected:.4f}, and {limits.max_cost:g} is the limit"
            )
        return expected

    def _count(self, reply: Reply) -> None:
        asked = sum(tokens_of(str(message.get("content", ""))) for message in self._messages)
        tokens_in = asked if reply.input_tokens is None else reply.input_tokens
        tokens_out = tokens_of(reply.text) if reply.output_tokens is None else reply.output_tokens
        self._spending.input_tokens += tokens_in
        self._spending.output_tokens += tokens_out
        self._spending.cost += self._price(tokens_in, tokens_out)

    def _price(self, tokens_in: int, tokens_out: int) -> float:
        known = self._completion.price() or (0.0, 0.0)
        price_in = known[0] if self._limits.input_price is None else self._limits.input_price
        price_out = known[1] if self._limits.output_price is None else self._limits.output_price
        return (tokens_in * price_in + tokens_out * price_out) / 1e6
