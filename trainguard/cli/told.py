"""Running what lasts until a person or a service manager ends it."""

from __future__ import annotations

import asyncio
import contextvars
import signal
import threading
import time
from collections.abc import Coroutine
from concurrent.futures import Future
from typing import Any, Generic, TypeVar

T = TypeVar("T")
AGAIN = 1.0
"""Seconds within which a signal is the first one's echo: `timeout` and service managers tell the group, too."""


class ToldToEnd(BaseException):
    """SIGINT or SIGTERM came. No Exception, as KeyboardInterrupt is none."""

    def __init__(self, number: int) -> None:
        super().__init__(f"told to end by {signal.Signals(number).name}")
        self.number = number


def until_told(work: Coroutine[Any, Any, T]) -> T:
    """Run something in a thread of its own, and let it lay down what it holds when a signal comes.

    In the main thread Prefect's engine takes SIGTERM over and raises it into whatever code runs just then.
    A second signal does not wait. A signal that was ignored stays so, as a shell wants for its background jobs;
    outside the main thread none is heard. Raises ToldToEnd, and whatever the work raises.
    """
    return asyncio.run(_Apart(work).ended_or_told())


class _Apart(Generic[T]):
    def __init__(self, work: Coroutine[Any, Any, T]) -> None:
        self._work = work
        self._begun: Future[tuple[asyncio.AbstractEventLoop, asyncio.Task[T]]] = Future()
        self._ended: Future[T] = Future()

    async def ended_or_told(self) -> T:
        context = contextvars.copy_context()
        threading.Thread(target=context.run, args=(self._live,), daemon=True).start()
        ended = asyncio.wrap_future(self._ended)
        told: list[tuple[int, float]] = []
        heard = asyncio.Event()

        def tell(number: int) -> None:
            if not told or time.monotonic() - told[-1][1] > AGAIN:
                told.append((number, time.monotonic()))
                heard.set()

        # By the loop, which wakes for a signal that another thread got; a thread that waits for a lock does not.
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                if signal.getsignal(number) is not signal.SIG_IGN:
                    asyncio.get_running_loop().add_signal_handler(number, tell, number)
        await _first(ended, heard)
        if not told:
            return await ended
        heard.clear()
        loop, task = await asyncio.wrap_future(self._begun)
        loop.call_soon_threadsafe(task.cancel)
        await _first(ended, heard)
        # what it says then is no news
        ended.add_done_callback(lambda done: done.cancelled() or done.exception())
        raise ToldToEnd(told[0][0])

    def _live(self) -> None:
        try:
            self._ended.set_result(asyncio.run(self._known()))
        except BaseException as problem:  # noqa: BLE001 - it is raised where the work was asked for
            self._ended.set_exception(problem)

    async def _known(self) -> T:
        task = asyncio.current_task()
        assert task is not None
        self._begun.set_result((asyncio.get_running_loop(), task))
        return await self._work


async def _first(ended: asyncio.Future[Any], heard: asyncio.Event) -> None:
    hearing = asyncio.create_task(heard.wait())
    await asyncio.wait({ended, hearing}, return_when=asyncio.FIRST_COMPLETED)
    hearing.cancel()
