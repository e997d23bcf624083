"""What an advisor is asked, within which limits, and what came of it."""

from __future__ import annotations

from pydantic import Field

from trainguard.core.action import ActionKind
from trainguard.core.evidence import Evidence
from trainguard.core.fact import Fact
from trainguard.core.grounding import Advice
from trainguard.core.verdict import Diagnosis


class Limits(Fact):
    """What one incident may cost. A limit reached ends the consultation; it never ends the recovery."""

    max_cost: float = Field(default=0.25, ge=0)
    """Price of all calls for one incident, in the currency of the prices (USD for litellm's own)."""
    max_input_tokens: int = Field(default=8_000, ge=500)
    """Of one call's first prompt, by a cautious estimate."""
    max_output_tokens: int = Field(default=1_000, ge=100)
    max_tokens: int = Field(default=60_000, ge=1_000)
    """Of all calls for one incident, in and out."""
    max_calls: int = Field(default=6, ge=1, le=50)
    """Requests to the model for one incident, retries and tool rounds included."""
    max_tool_calls: int = Field(default=4, ge=0, le=50)
    max_tool_characters: int = Field(default=4_000, ge=100)
    """Of one tool's result."""
    timeout: float = Field(default=90.0, gt=0)
    """Seconds for the whole consultation."""
    max_wait: float = Field(default=20.0, ge=0)
    """Longest pause that a Retry-After may ask for, in seconds."""
    input_price: float | None = Field(default=None, ge=0)
    """Price of a million input tokens; None takes litellm's table, and nothing where it has no entry."""
    output_price: float | None = Field(default=None, ge=0)


class Question(Fact):
    """One incident, as an advisor may know it."""

    incident: str
    """Its id: limits are counted by it."""
    diagnosis: Diagnosis
    """What the rules say."""
    evidence: tuple[Evidence, ...]
    offered: tuple[ActionKind, ...]
    """Actions that the policy and the scheduler leave open; an answer can name no other."""
    facts: tuple[tuple[str, str], ...] = ()
    """What the scheduler says: state, exit code, nodes. Masked like the rest."""
    known_hosts: tuple[str, ...] = ()
    """Host names to hide wherever they stand."""


class Consultation(Fact):
    """What came of asking. Without advice, `reason` says why."""

    advice: Advice | None = None
    reason: str = ""
    calls: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cost: float = 0.0
    cached: bool = False
    tools: tuple[str, ...] = ()
    """Evidence tools that were used, as `server.tool`."""
