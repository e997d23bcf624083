"""Access to a language model for second opinions."""

from __future__ import annotations

from typing import ClassVar

from prefect.blocks.core import Block
from pydantic import BaseModel, ConfigDict, Field, HttpUrl, SecretStr, field_validator, model_validator

from trainguard.advisors import AdviceCache, Advisor, Completion, Limits, ToolServer


class ToolServerSettings(BaseModel):
    """One MCP server whose read-only tools the model may use. Naming it here is trusting it."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    name: str = Field(pattern=r"^[A-Za-z0-9-]{1,24}$", description="Short name: letters, digits and dashes.")
    command: list[str] = Field(
        default=[], description="Program and arguments that start it; no shell is used."
    )
    environment: dict[str, SecretStr] = Field(
        default={}, description="Further environment variables for the command."
    )
    url: str = Field(default="", description="Address of one that runs, instead of a command.")
    headers: dict[str, SecretStr] = Field(default={}, description="For the url, such as Authorization.")
    tools: list[str] = Field(
        default=[], description="The only tools to offer; empty for those that the server marks as read-only."
    )
    timeout_seconds: float = Field(
        default=20.0, gt=0, le=300, description="For connecting, and for each call."
    )

    @model_validator(mode="after")
    def _is_one_of_both(self) -> ToolServerSettings:
        if bool(self.command) == bool(self.url):
            raise ValueError("give either a command or a url")
        return self

    def as_server(self) -> ToolServer:
        """Give it as advisors want it."""
        return ToolServer(
            name=self.name,
            command=tuple(self.command),
            environment=_revealed(self.environment),
            url=self.url,
            headers=_revealed(self.headers),
            tools=tuple(self.tools),
            timeout=self.timeout_seconds,
        )


class LanguageModel(Block):
    """A language model that is asked about failures that the rules can't explain.

    Example:
        Load a stored model:
        ```python
        from trainguard.blocks.language_model import LanguageModel

        model = LanguageModel.load("BLOCK_NAME")
        ```
    """

    _block_type_name: ClassVar[str] = "trainguard Language Model"
    _block_type_slug: ClassVar[str] = "trainguard-language-model"
    _logo_url: ClassVar[HttpUrl | None] = HttpUrl("https://avatars.githubusercontent.com/u/121462774?s=200")
    _documentation_url: ClassVar[HttpUrl | None] = HttpUrl("https://docs.litellm.ai/docs/providers")
    _block_schema_capabilities: ClassVar[list[str]] = ["guard-advise"]
    model_config = ConfigDict(hide_input_in_errors=True)

    model: str = Field(
        min_length=1,
        description="Model as litellm names it; openai/NAME for a server that speaks OpenAI's protocol.",
    )
    api_base: str = Field(
        default="", description="Address of the server, for local ones: http://127.0.0.1:8000/v1."
    )
    api_key: SecretStr = Field(
        default=SecretStr(""), description="Key of the provider; local servers need none."
    )
    max_cost_per_incident: float = Field(
        default=0.25, ge=0, description="Most that one incident may cost, in the currency of the prices."
    )
    input_price: float | None = Field(
        default=None, ge=0, description="Price of a million input tokens, where litellm's table has none."
    )
    output_price: float | None = Field(
        default=None, ge=0, description="Price of a million output tokens, where litellm's table has none."
    )
    max_input_tokens: int = Field(
        default=8_000, ge=500, description="Most tokens of evidence and prompt in a request."
    )
    max_calls_per_incident: int = Field(default=6, ge=1, le=50, description="Most requests for one incident.")
    timeout_seconds: float = Field(default=90.0, gt=0, le=900, description="For the whole consultation.")
    hide_hosts: bool = Field(
        default=True,
        description="Send pseudonyms instead of host names and addresses; secrets are always masked.",
    )
    tool_servers: list[ToolServerSettings] = Field(
        default=[], description="MCP servers whose read-only tools the model may use to gather evidence."
    )

    @field_validator("tool_servers")
    @classmethod
    def _names_differ(cls, servers: list[ToolServerSettings]) -> list[ToolServerSettings]:
        names = [server.name for server in servers]
        if len(set(names)) != len(names):
            raise ValueError("two tool servers have the same name")
        return servers

    def make_advisor(self, cache: AdviceCache | None = None) -> Advisor:
        """Make the advisor. `cache` should outlive the process, so that the same failure is paid for once."""
        local_key = "none" if self.api_base else ""
        limits = Limits(
            max_cost=self.max_cost_per_incident,
            max_input_tokens=self.max_input_tokens,
            max_calls=self.max_calls_per_incident,
            timeout=self.timeout_seconds,
            input_price=self.input_price,
            output_price=self.output_price,
        )
        return Advisor(
            Completion(
                self.model, api_base=self.api_base, api_key=self.api_key.get_secret_value() or local_key
            ),
            limits,
            tool_servers=tuple(server.as_server() for server in self.tool_servers),
            cache=cache,
            hide_hosts=self.hide_hosts,
        )


def _revealed(values: dict[str, SecretStr]) -> tuple[tuple[str, str], ...]:
    return tuple((name, value.get_secret_value()) for name, value in values.items())
