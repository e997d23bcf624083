"""Evidence tools: only what the owner lets, masked, bounded, and never in the way."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.advisors.scripted_server import Answer, Request, serving
from tests.advisors.test_advisor import CITED, GOOD, advisor, question, says
from trainguard.advisors import Limits, ToolServer
from trainguard.advisors.evidence_tools import connected
from trainguard.core.masking import Masker

SERVER = str(Path(__file__).with_name("evidence_server.py"))


@pytest.fixture
def drained(tmp_path: Path) -> Path:
    return tmp_path / "drained"


@pytest.fixture
def tools(drained: Path) -> ToolServer:
    return ToolServer(
        name="site", command=(sys.executable, SERVER), environment=(("DRAINED", str(drained)),), timeout=30.0
    )


def names(offered: Any) -> set[str]:
    return {tool["function"]["name"] for tool in offered}


def asks_for(name: str, **arguments: Any) -> Answer:
    function = {"name": name, "arguments": json.dumps(arguments)}
    return says("", tool_calls=[{"id": "call_1", "type": "function", "function": function}])


async def test_only_tools_that_say_they_read_are_offered(tools: ToolServer) -> None:
    async with connected((tools,)) as found:
        assert names(found.offered) == {"site__storage_status", "site__much", "site__slow", "site__broken"}


async def test_the_owners_list_is_the_whole_list(tools: ToolServer) -> None:
    async with connected((tools.model_copy(update={"tools": ("drain",)}),)) as found:
        assert names(found.offered) == {"site__drain"}


async def test_a_tool_that_was_not_offered_is_not_called(tools: ToolServer, drained: Path) -> None:
    async with connected((tools,)) as found:
        for name in ("site__drain", "drain", "site__nonsense"):
            (line,) = await found.call(name, '{"node": "gpu-7"}', Masker(), 1000)
            assert line.startswith("There is no tool")
    assert not drained.exists()


async def test_results_are_masked_and_pseudonyms_in_arguments_become_real(tools: ToolServer) -> None:
    masker = Masker(hosts=True, known_hosts=["storage-1"])
    alias = masker.mask("storage-1")
    async with connected((tools,)) as found:
        lines = await found.call("site__storage_status", json.dumps({"host": alias}), masker, 1000)
    assert lines[0] == f"storage of {alias} was down from 10:00 to 10:20"
    assert "abcDEF0123456789" not in lines[1]


async def test_a_result_is_cut(tools: ToolServer) -> None:
    async with connected((tools,)) as found:
        lines = await found.call("site__much", "{}", Masker(), 500)
    assert sum(map(len, lines)) < 600
    assert lines[-1] == "[truncated]"


async def test_bad_arguments_are_told_not_raised(tools: ToolServer) -> None:
    async with connected((tools,)) as found:
        for arguments in ("", "{", "[]", "3", '{"hots": 1}', "[" * 20_000):
            assert await found.call("site__storage_status", arguments, Masker(), 500), arguments


async def test_a_broken_and_a_slow_tool_are_told_not_raised(tools: ToolServer) -> None:
    async with connected((tools.model_copy(update={"timeout": 5.0}),)) as found:
        assert "rror" in "\n".join(await found.call("site__broken", "{}", Masker(), 500))
        hurried = found._routes["site__slow"]  # type: ignore[attr-defined]
        found._routes["site__slow"] = (  # type: ignore[attr-defined]
            hurried[0],
            hurried[1].model_copy(update={"timeout": 0.3}),
            hurried[2],
        )
        assert "did not answer" in "\n".join(await found.call("site__slow", "{}", Masker(), 500))


@pytest.mark.parametrize(
    "command",
    [
        ("/nonexistent/server",),
        (sys.executable, "-c", "raise SystemExit(3)"),
        (sys.executable, "-c", "print('this is no protocol', flush=True); input()"),
        (sys.executable, "-c", "import time; time.sleep(600)"),
    ],
)
async def test_a_server_that_cannot_be_reached_is_left_out(
    tools: ToolServer, command: tuple[str, ...]
) -> None:
    broken = ToolServer(name="gone", command=command, timeout=1.0)
    async with connected((broken, tools)) as found:
        assert names(found.offered) >= {"site__storage_status"}


async def test_a_model_uses_a_tool_and_may_cite_what_it_gave(tools: ToolServer) -> None:
    def answer(request: Request) -> Answer:
        result = request.json["messages"][-1]
        assert result["role"] == "tool"
        return says({**GOOD, "citations": [CITED, result["content"].split("\n")[0].partition("|")[2]]})

    async with serving(asks_for("site__storage_status", host="x1"), answer) as server:
        told = await advisor(server, tool_servers=(tools,)).consult(question())
    assert told.advice is not None, told.reason
    assert told.tools == ("site__storage_status",)
    assert told.advice.citations[1].source.name == "mcp:site__storage_status"
    offered = names(server.requests[0].json["tools"])
    assert "site__drain" not in offered
    assert "abcDEF0123456789" not in server.requests[1].body


async def test_a_model_that_wants_a_forbidden_tool_does_not_get_it(tools: ToolServer, drained: Path) -> None:
    async with serving(asks_for("site__drain", node="gpu-7"), says(GOOD)) as server:
        told = await advisor(server, tool_servers=(tools,)).consult(question())
    assert told.advice is not None
    assert not drained.exists()


async def test_a_model_that_only_wants_tools_is_stopped(tools: ToolServer) -> None:
    async with serving(asks_for("site__storage_status", host="x")) as server:
        told = await advisor(server, Limits(max_tool_calls=2, max_calls=5), tool_servers=(tools,)).consult(
            question()
        )
    assert told.advice is None
    assert told.tools == ("site__storage_status",) * 2
    assert len(server.requests) == 5
    assert "tools" not in server.requests[-1].json


@asynccontextmanager
async def over_http(port: int) -> AsyncIterator[None]:
    process = subprocess.Popen(
        [sys.executable, SERVER, str(port)], env=dict(os.environ), stderr=subprocess.DEVNULL
    )
    try:
        deadline = asyncio.get_running_loop().time() + 60
        while asyncio.get_running_loop().time() < deadline:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.close()
                break
            except ConnectionRefusedError:
                await asyncio.sleep(0.1)
        yield
    finally:
        process.kill()
        process.wait()


async def test_a_server_at_an_address_works_the_same() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = ToolServer(
        name="web", url=f"http://127.0.0.1:{port}/mcp", headers=(("X-Site", "a"),), timeout=20.0
    )
    async with over_http(port), connected((server,)) as found:
        lines = await found.call("web__storage_status", '{"host": "x"}', Masker(), 1000)
    assert lines[0].startswith("storage of x")
