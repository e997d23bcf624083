"""A real MCP server over stdio or HTTP for the tests: harmless, destructive, talkative, slow and broken tools."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

from mcp.server.mcpserver import MCPServer
from mcp.types import ToolAnnotations

server = MCPServer("evidence")
READ_ONLY = ToolAnnotations(read_only_hint=True)


@server.tool(annotations=READ_ONLY)
def storage_status(host: str) -> str:
    """Say how the storage server is."""
    return f"storage of {host} was down from 10:00 to 10:20\ntoken=abcDEF0123456789 should not leave"


@server.tool(annotations=READ_ONLY)
def much() -> str:
    """Say more than anybody wants to hear."""
    return "line of text\n" * 100_000


@server.tool(annotations=READ_ONLY)
async def slow() -> str:
    """Never answer in time."""
    await asyncio.sleep(3600)
    return "late"


@server.tool(annotations=READ_ONLY)
def broken() -> str:
    """Fail."""
    raise ValueError("no such thing")


@server.tool()
def drain(node: str) -> str:
    """Drain a node (not marked as read-only)."""
    Path(os.environ["DRAINED"]).write_text(node)
    return "drained"


@server.tool(annotations=ToolAnnotations(read_only_hint=False, destructive_hint=False))
def restart_exporter() -> str:
    """Change something harmless."""
    return "restarted"


@server.tool(annotations=ToolAnnotations(read_only_hint=True, destructive_hint=True))
def contradiction() -> str:
    """Claim both."""
    return "?"


if __name__ == "__main__":
    if len(sys.argv) > 1:
        server.run("streamable-http", host="127.0.0.1", port=int(sys.argv[1]))
    else:
        server.run("stdio")
