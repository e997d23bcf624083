"""A proxy before the real API server that can go away, lose answers, refuse, and count what is asked.

It lives in a thread with an event loop of its own: what the adapter leaves behind in its loop can be seen.
"""

from __future__ import annotations

import asyncio
import ssl
import threading
from collections import Counter
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web

HOP = {"connection", "transfer-encoding", "content-length", "content-encoding", "host"}


@dataclass
class Fault:
    """An answer that the proxy gives instead of the server, so many times."""

    status: int
    body: str
    when: Callable[[web.Request], bool]
    times: int = 1_000_000
    headers: dict[str, str] = field(default_factory=dict)


class Proxy:
    """Speaks plain HTTP on loopback; reaches the server as admin, or as the bearer of the client's token."""

    def __init__(self, server: str, pki: Path) -> None:
        self._server, self._pki = server, pki
        self._open: set[asyncio.Transport] = set()
        self.faults: list[Fault] = []
        self.lose_answers = False
        self.asked: Counter[str] = Counter()
        self.paths: list[str] = []
        self.port = 0

    async def __aenter__(self) -> Proxy:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        await self._there(self._start())
        return self

    async def __aexit__(self, *gone: object) -> None:
        await self._there(self._stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        await asyncio.to_thread(self._thread.join)
        self._loop.close()

    async def go_away(self) -> None:
        await self._there(self._away())

    async def come_back(self) -> None:
        await self._there(self._listen())

    async def cut(self) -> None:
        """Break every connection; new ones are taken."""
        await self._there(self._cut())

    async def _there(self, work: Coroutine[Any, Any, None]) -> None:
        await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, self._loop))

    async def _start(self) -> None:
        context = ssl.create_default_context(cafile=str(self._pki / "ca.crt"))
        self._plain = self._session(context)
        with_cert = ssl.create_default_context(cafile=str(self._pki / "ca.crt"))
        with_cert.load_cert_chain(str(self._pki / "admin.crt"), str(self._pki / "admin.key"))
        self._admin = self._session(with_cert)
        app = web.Application(client_max_size=64 * 1024 * 1024)
        app.router.add_route("*", "/{path:.*}", self._handle)
        self._runner = web.AppRunner(app, access_log=None, handler_cancellation=True)
        await self._runner.setup()
        await self._listen()

    async def _stop(self) -> None:
        await self._cut()
        await self._runner.cleanup()
        await self._plain.close()
        await self._admin.close()

    def _session(self, context: ssl.SSLContext) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(ssl=context, limit=0),
            timeout=aiohttp.ClientTimeout(total=None),
            auto_decompress=False,
        )

    async def _listen(self) -> None:
        self._site = web.TCPSite(self._runner, "127.0.0.1", self.port, reuse_address=True)
        await self._site.start()
        self.port = self._runner.addresses[-1][1]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def kubeconfig(self, token: str = "") -> str:
        user = {"token": token} if token else {}
        return (
            f"apiVersion: v1\nkind: Config\ncurrent-context: c\nclusters: [{{name: c, cluster: {{server: '{self.url}'}}}}]\n"
            f"users: [{{name: u, user: {user}}}]\ncontexts: [{{name: c, context: {{cluster: c, user: u}}}}]\n"
        )

    async def _away(self) -> None:
        await self._site.stop()
        await self._cut()

    async def _cut(self) -> None:
        for transport in list(self._open):
            transport.abort()

    def refuse(
        self,
        status: int,
        body: str,
        when: Callable[[web.Request], bool],
        times: int = 1_000_000,
        **headers: str,
    ) -> Fault:
        fault = Fault(status, body, when, times, headers)
        self.faults.append(fault)
        return fault

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        assert request.transport is not None
        transport = request.transport
        self._open.add(transport)
        word = "WATCH" if request.query.get("watch") else request.method
        self.asked[word] += 1
        self.paths.append(f"{word} {request.path}")
        try:
            for fault in self.faults:
                if fault.times > 0 and fault.when(request):
                    fault.times -= 1
                    return web.Response(
                        status=fault.status,
                        text=fault.body,
                        content_type="application/json" if fault.body.startswith("{") else "text/plain",
                        headers=fault.headers,
                    )
            return await self._forward(request, transport)
        finally:
            self._open.discard(transport)

    async def _forward(self, request: web.Request, transport: asyncio.Transport) -> web.StreamResponse:
        headers = {key: value for key, value in request.headers.items() if key.lower() not in HOP}
        session = self._plain if "Authorization" in headers else self._admin
        body = await request.read()
        tries = "dryRun" in request.query or b'"dryRun"' in body or "accessreviews" in request.path
        url = self._server + str(request.rel_url)
        async with session.request(request.method, url, data=body, headers=headers) as answer:
            if self.lose_answers and request.method != "GET" and not tries:
                await answer.read()
                transport.abort()
                raise asyncio.CancelledError
            kept = {key: value for key, value in answer.headers.items() if key.lower() not in HOP}
            response = web.StreamResponse(status=answer.status, headers=kept)
            await response.prepare(request)
            async for chunk in answer.content.iter_any():
                await response.write(chunk)
            await response.write_eof()
            return response
