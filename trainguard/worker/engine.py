"""One guard's flow run as a coroutine among many: Prefect's engine, without what a process of its own would need."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from anyio import CancelScope
from prefect import results
from prefect._flow_run_suspension import FlowRunSuspensionRequest, register_flow_run_suspension_request
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.objects import State
from prefect.context import FlowRunContext
from prefect.exceptions import Abort
from prefect.flow_engine import AsyncFlowRunEngine
from prefect.results import ResultStore
from prefect.states import Cancelled, Scheduled

from trainguard.core.errors import LeaseLostError

RESUMING = "Resuming"
"""Name of the state of a run that waits for the next worker. A cancellation ends such a run at once."""
KEYS_A_LIFE = 1000
_ANOTHERS = frozenset({"Refused", "Fenced"})
"""Names of the states in which a guard ends because another one has its job."""


def keep_no_results() -> None:
    """Let Prefect's engine not ask its server, in the guards' own event loop, where results are kept.

    It does so at every start of a flow run by a blocking client: a server that hangs would stop all guards of
    this process. Guards keep no results, so the answer is known.
    """
    results._read_server_default_result_storage_block_id = lambda: None


class Stop(StrEnum):
    """Why a guard is asked to stop."""

    CANCEL = "a person cancelled it"
    SUSPEND = "a person suspended it"
    HAND_OVER = "its worker stops"
    DISOWNED = "its flow run ended elsewhere"


@dataclass
class Order:
    """What the worker wants of a running guard; read when the guard's coroutine is cancelled."""

    stop: Stop | None = None


class _FreshKeys(dict[str, Any]):
    """Counts the calls in a resumed run from where no earlier life of it has counted.

    Prefect takes a call with a known number for the one of the earlier life, and would not make it again.
    """

    def __init__(self, first: int) -> None:
        super().__init__()
        self._first = first

    def __contains__(self, key: object) -> bool:
        return True

    def __missing__(self, key: str) -> int:
        return self._first - 1


@dataclass
class GuardRunEngine(AsyncFlowRunEngine[..., Any]):
    """Runs one flow run. Differs from Prefect's own in four things.

    Suspension and life are watched by the worker for all runs, without threads for each. A resumed run goes on
    instead of repeating what an earlier life was given. A coroutine stopped on purpose is no crash. And a
    guard whose job another one guards by now leaves the flow run's state to that one.
    """

    order: Order | None = None
    served_elsewhere: Callable[[], Awaitable[bool]] | None = None
    on_begun: Callable[[], None] | None = None

    @property
    def heartbeat_seconds(self) -> int | None:
        """No heartbeat events: the lease says that the guard lives, and orphans are found by it."""
        return None

    async def run(self) -> State[Any]:
        """Run to the end. As `prefect.flow_engine.run_flow_async` with `return_type="state"`."""
        async with self.start():
            while self.is_running():
                async with self.run_context():
                    if self.on_begun is not None:
                        self.on_begun()
                    await self.call_flow_fn()  # type: ignore[unused-coroutine]
        return self.state

    @contextmanager
    def setup_flow_run_suspension_request(self) -> Iterator[FlowRunSuspensionRequest]:
        """Take part in suspension without an observer of its own."""
        assert self.flow_run is not None
        request = self._get_flow_run_suspension_request()
        with register_flow_run_suspension_request(self.flow_run.id, request):
            request.raise_if_requested()
            yield request

    @asynccontextmanager
    async def setup_run_context(self, client: PrefectClient | None = None) -> AsyncIterator[None]:
        """Give a resumed run numbers of its own for the subflows it calls."""
        async with super().setup_run_context(client):
            context = FlowRunContext.get()
            assert self.flow_run is not None
            if context is not None and self.flow_run.run_count > 1:
                context.task_run_dynamic_keys = _FreshKeys(KEYS_A_LIFE * self.flow_run.run_count)
            yield

    async def handle_success(self, result: Any) -> Any:
        """Report how the guard ended, unless another worker goes on with this very flow run."""
        if isinstance(result, State) and result.name in _ANOTHERS:
            await self._leave_if_served_elsewhere()
        return await super().handle_success(result)

    async def handle_exception(
        self, exc: Exception, msg: str | None = None, result_store: ResultStore | None = None
    ) -> State[Any]:
        """Report a failure, unless it is that another worker goes on with this very flow run."""
        if isinstance(exc, LeaseLostError):
            await self._leave_if_served_elsewhere()
        return await super().handle_exception(exc, msg, result_store)

    async def _leave_if_served_elsewhere(self) -> None:
        if self.served_elsewhere is not None and await self.served_elsewhere():
            raise Abort("another worker goes on with this flow run")

    async def handle_crash(self, exc: BaseException) -> None:
        """Show a stop on purpose as what it is."""
        stop = self.order.stop if self.order is not None else None
        with CancelScope(shield=True):
            if await self._is_final():
                return
            if stop is Stop.CANCEL:
                await self.set_state(Cancelled(message="cancelled in Prefect; the job goes on"), force=True)
            elif stop is Stop.HAND_OVER:
                message = "its worker stopped; the next worker of the pool goes on"
                await self.set_state(Scheduled(name=RESUMING, message=message), force=True)
            elif stop is None and not await self._lost(exc):
                await super().handle_crash(exc)

    async def _is_final(self) -> bool:
        """Whether the run's end reached Prefect before the stop reached the guard."""
        assert self.flow_run is not None
        state = (await self.client.read_flow_run(self.flow_run.id)).state
        if state is None or not state.is_final():
            return False
        self.flow_run.state = state
        return True

    async def _lost(self, exc: BaseException) -> bool:
        cancelled = isinstance(exc, asyncio.CancelledError) and self.served_elsewhere is not None
        return cancelled and self.served_elsewhere is not None and await self.served_elsewhere()
