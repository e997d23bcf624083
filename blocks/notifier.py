"""Where messages go: Slack incoming webhooks and every address that apprise knows."""

from __future__ import annotations

import asyncio
import logging
from abc import ABC, abstractmethod
from typing import ClassVar
from urllib.parse import urlsplit

import aiohttp
from prefect.blocks.core import Block
from pydantic import ConfigDict, Field, HttpUrl, SecretStr, field_validator, model_validator
from slack_sdk.webhook.async_client import AsyncWebhookClient

from trainguard.core.fact import Fact
from trainguard.core.masking import mask
from trainguard.core.message_formats import plain, plain_title, slack_payload
from trainguard.core.messages import Message, Severity, masked

logger = logging.getLogger(__name__)

SLACK_HOSTS = frozenset({"hooks.slack.com", "hooks.slack-gov.com"})
BACK_OFF_SECONDS = 1.0
"""Wait before the second attempt; doubled for each further one."""
_TROUBLE = (aiohttp.ClientError, OSError, ValueError, TypeError, TimeoutError, asyncio.LimitOverrunError)
"""What the clients raise for a server that is down, slow or talks nonsense."""


class SendResult(Fact):
    """Whether a message went out. A failure never raises: a guard must not stumble over a chat server."""

    sent: bool
    detail: str = ""
    """Why not, masked."""
    attempts: int = 1


class _NotDeliveredError(Exception):
    """One attempt failed. `retry` says whether another may help, `after` when (seconds), if the server said so."""

    def __init__(self, detail: str, *, retry: bool, after: float | None = None) -> None:
        super().__init__(detail)
        self.retry = retry
        self.after = after


class NotifierBlock(Block, ABC):
    """The base of every block that takes messages to people."""

    model_config = ConfigDict(hide_input_in_errors=True)
    _block_schema_capabilities: ClassVar[list[str]] = ["guard-notify"]

    timeout_seconds: float = Field(
        default=30.0,
        gt=0,
        le=300,
        description="Seconds until a message is given up, waits and retries included.",
    )
    attempts: int = Field(default=3, ge=1, le=10, description="How often a message is tried at most.")

    async def send(self, message: Message) -> SendResult:
        """Send one message, masked. Never raises, but when cancelled; a failure is logged and told in the result."""
        message = masked(message)
        try:
            result = await self._send_in_time(message)
        except Exception as problem:  # noqa: BLE001 - what a foreign notifier raises must not end a guard
            result = SendResult(sent=False, detail=mask(f"{type(problem).__name__}: {problem}"))
        if not result.sent:
            logger.warning(
                "%s: %r was not sent: %s", self.get_block_type_slug(), message.title, result.detail
            )
        return result

    async def _send_in_time(self, message: Message) -> SendResult:
        deadline = asyncio.get_running_loop().time() + self.timeout_seconds
        detail, made = "", 0
        try:
            async with asyncio.timeout_at(deadline):
                for made in range(1, self.attempts + 1):
                    try:
                        await self._deliver(message)
                        return SendResult(sent=True, attempts=made)
                    except _NotDeliveredError as problem:
                        detail = mask(str(problem))
                        wait = BACK_OFF_SECONDS * 2 ** (made - 1) if problem.after is None else problem.after
                        late = asyncio.get_running_loop().time() + wait >= deadline
                        if not problem.retry or made == self.attempts or late:
                            break
                    await asyncio.sleep(wait)
        except TimeoutError:
            detail = f"no answer within {self.timeout_seconds:g} s" + (f" ({detail})" if detail else "")
        return SendResult(sent=False, detail=detail, attempts=max(1, made))

    @abstractmethod
    async def _deliver(self, message: Message) -> None:
        """Try once. Raises _NotDeliveredError."""


class SlackWebhook(NotifierBlock):
    """Sends messages to a channel through a Slack incoming webhook.

    Example:
        Load a stored webhook:
        ```python
        from trainguard.blocks.notifier import SlackWebhook

        slack = SlackWebhook.load("BLOCK_NAME")
        ```
    """

    _block_type_name: ClassVar[str] = "trainguard Slack Webhook"
    _block_type_slug: ClassVar[str] = "trainguard-slack-webhook"
    _logo_url: ClassVar[HttpUrl | None] = HttpUrl("https://avatars.githubusercontent.com/u/6911160?s=200")
    _documentation_url: ClassVar[HttpUrl | None] = HttpUrl(
        "https://docs.slack.dev/messaging/sending-messages-using-incoming-webhooks/"
    )

    url: SecretStr = Field(description="Address of the incoming webhook, https://hooks.slack.com/services/….")
    allow_any_host: bool = Field(
        default=False, description="Allow another host than Slack's and plain http: for proxies and tests."
    )

    @model_validator(mode="after")
    def _is_slacks(self) -> SlackWebhook:
        parts = urlsplit(self.url.get_secret_value())
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise ValueError("the webhook's address must begin with https:// and name a host")
        if not self.allow_any_host and (parts.scheme != "https" or parts.hostname not in SLACK_HOSTS):
            raise ValueError(
                "the webhook's address must begin with https://hooks.slack.com/; set allow_any_host for a proxy"
            )
        return self

    async def _deliver(self, message: Message) -> None:
        quiet = logging.getLogger("trainguard.slack_sdk")
        quiet.setLevel(logging.WARNING)  # at debug level the client writes the secret address into the log
        client = AsyncWebhookClient(
            self.url.get_secret_value(),
            timeout=int(self.timeout_seconds) or 1,
            logger=quiet,
            retry_handlers=[],
        )
        try:
            response = await client.send_dict(slack_payload(message))
        except _TROUBLE as problem:
            told = str(problem).replace(urlsplit(self.url.get_secret_value()).path, "/[masked]")
            raise _NotDeliveredError(f"{type(problem).__name__}: {told}", retry=True) from problem
        if response.status_code == 200:
            return
        raise _NotDeliveredError(
            f"status {response.status_code}: {mask(response.body)[:200]}",
            retry=response.status_code == 429 or response.status_code >= 500,
            after=_seconds(response.headers.get("Retry-After")),
        )


class AppriseAddress(NotifierBlock):
    """Sends messages to any address that apprise knows: e-mail, SMS, PagerDuty, Teams, Discord and a hundred more.

    Example:
        Load a stored address:
        ```python
        from trainguard.blocks.notifier import AppriseAddress

        mail = AppriseAddress.load("BLOCK_NAME")
        ```
    """

    _block_type_name: ClassVar[str] = "trainguard Apprise Address"
    _block_type_slug: ClassVar[str] = "trainguard-apprise-address"
    _logo_url: ClassVar[HttpUrl | None] = HttpUrl("https://avatars.githubusercontent.com/u/1724750?s=200")
    _documentation_url: ClassVar[HttpUrl | None] = HttpUrl("https://github.com/caronc/apprise/wiki")

    address: SecretStr = Field(
        description="Address as apprise writes it, such as mailtos://user:password@host."
    )

    @field_validator("address")
    @classmethod
    def _is_known(cls, address: SecretStr) -> SecretStr:
        import apprise  # heavy: imported when an address is made, not with the module

        if apprise.Apprise.instantiate(address.get_secret_value(), suppress_exceptions=True) is None:
            raise ValueError(
                "apprise does not know this kind of address; see https://github.com/caronc/apprise/wiki"
            )
        return address

    async def _deliver(self, message: Message) -> None:
        import apprise

        target = apprise.Apprise()
        target.add(self.address.get_secret_value())
        try:
            sent = await target.async_notify(
                body=plain(message),
                title=plain_title(message),
                body_format=apprise.NotifyFormat.TEXT,
                notify_type=_APPRISE_TYPES[message.severity],
            )
        except _TROUBLE as problem:
            raise _NotDeliveredError(f"{type(problem).__name__}: {problem}", retry=True) from problem
        if not sent:
            raise _NotDeliveredError("the server did not take the message", retry=True)


Notifier = SlackWebhook | AppriseAddress
"""Any notifier, as a flow's parameter."""

_APPRISE_TYPES = {
    Severity.INFO: "info",
    Severity.GOOD: "success",
    Severity.WARNING: "warning",
    Severity.CRITICAL: "failure",
}


def _seconds(value: str | None) -> float | None:
    """Read a Retry-After header; a date or nonsense counts as not said."""
    try:
        return max(0.0, float(value)) if value is not None else None
    except ValueError:
        return None
