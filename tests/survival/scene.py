"""Real jobs, guards in processes of their own, and a Prefect server that may die."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, TypeVar
from uuid import UUID

import httpx
from aiohttp import web
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.objects import Artifact, FlowRun

from trainguard.cli.prefect_server import free_port, server_environment
from trainguard.core.decision import ApprovalRequest
from trainguard.core.incident import Incident
from trainguard.core.job import CheckpointSpec, Job, Resume, ResumeBy, Watching
from trainguard.ledger.ledger import Ledger
from trainguard.schedulers.local.starting import LocalJob, start_job

T = TypeVar("T")
HERE = Path(__file__).parent
PATIENCE = 120.0
UNTOUCHED = {"PREFECT_CLIENT_MAX_RETRIES"}


async def until(ask: Callable[[], Awaitable[T | None]], what: str, patience: float = PATIENCE) -> T:
    """Ask until there is an answer; fail, naming `what`, when patience ends."""
    deadline = time.monotonic() + patience
    while True:
        found = await ask()
        if found is not None and found is not False:
            return found
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {patience:.0f} s: {what}")
        await asyncio.sleep(0.3)  # each look opens a ledger or asks Prefect: it is not free


async def until_there(path: Path, what: str, patience: float = PATIENCE) -> None:
    """Wait for a file."""

    async def there() -> bool | None:
        return path.exists() or None

    await until(there, what, patience)


class Server:
    """A Prefect server on SQLite that can be killed, frozen and started again."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.port = free_port()
        self.environment = server_environment(home, self.port)
        self.url = self.environment["PREFECT_API_URL"]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and wait until it answers."""
        self.home.mkdir(parents=True, exist_ok=True)
        words = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1"]
        with (self.home / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                [*words, "--port", str(self.port)],
                env={**os.environ, **self.environment},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        deadline = time.monotonic() + 240
        while not self.answers():
            assert self._process.poll() is None, (self.home / "server.log").read_text()[-2000:]
            assert time.monotonic() < deadline, "the server does not answer"
            time.sleep(0.2)

    def answers(self) -> bool:
        """Whether it is healthy."""
        try:
            return httpx.get(f"{self.url}/health", timeout=2).status_code == 200
        except httpx.HTTPError:
            return False

    def signal(self, number: int) -> None:
        """Send a signal to it and its children."""
        assert self._process is not None
        os.killpg(self._process.pid, number)
        if number == signal.SIGKILL:
            self._process.wait()

    def stop(self) -> None:
        """End it, whatever it is doing."""
        if self._process is not None and self._process.poll() is None:
            self.signal(signal.SIGKILL)

    @asynccontextmanager
    async def client(self) -> AsyncIterator[PrefectClient]:
        """Give a client of this server."""
        async with PrefectClient(self.url) as client:
            yield client

    async def runs(self, *names: str) -> list[FlowRun]:
        """Give the flow runs whose names begin with one of `names`, oldest first."""
        async with self.client() as client:
            found = [run for run in await client.read_flow_runs() if run.name.startswith(names)]
        return sorted(found, key=lambda run: str(run.created))

    async def pages(self, key: str) -> list[Artifact]:
        """Give the artifacts of that key."""
        async with self.client() as client:
            return [page for page in await client.read_artifacts() if page.key == key]

    async def paused(self, flow_run_id: str) -> bool:
        """Whether a run shows its form."""
        async with self.client() as client:
            state = (await client.read_flow_run(UUID(flow_run_id))).state
        return state is not None and state.is_paused()

    async def click(self, question: ApprovalRequest, decision: str = "approve", by: str = "uma") -> None:
        """Submit the form as the UI does."""
        async with self.client() as client:
            form = {"decision": decision, "decided_by": by}
            await client.resume_flow_run(UUID(question.flow_run_id), run_input=form)


class Trial:
    """One supervised job, told by files what to do."""

    def __init__(self, folder: Path, name: str, preset: str = "autonomous", **policy: Any) -> None:
        self.name, self.preset, self.policy = name, preset, policy
        self.folder = folder / name
        self.folder.mkdir()
        self.job: Job | None = None

    async def start(self) -> Trial:
        """Start the training under its supervisor."""
        spec = CheckpointSpec(
            directory=str(self.folder / "checkpoints"),
            format="glob",
            glob="step-{step}.json",
            resume=Resume(by=ResumeBy.ARGUMENT, name="--resume"),
        )
        config = LocalJob(
            command=(sys.executable, str(HERE / "training.py"), str(self.folder)),
            name=self.name,
            state=self.folder / "job",
            checkpoints=spec,
            watching=Watching(stall_after=30),
        )
        self.job = await start_job(config)
        return self

    @property
    def key(self) -> str:
        """The job's key in the ledger."""
        assert self.job is not None
        return self.job.key

    def tell(self, word: str) -> None:
        """Make the training `fail` or `finish`, or hold the guard up with `hold-collect`."""
        (self.folder / word).touch()

    def starts(self) -> list[int]:
        """The steps from which it was started, once each time."""
        place = self.folder / "starts"
        return [int(word) for word in place.read_text().split()] if place.exists() else []

    async def restarted(self, what: str, patience: float = PATIENCE) -> None:
        """Wait until it was started a second time."""

        async def again() -> bool | None:
            return len(self.starts()) > 1 or None

        await until(again, f"{self.name}: {what}", patience)

    def ends(self) -> list[tuple[int, str, str, str]]:
        """How its guards ended: process, type, name and message of the state."""
        place = self.folder / "ends"
        lines = place.read_text().splitlines() if place.exists() else []
        return [tuple(json.loads(line)) for line in lines]

    async def ended(self, count: int = 1, patience: float = PATIENCE) -> tuple[int, str, str, str]:
        """Wait for the end of `count` guards and give the last one's."""

        async def over() -> bool | None:
            return len(self.ends()) >= count or None

        await until(over, f"{self.name}: the guard's end; known: {self.ends()}", patience)
        return self.ends()[-1]


class Scene:
    """One ledger, one server, and whatever jobs and guards a test needs."""

    def __init__(self, folder: Path, server: Server) -> None:
        self.folder, self.server = folder, server
        self.environment = {
            **{name: value for name, value in os.environ.items() if name not in UNTOUCHED},
            **server.environment,
        }
        self._guards: list[subprocess.Popen[bytes]] = []
        self.keep_ledger_in(folder)

    def keep_ledger_in(self, folder: Path) -> None:
        """Say where the ledger lies."""
        self.ledger_file = folder / "ledger.db"
        self.ledger_url = f"sqlite:///{self.ledger_file}"
        self.environment["TRAINGUARD_LEDGER_URL"] = self.ledger_url

    async def trials(self, **presets: str | tuple[str, dict[str, Any]]) -> list[Trial]:
        """Start one job for each name, to be guarded under that preset."""
        made = []
        for name, preset in presets.items():
            word, policy = preset if isinstance(preset, tuple) else (preset, {})
            made.append(await Trial(self.folder, name, word, **policy).start())
        return made

    def guard(
        self, *trials: Trial, environment: dict[str, str] | None = None, **plan: Any
    ) -> subprocess.Popen[bytes]:
        """Start one process that guards these jobs."""
        number = len(self._guards)
        place = self.folder / f"guards-{number}.json"
        jobs = [
            {"folder": str(trial.folder), "preset": trial.preset, "policy": trial.policy} for trial in trials
        ]
        place.write_text(json.dumps({**plan, "jobs": jobs}))
        with place.with_suffix(".log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, str(HERE / "guards.py"), str(place)],
                env={**self.environment, **(environment or {})},
                stdout=log,
                stderr=log,
                cwd=self.folder,
            )
        self._guards.append(process)
        return process

    def log_of(self, process: subprocess.Popen[bytes]) -> str:
        """What a guard process printed."""
        number = self._guards.index(process)
        return (self.folder / f"guards-{number}.log").read_text("utf-8", "replace")

    async def frozen(self, process: subprocess.Popen[bytes]) -> None:
        """Wait until a guard process froze itself."""
        number = self._guards.index(process)
        await until_there(self.folder / f"guards-{number}.frozen", f"guards {number} frozen")

    async def status(self, trial: Trial, wanted: str) -> None:
        """Wait until a job's guard says how it stands."""

        async def stands() -> bool | None:
            async with await Ledger.open(self.ledger_url) as ledger:
                known = await ledger.job_status(trial.key)
            return (known is not None and known.status == wanted) or None

        await until(stands, f"{trial.name}: status {wanted}")

    async def question(self, trial: Trial, *, other_than: str = "") -> ApprovalRequest:
        """Wait for a question that is shown in Prefect by another run than `other_than`."""

        async def asked() -> ApprovalRequest | None:
            async with await Ledger.open(self.ledger_url) as ledger:
                found = await ledger.open_requests(trial.key)
            if not found or found[0].flow_run_id == other_than:
                return None
            return found[0] if await self.server.paused(found[0].flow_run_id) else None

        return await until(asked, f"{trial.name}: a question in Prefect")

    async def incidents(self, trial: Trial) -> list[Incident]:
        """All incidents of a job, oldest first."""
        async with await Ledger.open(self.ledger_url) as ledger:
            return list(reversed(await ledger.incidents(trial.key)))

    async def approve(self, question: ApprovalRequest, *words: str, by: str = "tess") -> tuple[int, str]:
        """Answer as a person does in a terminal; gives exit code and output."""
        command = [sys.executable, "-m", "trainguard.cli.main", "approve", question.id, "--by", by, *words]
        process = await asyncio.create_subprocess_exec(
            *command,
            env=self.environment,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        output, _ = await process.communicate()
        return process.returncode or 0, output.decode()

    async def restarts(self, trial: Trial) -> list[str]:
        """The fences of all restarts that were meant for a job."""
        async with await Ledger.open(self.ledger_url) as ledger:
            found = []
            for incident in await ledger.incidents(trial.key):
                known = await ledger.intents(incident.id)
                found += [one.intent.fence.token for one in known if one.intent.action.kind.restarts]
            assert not await ledger.pending_intents(trial.key)
        return found

    def close(self, trials: list[Trial]) -> None:
        """Leave nothing running."""
        for trial in trials:
            trial.tell("finish")
        for process in self._guards:
            if process.poll() is None:
                process.send_signal(signal.SIGCONT)
                process.kill()
            process.wait()


@contextmanager
def scene(folder: Path, server: Server) -> Iterator[Scene]:
    """Give a scene whose processes all end with it."""
    made = Scene(folder, server)
    try:
        yield made
    finally:
        for job in folder.glob("*/job"):
            (job.parent / "finish").touch()
        made.close([])


class Channel:
    """Where messages to people arrive: a chat server's webhook."""

    def __init__(self) -> None:
        self.messages: list[str] = []
        self.url = ""
        self._runner: web.AppRunner | None = None

    async def open(self) -> Channel:
        """Begin to listen."""
        app = web.Application()
        app.router.add_post("/hook", self._take)
        self._runner = web.AppRunner(app)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        port = site._server.sockets[0].getsockname()[1]  # type: ignore[union-attr]
        self.url = f"http://127.0.0.1:{port}/hook"
        return self

    async def close(self) -> None:
        """Stop listening."""
        if self._runner is not None:
            await self._runner.cleanup()

    async def _take(self, request: web.Request) -> web.Response:
        self.messages.append(json.dumps(await request.json()))
        return web.Response(text="ok")

    def count(self, words: str) -> int:
        """How many messages hold these words."""
        return sum(words in message for message in self.messages)
