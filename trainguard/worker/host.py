"""The thread in which all guards of a worker run: one event loop, one Prefect client, one ledger.

A thread of its own because Prefect's engine takes over SIGTERM in the main thread, and because starting,
polling and the health endpoint must not wait for a thousand guards.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from time import monotonic
from typing import TYPE_CHECKING, Any
from uuid import UUID

from prefect.context import AsyncClientContext

from trainguard.tasks.prefect_view import cancellation_is_watched
from trainguard.worker.engine import Stop, keep_no_results
from trainguard.worker.service import Service

if TYPE_CHECKING:
    from prefect import Flow
    from prefect.client.schemas.objects import FlowRun

logger = logging.getLogger(__name__)

TICK = 2.0
CLEAR_SECONDS = 5.0


class GuardHost:
    """Serves flow runs. Its public methods are for the worker's thread, but for those that say otherwise."""

    def __init__(self) -> None:
        self.last_tick = monotonic()
        self._services: dict[UUID, Service] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._context: contextvars.Context | None = None
        self._closing: asyncio.Event | None = None
        self._thread: threading.Thread | None = None
        self._draining = False
        self._tasks: set[asyncio.Task[Any]] = set()

    async def open(self) -> None:
        """Start the thread."""
        keep_no_results()
        ready: Future[None] = Future()
        context = contextvars.copy_context()
        self._thread = threading.Thread(
            target=context.run, args=(asyncio.run, self._live(ready)), name="guards", daemon=True
        )
        self._thread.start()
        await asyncio.wrap_future(ready)

    async def close(self) -> None:
        """Stop the thread; guards that still run there are dropped and found again as orphans."""
        if self._loop is not None and self._closing is not None:
            self._loop.call_soon_threadsafe(self._closing.set)
        if self._thread is not None:
            await asyncio.to_thread(self._thread.join, 10.0)

    def is_alive(self) -> bool:
        """Whether the thread still runs."""
        return self._thread is not None and self._thread.is_alive()

    def ids(self) -> frozenset[UUID]:
        """The flow runs that are served now. From any thread."""
        return frozenset(self._services.copy())

    def serve(self, run: FlowRun, flow: Flow[..., Any], on_end: Callable[[UUID], None]) -> Service:
        """Begin to serve a flow run."""
        service = Service(run, flow)
        self._services[run.id] = service
        service.ended.add_done_callback(lambda _: self._services.pop(run.id, None))
        service.ended.add_done_callback(lambda _: on_end(run.id))
        self._call(self._begin, service)
        return service

    def spawn(self, work: Coroutine[Any, Any, Any], name: str) -> None:
        """Run something beside the guards, in their loop."""
        self._call(self._spawn, work, name)

    def stop(self, run_id: UUID, why: Stop) -> None:
        """Stop one guard cleanly. From any thread."""
        service = self._services.get(run_id)
        if service is not None:
            self._call(service.stop, why)

    async def drain(self, patience: float) -> int:
        """Let every guard lay down its duty. Gives how many did not within `patience` seconds."""
        self._draining = True
        services = list(self._services.values())
        for service in services:
            self._call(service.stop, Stop.HAND_OVER)
        return await _wait(services, patience)

    async def join(self) -> None:
        """Wait until all guards have ended by themselves."""
        while services := list(self._services.values()):
            await _wait(services, None)

    def _call(self, function: Callable[..., object], *arguments: Any) -> None:
        assert self._loop is not None
        self._loop.call_soon_threadsafe(function, *arguments)

    def _begin(self, service: Service) -> None:
        service.task = self._spawn(service.serve(), f"flow run {service.run.name}")
        if self._draining:
            service.stop(Stop.HAND_OVER)

    def _spawn(self, work: Coroutine[Any, Any, Any], name: str) -> asyncio.Task[Any]:
        assert self._context is not None and self._loop is not None
        task = self._loop.create_task(work, name=name, context=self._context.copy())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _live(self, ready: Future[None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._closing = asyncio.Event()
        # Found by Prefect's `get_client` in every guard. Entered by hand: its own way asks the server first.
        shared = AsyncClientContext()
        async with shared.client:
            AsyncClientContext.__var__.set(shared)
            cancellation_is_watched()
            self._context = contextvars.copy_context()
            ready.set_result(None)
            while not self._closing.is_set():
                self.last_tick = monotonic()
                try:
                    await asyncio.wait_for(self._closing.wait(), TICK)
                except TimeoutError:
                    continue
            await self._clear()

    async def _clear(self) -> None:
        """End what still runs, and give it the time to close what it opened."""
        left = set(self._tasks)
        for task in left:
            task.cancel()
        if left:
            await asyncio.wait(left, timeout=CLEAR_SECONDS)


async def _wait(services: list[Service], patience: float | None) -> int:
    if not services:
        return 0
    ended = [asyncio.wrap_future(service.ended) for service in services]
    _, late = await asyncio.wait(ended, timeout=patience)
    return len(late)
