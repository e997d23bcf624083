"""One request to a language model through litellm, which is imported when first needed."""

from __future__ import annotations

import asyncio
import importlib
import os
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import Field

from trainguard.core.errors import TrainguardError, UnreachableError, UserError
from trainguard.core.fact import Fact
from trainguard.core.masking import mask

_RETRYABLE = frozenset({408, 409, 429, 500, 502, 503, 504, 529})
_GARBAGE = (ValueError, KeyError, TypeError, AttributeError, IndexError, OSError, RuntimeError)
"""What litellm raises for answers that no provider should give."""


class ModelRefusedError(TrainguardError):
    """The provider answered that it will not do this: wrong key, unknown model, bad request."""

    def __init__(self, message: str, *, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


class ToolRequest(Fact):
    """A model wants an evidence tool to be called."""

    id: str
    name: str
    arguments: str
    """JSON as the model wrote it, unchecked."""


class Reply(Fact):
    """What one request gave."""

    text: str = ""
    tools: tuple[ToolRequest, ...] = ()
    input_tokens: int | None = None
    output_tokens: int | None = None
    message: Mapping[str, Any] = Field(default_factory=dict)
    """The assistant's message as it must stand in the next request."""


class Completion:
    """A model at a provider or at a local server that speaks OpenAI's protocol."""

    def __init__(self, model: str, *, api_base: str = "", api_key: str = "") -> None:
        self.model = model
        self._api_base = api_base
        self._api_key = api_key

    async def load(self) -> None:
        """Import litellm in a thread: it takes seconds. Raises UserError where it is not installed."""
        await asyncio.to_thread(_litellm)

    def price(self) -> tuple[float, float] | None:
        """Give litellm's prices of a million input and output tokens, None where it knows none."""
        costs: Mapping[str, Mapping[str, Any]] = _litellm().model_cost
        entry = costs.get(self.model) or costs.get(self.model.partition("/")[2])
        if not entry:
            return None
        per_token = (entry.get("input_cost_per_token"), entry.get("output_cost_per_token"))
        return (float(per_token[0] or 0.0) * 1e6, float(per_token[1] or 0.0) * 1e6)

    async def ask(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        max_tokens: int,
        timeout: float,
        schema: Mapping[str, object] | None,
        tools: Sequence[Mapping[str, Any]] = (),
    ) -> Reply:
        """Ask once. Raises UnreachableError where another try may help, ModelRefusedError where not."""
        litellm = _litellm()
        options: dict[str, Any] = {"tools": list(tools)} if tools else {}
        if schema is not None:
            form = {"name": "advice", "schema": dict(schema), "strict": True}
            options["response_format"] = {"type": "json_schema", "json_schema": form}
        try:
            response = await litellm.acompletion(
                model=self.model,
                messages=[dict(message) for message in messages],
                api_base=self._api_base or None,
                api_key=self._api_key or None,
                max_tokens=max_tokens,
                timeout=timeout,
                temperature=0,
                num_retries=0,
                max_retries=0,
                drop_params=True,
                **options,
            )
            return _reply(response)
        except importlib.import_module("openai").OpenAIError as problem:  # the base of litellm's own errors
            raise _ours(problem, self._api_key) from problem
        except _GARBAGE as problem:
            detail = _hidden(str(problem), self._api_key)
            raise UnreachableError(
                f"the answer can't be read: {type(problem).__name__}: {detail}"
            ) from problem


def _litellm() -> Any:
    # Otherwise the import fetches a price list from the network, with retries.
    os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    try:
        litellm: Any = importlib.import_module("litellm")
    except ImportError as problem:
        raise UserError("litellm is not installed", "pip install 'trainguard[llm]'") from problem
    litellm.suppress_debug_info = True
    return litellm


def _ours(problem: Any, api_key: str) -> UnreachableError | ModelRefusedError:
    status = getattr(problem, "status_code", None)
    told = f"{type(problem).__name__}: {_hidden(str(problem), api_key)}"
    if isinstance(status, int) and 400 <= status < 500 and status not in _RETRYABLE:
        return ModelRefusedError(told, status=status)
    return UnreachableError(told, retry_after=_retry_after(problem))


def _retry_after(problem: Any) -> float | None:
    headers = getattr(getattr(problem, "response", None), "headers", None)
    headers = headers or getattr(problem, "litellm_response_headers", None)
    try:
        return max(0.0, float(headers["retry-after"])) if headers else None
    except (KeyError, ValueError, TypeError):
        return None


def _hidden(text: str, api_key: str) -> str:
    """Keep the key out of messages, whatever the provider echoes."""
    return mask(text.replace(api_key, "[masked]") if api_key else text)[:500]


def _reply(response: Any) -> Reply:
    message = response.choices[0].message
    calls = tuple(
        ToolRequest(
            id=str(call.id), name=str(call.function.name), arguments=str(call.function.arguments or "{}")
        )
        for call in (message.tool_calls or ())
    )
    usage = getattr(response, "usage", None)
    return Reply(
        text=message.content or "",
        tools=calls,
        input_tokens=getattr(usage, "prompt_tokens", None) or None,
        output_tokens=getattr(usage, "completion_tokens", None) or None,
        message=message.model_dump(exclude_none=True),
    )
