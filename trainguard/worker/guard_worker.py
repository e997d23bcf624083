"""The worker type `trainguard`: takes guard flow runs from its pool and runs them all in this one process."""

from __future__ import annotations

import asyncio
import os
from datetime import UTC, datetime
from time import monotonic
from typing import TYPE_CHECKING, Any
from uuid import UUID

import httpx
from anyio.abc import TaskStatus
from prefect.client.schemas.objects import FlowRun, State, WorkPool
from prefect.exceptions import Abort, ObjectNotFound
from prefect.states import Failed, Pending
from prefect.utilities.engine import propose_state
from prefect.workers.base import (
    BaseJobConfiguration,
    BaseVariables,
    BaseWorker,
    BaseWorkerResult,
)

from trainguard.core.errors import ConfigError
from trainguard.worker.entrypoints import own_flow
from trainguard.worker.pace import Pace
from trainguard.worker.settings import WorkerSettings, pool_template, settings_of

if TYPE_CHECKING:
    from prefect import Flow

    from trainguard.worker.host import GuardHost
    from trainguard.worker.overseer import Overseer
    from trainguard.worker.service import Service

STUCK_SECONDS = 120.0
"""The worker is not healthy once the guards' event loop has not turned for so long."""
DEPLOYMENT_SECONDS = 60.0
"""How long what is known of a deployment is believed."""
BEGIN_SECONDS = 30.0
"""How long one start may keep its place in the queue."""


class GuardWorkerResult(BaseWorkerResult):
    """How serving a flow run ended: always in good order, the flow run's state says the rest."""


class GuardWorker(BaseWorker[BaseJobConfiguration, BaseVariables, GuardWorkerResult]):
    """Runs guards and patrols as coroutines in its own process; a thousand fit."""

    type = "trainguard"
    job_configuration = BaseJobConfiguration
    _description = "Runs trainguard's guards and patrols, many in one process. Runs nothing else."

    def __init__(self, work_pool_name: str, *arguments: Any, **named: Any) -> None:
        super().__init__(work_pool_name, *arguments, **named)
        self._settings: WorkerSettings | None = None
        self._host: GuardHost | None = None
        self._pace: Pace | None = None
        self._flows: dict[UUID, tuple[float, Flow[..., Any] | ConfigError]] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._overseer: Overseer | None = None
        self._stopping = False
        self._taking = 0
        """Runs that Prefect may call ours already, and no guard serves yet."""

    @classmethod
    def get_default_base_job_template(cls) -> dict[str, Any]:
        """Give the settings of a pool of guards."""
        return pool_template()

    async def setup(self) -> None:
        """Prepare the worker, and the thread that its guards run in."""
        from trainguard.worker.host import GuardHost

        self._loop = asyncio.get_running_loop()
        self._stopping = False
        self._host = GuardHost()
        await self._host.open()
        await super().setup()

    async def teardown(self, *exc_info: Any) -> None:
        """Stop: guards lay down their duty, unless they may run on to their end (`--run-once`)."""
        if self._host is not None:
            if exc_info and exc_info[0] is not None:
                await self._drain(self._host)
            else:
                await self._finish(self._host)
            await self._host.close()
        await super().teardown(*exc_info)

    async def _finish(self, host: GuardHost) -> None:
        """Wait for what was taken, to its end."""
        while self._submitting_flow_run_ids or host.ids():
            await host.join()
            await asyncio.sleep(0.1)

    async def _drain(self, host: GuardHost) -> None:
        self._stopping = True
        patience = self._settings_now().drain_seconds
        deadline = monotonic() + patience
        while self._taking and monotonic() < deadline:  # noqa: ASYNC110 - once in a worker's life
            await asyncio.sleep(0.05)
        self._logger.info("Handing over %d guards; no job is touched.", len(host.ids()))
        late = await host.drain(patience)
        if late:
            self._logger.warning(
                "%d guards did not hand over within %.0f s; the next worker finds them.", late, patience
            )

    def is_worker_still_polling(self, query_interval_seconds: float) -> bool:
        """Whether the worker polls, or tries to, and its guards' event loop turns."""
        turning = self._host is None or monotonic() - self._host.last_tick < STUCK_SECONDS
        return turning and super().is_worker_still_polling(query_interval_seconds)

    async def get_and_submit_flow_runs(self) -> list[FlowRun]:
        """Take what is scheduled. Prefect away ends no guard: the next poll asks again.

        Raises RuntimeError where the guards' thread has ended: whoever started the worker starts it again.
        """
        if self._host is not None and not self._host.is_alive():
            raise RuntimeError("the thread that runs the guards has ended")
        try:
            return await super().get_and_submit_flow_runs()
        except httpx.HTTPError as problem:
            self._logger.warning("Prefect does not answer, guards go on without it: %s", problem)
            self._last_polled_time = datetime.now(UTC)
            return []

    async def sync_with_backend(self) -> None:
        """Beat, and read the pool, by requests: Prefect's client sends them again while SQLite is busy.

        Its worker channel, a websocket, sends a heartbeat once; where that meets another's write, the server logs
        an error and closes the channel. What it brings beside heartbeats are cleanups, of which guards have none.
        """
        self._ensure_worker_channel()
        if self._worker_channel is not None:
            await self._worker_channel.sync(None)
            await self._initialize_after_sync()

    async def _sync_and_initialize(self) -> None:
        try:
            await super()._sync_and_initialize()
        except httpx.HTTPError as problem:
            if not self.is_setup:
                raise
            self._logger.warning("The worker could not report itself to Prefect: %s", problem)

    async def _setup_cancellation_observer(self) -> None:
        """One request every few seconds tells of all runs, also after Prefect was away: see `Overseer`."""
        from trainguard.worker.overseer import Overseer

        if self._work_pool is None or self._host is None or self._overseer is not None:
            return
        self._overseer = Overseer(
            self._host, self._work_pool_name, self._settings_now, self._submitting_flow_run_ids.copy
        )
        self._overseer.start()

    def _record_work_pool_snapshot(self, work_pool: WorkPool) -> None:
        super()._record_work_pool_snapshot(work_pool)
        self._settings = settings_of(work_pool.base_job_template)
        if self._pace is not None:
            self._pace.a_second = self._settings.starts_a_second

    def _settings_now(self) -> WorkerSettings:
        if self._settings is None:
            self._settings = WorkerSettings()
        return self._settings

    async def _submit_run(self, flow_run: FlowRun) -> None:
        """Start one run in its turn. Its trouble is its own: the worker goes on."""
        assert self._host is not None
        if self._pace is None:
            self._pace = Pace(self._settings_now().starts_a_second)
        begun = False
        try:
            async with self._pace.turn():
                if not self._stopping and flow_run.id not in self._host.ids():
                    begun = await self._begin(flow_run, self._host, self._pace)
        except Exception:
            self._logger.exception("Flow run %s could not be started", flow_run.id)
        finally:
            self._submitting_flow_run_ids.discard(flow_run.id)
            if not begun:
                self._release_limit_slot(flow_run.id)

    async def _begin(self, flow_run: FlowRun, host: GuardHost, pace: Pace) -> bool:
        """Take a run and start it. False where it stays scheduled, is refused, or is another worker's."""
        try:
            flow = await self._flow_of(flow_run)
            if isinstance(flow, ConfigError):
                await self._refuse(flow_run, flow)
                return False
            service = await self._take(flow_run, flow, host)
        except httpx.HTTPError as problem:
            pace.bad()
            self._logger.warning("Flow run %s will be started later: %s", flow_run.name, problem)
            return False
        if service is None:
            return False
        await asyncio.wait([asyncio.wrap_future(service.begun)], timeout=BEGIN_SECONDS)
        pace.good() if service.begun.done() else pace.bad()
        return True

    async def _take(self, flow_run: FlowRun, flow: Flow[..., Any], host: GuardHost) -> Service | None:
        """Make a run ours and serve it; None where Prefect gives it to nobody or another worker was first."""
        self._taking += 1
        try:
            state: State[Any] = await propose_state(self.client, Pending(), flow_run_id=flow_run.id)
            return host.serve(flow_run, flow, self._ended) if state.is_pending() else None
        except Abort:
            return None
        finally:
            self._taking -= 1

    def _ended(self, run_id: UUID) -> None:
        """Free the place of a run; called in the guards' thread."""
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._release_limit_slot, run_id)

    async def _flow_of(self, flow_run: FlowRun) -> Flow[..., Any] | ConfigError:
        """Give the flow of a run's deployment, or why it can't run here; read once a minute."""
        if flow_run.deployment_id is None:
            return ConfigError("flow run", "has no deployment", "deploy trainguard's guard to this pool")
        read_at, flow = self._flows.get(flow_run.deployment_id, (-DEPLOYMENT_SECONDS, None))
        if flow is None or monotonic() - read_at >= DEPLOYMENT_SECONDS:
            try:
                flow = own_flow(await self.client.read_deployment(flow_run.deployment_id))
            except ObjectNotFound:
                flow = ConfigError("flow run", "its deployment was deleted", "deploy it again")
            except ConfigError as problem:
                flow = problem
            self._flows[flow_run.deployment_id] = (monotonic(), flow)
        return flow

    async def _refuse(self, flow_run: FlowRun, why: ConfigError) -> None:
        message = f"{why}; {why.remedy}"
        self._logger.warning("Flow run %s is refused: %s", flow_run.name, message)
        state: State[Any] = Failed(name="NotAGuard", message=message)
        await self.client.set_flow_run_state(flow_run.id, state, force=True)

    async def run(
        self,
        flow_run: FlowRun,
        configuration: BaseJobConfiguration,
        task_status: TaskStatus[int] | None = None,
    ) -> GuardWorkerResult:
        """Serve one flow run to its end. Raises ConfigError for one that is no guard."""
        del configuration
        assert self._host is not None
        flow = await self._flow_of(flow_run)
        if isinstance(flow, ConfigError):
            raise flow
        service = self._host.serve(flow_run, flow, self._ended)
        if task_status is not None:
            task_status.started(os.getpid())
        await asyncio.wrap_future(service.ended)
        return GuardWorkerResult(identifier=str(flow_run.id), status_code=0)
