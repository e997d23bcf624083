"""The block that holds a model's address, key and limits."""

from __future__ import annotations

import pytest
from prefect.blocks.core import Block
from prefect.testing.standard_test_suites.blocks import BlockStandardTestSuite
from pydantic import SecretStr, ValidationError

from tests.advisors.scripted_server import serving
from tests.advisors.test_advisor import GOOD, question, says
from trainguard.blocks.language_model import LanguageModel, ToolServerSettings


class TestLanguageModelIsAStandardBlock(BlockStandardTestSuite):
    @pytest.fixture
    def block(self) -> type[Block]:
        return LanguageModel

    # The suite's own version fetches the logo from the network.
    def test_has_a_valid_image(self, block: type[Block]) -> None:
        assert str(block._logo_url).startswith("https://")


async def test_a_block_makes_an_advisor_that_works_with_a_local_server() -> None:
    async with serving(says(GOOD)) as server:
        advisor = LanguageModel(model="openai/local", api_base=f"{server.url}/v1").make_advisor()
        assert await advisor.advise(question()) is not None
    assert "hunter2secret" not in server.requests[0].body


def test_keys_are_shown_nowhere() -> None:
    tools = ToolServerSettings(
        name="site",
        command=["x"],
        environment={"KEY": SecretStr("hunter2")},
        headers={"A": SecretStr("hunter3")},
    )
    block = LanguageModel(model="m", api_key=SecretStr("hunter4"), tool_servers=[tools])
    assert "hunter" not in repr(block) + str(block.model_dump())
    assert "hunter" not in repr(tools)


@pytest.mark.parametrize(
    "server",
    [
        {"name": "a"},
        {"name": "a", "command": ["x"], "url": "http://x"},
        {"name": "a b", "url": "http://x"},
        {"name": "a", "url": "http://x", "tool": []},
    ],
)
def test_a_tool_server_needs_one_way_in_and_known_settings(server: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        ToolServerSettings.model_validate(server)


def test_two_tool_servers_of_one_name_are_refused() -> None:
    server = ToolServerSettings(name="a", url="http://x")
    with pytest.raises(ValidationError, match="same name"):
        LanguageModel(model="m", tool_servers=[server, server])
