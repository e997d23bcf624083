"""Messages reach people where the server takes them, and a broken chat server never disturbs a guard."""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections.abc import Callable

import pytest
from prefect.blocks.core import Block
from prefect.testing.standard_test_suites.blocks import BlockStandardTestSuite
from pydantic import SecretStr, ValidationError

from tests.advisors.scripted_server import CLOSE, HANG, Answer, Script, serving
from trainguard.blocks import notifier as notifier_module
from trainguard.blocks.notifier import AppriseAddress, NotifierBlock, SlackWebhook
from trainguard.core.messages import Message, MessageKind, Severity
from trainguard.tasks.notify import send_to_all

# apprise imports a module that Python 3.13 drops.
pytestmark = pytest.mark.filterwarnings("ignore:'imghdr' is deprecated:DeprecationWarning")

MESSAGE = Message(
    kind=MessageKind.OPENED,
    severity=Severity.CRITICAL,
    title="Job failure: my-training-job",
    fields=(("Project", "ml-team"),),
    body="Cause: a <!channel> lost",
)
SECRET_PATH = "/services/T00000000/B00000000/abcDEF0123456789"


def webhook(url: str, **more: object) -> SlackWebhook:
    return SlackWebhook(url=SecretStr(url + SECRET_PATH), allow_any_host=True, **more)


def address(url: str, **more: object) -> AppriseAddress:
    return AppriseAddress(address=SecretStr(url.replace("http://", "json://")), **more)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notifier_module, "BACK_OFF_SECONDS", 0.01)


async def test_slack_gets_blocks_at_the_secret_path() -> None:
    async with serving(Answer()) as server:
        result = await webhook(server.url).send(MESSAGE)
    assert result.sent
    (request,) = server.requests
    assert request.path == SECRET_PATH
    assert request.json["text"] == "Job failure: my-training-job"
    assert request.json["attachments"][0]["blocks"][0]["text"]["text"] == "Job failure: my-training-job"
    assert "<!channel>" not in request.body


async def test_apprise_gets_plain_text_and_the_kind() -> None:
    async with serving(Answer()) as server:
        result = await address(server.url).send(MESSAGE)
    assert result.sent
    (request,) = server.requests
    assert request.json["title"] == "Job failure: my-training-job"
    assert request.json["type"] == "failure"
    assert "Project: ml-team" in request.json["message"]


@pytest.mark.parametrize(
    ("script", "sent", "attempts"),
    [
        ([Answer(429, "slow", {"Retry-After": "0"}), Answer()], True, 2),
        ([Answer(429, "slow"), Answer()], True, 2),
        ([Answer(429, "slow", {"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}), Answer()], True, 2),
        ([Answer(500, "oops"), Answer(503, "oops"), Answer()], True, 3),
        ([Answer(500, "oops")], False, 3),
        ([CLOSE, Answer()], True, 2),
        ([CLOSE], False, 3),
        ([Answer(404, "no_service")], False, 1),
        ([Answer(400, "invalid_blocks")], False, 1),
    ],
)
async def test_slack_is_asked_again_only_where_that_may_help(
    script: list[Script], sent: bool, attempts: int
) -> None:
    async with serving(*script) as server:
        result = await webhook(server.url).send(MESSAGE)
    assert (result.sent, result.attempts) == (sent, attempts)
    assert len(server.requests) == attempts


async def test_the_wait_that_slack_asks_for_is_kept() -> None:
    async with serving(Answer(429, "slow", {"Retry-After": "1"}), Answer()) as server:
        started = time.monotonic()
        assert (await webhook(server.url).send(MESSAGE)).sent
    assert time.monotonic() - started >= 1


async def test_a_longer_wait_than_the_time_left_is_not_waited_for() -> None:
    async with serving(Answer(429, "slow", {"Retry-After": "3600"})) as server:
        result = await asyncio.wait_for(webhook(server.url, timeout_seconds=20).send(MESSAGE), 10)
    assert not result.sent
    assert result.attempts == 1
    assert "429" in result.detail


@pytest.mark.parametrize("make", [webhook, address])
async def test_a_server_that_hangs_costs_a_bounded_time(make: Callable[..., NotifierBlock]) -> None:
    async with serving(HANG) as server:
        result = await asyncio.wait_for(make(server.url, timeout_seconds=0.5).send(MESSAGE), 20)
    assert not result.sent
    assert "no answer within 0.5 s" in result.detail


@pytest.mark.parametrize("make", [webhook, address])
async def test_nobody_listening_is_a_result_and_no_error(make: Callable[..., NotifierBlock]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        result = await make(f"http://127.0.0.1:{taken.getsockname()[1]}").send(MESSAGE)
    assert not result.sent
    assert result.attempts == 3


async def test_apprise_is_asked_again_after_a_refusal() -> None:
    async with serving(Answer(500), Answer()) as server:
        assert (await address(server.url).send(MESSAGE)).attempts == 2


async def test_the_secret_address_is_in_no_log_and_no_result(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    async with serving(Answer(500, f"bad {SECRET_PATH} https://hooks.slack.com{SECRET_PATH}")) as server:
        result = await webhook(server.url).send(MESSAGE)
    for told in (
        result.detail,
        "\n".join(record.getMessage() for record in caplog.records if "trainguard" in record.name),
    ):
        assert "hooks.slack.com/services" not in told
    own = [record for record in caplog.records if record.name.startswith(("trainguard", "slack"))]
    assert own
    assert not [record for record in own if server.url in record.getMessage()]


@pytest.mark.parametrize(
    "url",
    [
        f"http://hooks.slack.com{SECRET_PATH}",
        f"https://hooks.slack.com.evil.example{SECRET_PATH}",
        f"https://evil.example/hooks.slack.com{SECRET_PATH}",
        f"https://hooks.slack.com@evil.example{SECRET_PATH}",
        "hooks.slack.com",
        "",
    ],
)
def test_an_address_that_is_not_slacks_is_refused_without_being_shown(url: str) -> None:
    with pytest.raises(ValidationError, match="must begin with https://") as caught:
        SlackWebhook.model_validate({"url": url})
    assert "abcDEF0123456789" not in str(caught.value)


def test_slacks_own_address_is_taken() -> None:
    block = SlackWebhook(url=SecretStr(f"https://hooks.slack.com{SECRET_PATH}"))
    assert SECRET_PATH not in repr(block) + str(block.model_dump())


def test_an_address_that_apprise_does_not_know_is_refused_without_being_shown() -> None:
    with pytest.raises(ValidationError, match="does not know") as caught:
        AppriseAddress.model_validate({"address": "nonsense://user:hunter2@host"})
    assert "hunter2" not in str(caught.value)


async def test_all_notifiers_are_told_even_if_the_first_is_broken() -> None:
    async with serving(Answer(404)) as broken, serving(Answer()) as working:
        results = await send_to_all([webhook(broken.url), address(working.url)], MESSAGE)
    assert [result.sent for result in results] == [False, True]
    assert working.requests


class Foreign(NotifierBlock):
    """Somebody's own notifier, with an error of its own."""

    _block_type_slug = "foreign"

    async def _deliver(self, message: Message) -> None:
        raise KeyError(f"password=hunter2hunter2 {message.title}")


async def test_what_a_foreign_notifier_raises_ends_no_guard() -> None:
    (result,) = await send_to_all([Foreign()], MESSAGE)
    assert not result.sent
    assert "KeyError" in result.detail and "hunter2" not in result.detail


async def test_a_cancelled_guard_cancels_the_message() -> None:
    async with serving(HANG) as server:
        sending = asyncio.create_task(webhook(server.url).send(MESSAGE))
        while not server.requests:
            await asyncio.sleep(0.01)
        sending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await sending


class _Standard(BlockStandardTestSuite):
    # The suite's own version fetches the logo from the network.
    def test_has_a_valid_image(self, block: type[Block]) -> None:
        assert str(block._logo_url).startswith("https://")


class TestSlackWebhookIsAStandardBlock(_Standard):
    @pytest.fixture
    def block(self) -> type[Block]:
        return SlackWebhook


class TestAppriseAddressIsAStandardBlock(_Standard):
    @pytest.fixture
    def block(self) -> type[Block]:
        return AppriseAddress
