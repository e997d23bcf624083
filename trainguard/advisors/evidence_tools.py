"""Read-only evidence tools on MCP servers that the owner names.

A server is asked for its tools when a consultation begins. Only those are offered that the owner lists, or, where he
lists none, those that the server itself marks as read-only. Whatever they answer is evidence: data, masked, bounded.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import logging
import os
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, Protocol

from pydantic import model_validator

from trainguard.core.fact import Fact
from trainguard.core.masking import Masker, mask
from trainguard.core.message_formats import clean

logger = logging.getLogger(__name__)

NAME_SEPARATOR = "__"
_MAX_TOOLS = 24
_DESCRIPTION_LIMIT = 500


class ToolServer(Fact):
    """One MCP server: a command to start, or the address of one that runs."""

    name: str
    """Letters, digits and dashes."""
    command: tuple[str, ...] = ()
    environment: tuple[tuple[str, str], ...] = ()
    """For the command; nothing else of the guard's environment is passed on but PATH, HOME and the like."""
    url: str = ""
    headers: tuple[tuple[str, str], ...] = ()
    """For the address, such as Authorization."""
    tools: tuple[str, ...] = ()
    """The only ones to offer. Empty: those that the server marks as read-only."""
    timeout: float = 20.0
    """Seconds for connecting, and for each call."""

    @model_validator(mode="after")
    def _has_one_way_in(self) -> ToolServer:
        if bool(self.command) == bool(self.url):
            raise ValueError("needs either a command or a url")
        return self


class EvidenceTools(Protocol):
    """Tools that a model may be offered during one consultation."""

    @property
    def offered(self) -> tuple[Mapping[str, Any], ...]:
        """In the form of OpenAI's function tools."""

    async def call(self, name: str, arguments: str, masker: Masker, limit: int) -> list[str]:
        """Call one; gives lines, masked and bounded. Failures are told as lines, never raised."""


class NoTools:
    """No server was named."""

    offered: tuple[Mapping[str, Any], ...] = ()

    async def call(self, name: str, arguments: str, masker: Masker, limit: int) -> list[str]:
        """There is nothing to call."""
        return [f"There is no tool {name[:60]!r}."]


class McpTools:
    """Tools of connected MCP servers."""

    def __init__(self) -> None:
        self.offered: tuple[Mapping[str, Any], ...] = ()
        self._routes: dict[str, tuple[Any, ToolServer, str]] = {}

    async def add(self, server: ToolServer, client: Any) -> None:
        """Take over the permitted tools of a connected server."""
        async with asyncio.timeout(server.timeout):
            listed = await client.list_tools()
        for tool in listed.tools:
            if not _permitted(server, tool) or len(self.offered) >= _MAX_TOOLS:
                continue
            name = f"{server.name}{NAME_SEPARATOR}{tool.name}"[:64]
            self._routes[name] = (client, server, tool.name)
            function = {
                "name": name,
                "description": clean(mask(tool.description or ""))[:_DESCRIPTION_LIMIT],
                "parameters": dict(tool.input_schema),
            }
            self.offered = (*self.offered, {"type": "function", "function": function})

    async def call(self, name: str, arguments: str, masker: Masker, limit: int) -> list[str]:
        """Call one; gives lines, masked and bounded. Failures are told as lines, never raised."""
        from mcp import MCPError

        if name not in self._routes:
            return [f"There is no tool {name[:60]!r}."]
        client, server, tool = self._routes[name]
        try:
            given = json.loads(arguments or "{}")
        except (json.JSONDecodeError, RecursionError):
            return ["The arguments are not JSON."]
        if not isinstance(given, dict):
            return ["The arguments are no JSON object."]
        real = _unmasked(given, masker)
        try:
            async with asyncio.timeout(server.timeout):
                result = await client.call_tool(tool, real)
        except TimeoutError:
            return [f"The tool did not answer within {server.timeout:g} s."]
        except (MCPError, OSError, RuntimeError, ValueError) as problem:
            return _bounded(f"The tool failed: {type(problem).__name__}: {problem}", masker, limit)
        text = "\n".join(block.text for block in result.content if getattr(block, "type", "") == "text")
        return _bounded(text, masker, limit) or ["The tool gave no text."]


@asynccontextmanager
async def connected(servers: tuple[ToolServer, ...]) -> AsyncIterator[EvidenceTools]:
    """Connect to the servers for one consultation. One that can't be reached is left out, with a warning."""
    if not servers:
        yield NoTools()
        return
    tools = McpTools()
    connections = [_Connection(server, tools) for server in servers]
    try:
        await asyncio.gather(*(connection.opened() for connection in connections))
        yield tools
    finally:
        await asyncio.gather(*(connection.close() for connection in connections))


class _Connection:
    """One server's connection, in a task of its own: neither its troubles nor its user's get mixed up."""

    def __init__(self, server: ToolServer, tools: McpTools) -> None:
        self._server = server
        self._tools = tools
        self._ready = asyncio.Event()
        self._over = asyncio.Event()
        self._task = asyncio.create_task(self._hold())

    async def opened(self) -> None:
        """Wait until the server's tools are known, or it failed, or its time is up."""
        try:
            async with asyncio.timeout(self._server.timeout):
                await self._ready.wait()
        except TimeoutError:
            self._task.cancel()
            self._left_out(f"no answer within {self._server.timeout:g} s")

    async def close(self) -> None:
        """Leave the server; a process that was started for it is stopped."""
        self._over.set()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _hold(self) -> None:
        try:
            mcp = await asyncio.to_thread(importlib.import_module, "mcp")
        except ImportError:
            self._left_out("mcp is not installed: pip install 'trainguard[llm]'")
            self._ready.set()
            return
        try:
            async with AsyncExitStack() as stack:
                client = await stack.enter_async_context(await _client(self._server, stack))
                await self._tools.add(self._server, client)
                self._ready.set()
                await self._over.wait()
        except (TimeoutError, OSError, mcp.MCPError, RuntimeError, ValueError, ExceptionGroup) as problem:
            if not self._ready.is_set():
                self._left_out(f"{type(problem).__name__}: {problem}")
        finally:
            self._ready.set()

    def _left_out(self, why: str) -> None:
        logger.warning("evidence tools of %s are left out: %s", self._server.name, mask(why))


async def _client(server: ToolServer, stack: AsyncExitStack) -> Any:
    from mcp import Client, StdioServerParameters, stdio_client
    from mcp.client.streamable_http import streamable_http_client

    if server.url:
        import httpx2  # what mcp itself speaks HTTP with

        http = await stack.enter_async_context(
            httpx2.AsyncClient(headers=dict(server.headers), timeout=server.timeout)
        )
        return Client(
            streamable_http_client(server.url, http_client=http), read_timeout_seconds=server.timeout
        )
    parameters = StdioServerParameters(
        command=server.command[0], args=list(server.command[1:]), env=dict(server.environment)
    )
    silent = stack.enter_context(Path(os.devnull).open("w"))  # noqa: SIM115, ASYNC230 (a device, closed with the stack)
    return Client(stdio_client(parameters, errlog=silent), read_timeout_seconds=server.timeout)


def _permitted(server: ToolServer, tool: Any) -> bool:
    if server.tools:
        return tool.name in server.tools
    hints = tool.annotations
    return bool(hints and hints.read_only_hint and not hints.destructive_hint)


def _unmasked(arguments: dict[str, Any], masker: Masker) -> dict[str, Any]:
    """The model knows hosts by their pseudonyms only; the owner's tool must get the real ones."""
    return {
        name: masker.unmask(value) if isinstance(value, str) else value for name, value in arguments.items()
    }


def _bounded(text: str, masker: Masker, limit: int) -> list[str]:
    shown = clean(masker.mask(text[: limit * 4]))[:limit].rstrip()
    lines = shown.split("\n") if shown else []
    return [*lines, "[truncated]"] if len(text) > limit else lines
