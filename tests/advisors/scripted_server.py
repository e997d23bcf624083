"""A real HTTP server that answers by a script: well, badly, slowly, or by closing the connection."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

HANG = "hang"
"""Read the request and never answer."""
CLOSE = "close"
"""Read the request and close the connection."""


@dataclass
class Answer:
    """One scripted response."""

    status: int = 200
    body: str = "ok"
    headers: dict[str, str] = field(default_factory=dict)


@dataclass
class Request:
    """What a client asked."""

    path: str
    headers: dict[str, str]
    body: str

    @property
    def json(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)


Script = Answer | str | Callable[[Request], Answer]


class ScriptedServer:
    """Plays its script one request at a time; the last entry is repeated."""

    def __init__(self, script: list[Script]) -> None:
        self.script = script
        self.requests: list[Request] = []
        self.url = ""
        self._open: set[asyncio.Task[None]] = set()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._open.add(task)
        try:
            while request := await _read(reader):
                self.requests.append(request)
                entry = self.script[min(len(self.requests), len(self.script)) - 1]
                if entry == HANG:
                    await asyncio.sleep(3600)
                if isinstance(entry, str):
                    return
                answer = entry if isinstance(entry, Answer) else entry(request)
                writer.write(_encode(answer))
                await writer.drain()
        except (ConnectionError, asyncio.CancelledError):
            pass
        finally:
            self._open.discard(task)
            writer.close()

    async def stop(self) -> None:
        """Drop every open connection."""
        for task in set(self._open):
            task.cancel()
        await asyncio.gather(*self._open, return_exceptions=True)


async def _read(reader: asyncio.StreamReader) -> Request | None:
    try:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
    except asyncio.IncompleteReadError:
        return None
    first, *rest = head.split("\r\n")
    headers = {
        name.lower(): value.strip() for name, _, value in (line.partition(":") for line in rest if line)
    }
    body = await reader.readexactly(int(headers.get("content-length", 0)))
    return Request(path=first.split()[1], headers=headers, body=body.decode())


def _encode(answer: Answer) -> bytes:
    body = answer.body.encode()
    headers = {"Content-Type": "application/json", **answer.headers, "Content-Length": str(len(body))}
    lines = [f"HTTP/1.1 {answer.status} Answer", *(f"{name}: {value}" for name, value in headers.items())]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


@asynccontextmanager
async def serving(*script: Script) -> AsyncIterator[ScriptedServer]:
    """Serve a script on a free port of this machine."""
    server = ScriptedServer(list(script))
    listener = await asyncio.start_server(server._serve, "127.0.0.1", 0)
    server.url = f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
    try:
        yield server
    finally:
        listener.close()
        await server.stop()
