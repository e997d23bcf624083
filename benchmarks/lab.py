"""A Prefect server and workers of a measurement's own, and what they use of the machine."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import psutil
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import create_async_engine

from trainguard.cli.prefect_server import free_port, prefect_server
from trainguard.ledger.location import locate

ROOT = Path(__file__).parents[1]
POSTGRES = "TRAINGUARD_BENCH_POSTGRES"
"""Address of a Postgres where databases may be made: Prefect's and the ledger are put there, into one of a lab's own."""


def on_postgres() -> bool:
    """Whether Prefect's records and the ledger lie there."""
    return POSTGRES in os.environ


@dataclass
class Usage:
    """What a group of processes used."""

    cpu: float = 0.0
    """Seconds of processor time."""
    rss: int = 0
    """Bytes."""
    processes: int = 0

    def __add__(self, other: Usage) -> Usage:
        return Usage(self.cpu + other.cpu, self.rss + other.rss, self.processes + other.processes)


@dataclass
class Lab:
    """One server, its folder, and the workers started."""

    folder: Path
    environment: dict[str, str]
    server: psutil.Process
    workers: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def client(self, what: str, wanted: dict[str, Any]) -> dict[str, Any]:
        """Do something at the server as a user would; see `pool_client`."""
        command = [sys.executable, "-m", "benchmarks.pool_client", what, json.dumps(wanted)]
        done = subprocess.run(command, env=self.env(), cwd=ROOT, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{what}: {done.stderr[-3000:]}")
        answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return answer

    def begin(self, what: str, wanted: dict[str, Any]) -> subprocess.Popen[bytes]:
        """The same without waiting for it; its answer goes to `WHAT.json`."""
        command = [sys.executable, "-m", "benchmarks.pool_client", what, json.dumps(wanted)]
        with (
            (self.folder / f"{what}.json").open("wb") as out,
            (self.folder / f"{what}.log").open("wb") as err,
        ):
            return subprocess.Popen(command, env=self.env(), cwd=ROOT, stdout=out, stderr=err)

    def start_worker(self, pool: str, kind: str, **environment: str) -> subprocess.Popen[bytes]:
        """Start a worker of a type for a pool."""
        counts = self.folder / f"counts-{len(self.workers)}.json"
        words = ["worker", "start", "--type", kind, "--pool", pool, "--name", f"{pool}-{len(self.workers)}"]
        command = [sys.executable, "-m", "benchmarks.fleet_worker", str(counts), *words]
        with (self.folder / f"worker-{len(self.workers)}.log").open("wb") as log:
            worker = subprocess.Popen(
                command,
                env=self.env() | environment,
                cwd=ROOT,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.workers.append(worker)
        return worker

    def stop_workers(self) -> None:
        """End the workers and whatever they started."""
        for worker in self.workers:
            if worker.poll() is not None:
                continue
            children = psutil.Process(worker.pid).children(recursive=True)
            worker.send_signal(signal.SIGTERM)
            try:
                worker.wait(5)
            except subprocess.TimeoutExpired:
                worker.kill()
                worker.wait()
            for child in children:
                with contextlib.suppress(psutil.NoSuchProcess):
                    child.kill()
        self.workers.clear()

    def used_by_server(self) -> Usage:
        """What the server has used so far."""
        return used(self.server)

    def used_by_workers(self) -> Usage:
        """What the workers and the processes they started have used so far."""
        return sum((used(psutil.Process(worker.pid)) for worker in self.workers), Usage())

    def asked(self) -> dict[str, int]:
        """How often the simulated clusters were asked, by all workers together."""
        total = {"queries": 0, "log_reads": 0}
        for file in self.folder.glob("counts-*.json"):
            for counts in json.loads(file.read_text())["clusters"].values():
                total = {name: total[name] + counts[name] for name in total}
        return total

    def ledger_count(self, question: str) -> int:
        """Ask the ledger for a number; 0 while it has no tables yet."""

        async def ask() -> int:
            engine = create_async_engine(locate(self.environment["TRAINGUARD_LEDGER_URL"]).url)
            try:
                async with engine.connect() as ledger:
                    return int((await ledger.execute(text(question))).scalar_one())
            except SQLAlchemyError:
                return 0
            finally:
                await engine.dispose()

        return asyncio.run(ask())

    def trouble(self) -> list[str]:
        """Lines of the workers' logs that tell of an error."""
        words = ("Traceback", "| ERROR", " 503 ", "database is locked", "CRITICAL")
        lines = (
            line
            for log in self.folder.glob("worker-*.log")
            for line in log.read_text("utf-8", "replace").splitlines()
        )
        return [line[:200] for line in lines if any(word in line for word in words)]

    def server_errors(self) -> dict[str, int]:
        """What the server's own log complains of, and how often; its clients may have seen none of it."""
        text = (self.folder / "prefect" / "server.log").read_text("utf-8", "replace")
        return dict(Counter(re.findall(r"\| (?:ERROR|CRITICAL) +\| (.{,100})", text)))

    def sizes(self) -> dict[str, int]:
        """Bytes of the databases' pages that are in use."""
        return {
            "prefect": pages(self.folder / "prefect" / "prefect.db"),
            "ledger": pages(self.folder / "ledger.db"),
        }

    def env(self) -> dict[str, str]:
        """The environment of everybody in the lab."""
        return {**os.environ, **self.environment}


@contextmanager
def lab(**settings: str) -> Iterator[Lab]:
    """Run a server in a temporary folder; `settings` are added to everybody's environment."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))  # and leave nothing running
    with tempfile.TemporaryDirectory(prefix="trainguard-bench-") as name:
        folder = Path(name)
        own = {
            "TRAINGUARD_LEDGER_URL": f"sqlite:///{folder / 'ledger.db'}",
            "XDG_STATE_HOME": str(folder / "state"),
            "XDG_CACHE_HOME": str(folder / "cache"),
            # docs/scaling.md: to mark a thousand queued runs as late is most of what SQLite's server chokes on.
            "PREFECT_SERVER_SERVICES_LATE_RUNS_AFTER_SECONDS": "600",
            **settings,
        }
        with (
            _database(own),
            _environment(own),
            prefect_server(folder / "prefect", free_port()) as environment,
        ):
            server = next(
                child for child in psutil.Process().children() if "server" in " ".join(child.cmdline())
            )
            made = Lab(folder, {**environment, **own}, server)
            try:
                yield made
            finally:
                made.stop_workers()


@contextmanager
def _database(own: dict[str, str]) -> Iterator[None]:
    """Put both databases into a fresh one on Postgres, where one is given."""
    server = os.environ.get(POSTGRES)
    if server is None:
        yield
        return
    name = f"trainguard_bench_{secrets.token_hex(4)}"
    address = urlsplit(server)._replace(path=f"/{name}").geturl()
    own["TRAINGUARD_LEDGER_URL"] = address
    own["PREFECT_API_DATABASE_CONNECTION_URL"] = address.replace("postgresql://", "postgresql+asyncpg://")

    async def run(statement: str) -> None:
        connection = await asyncpg.connect(server)
        try:
            await connection.execute(statement)
        finally:
            await connection.close()

    asyncio.run(run(f"CREATE DATABASE {name}"))
    try:
        yield
    finally:
        asyncio.run(run(f"DROP DATABASE {name} WITH (FORCE)"))


@contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None) if value is None else os.environ.update({name: value})


def used(process: psutil.Process) -> Usage:
    """What a process and its descendants have used so far; of ended children what was waited for."""
    total = Usage()
    for one in (process, *process.children(recursive=True)):
        with contextlib.suppress(psutil.NoSuchProcess):
            times = one.cpu_times()
            cpu = times.user + times.system + times.children_user + times.children_system
            total += Usage(cpu, one.memory_info().rss, 1)
    return total


def until(done: Callable[[], bool], patience: float, every: float = 1.0) -> float | None:
    """Wait until something is so; the seconds it took, None where patience ended first."""
    began = time.monotonic()
    while time.monotonic() - began < patience:
        if done():
            return time.monotonic() - began
        time.sleep(every)
    return None


def pages(database: Path) -> int:
    """Bytes in use in a SQLite file, those only in its write-ahead log too."""
    import sqlite3

    if not database.exists():
        return 0
    connection = sqlite3.connect(f"file:{database}?mode=ro", uri=True, timeout=30)
    try:
        count, free, size = (
            connection.execute(f"PRAGMA {word}").fetchone()[0]
            for word in ("page_count", "freelist_count", "page_size")
        )
    finally:
        connection.close()
    return int((count - free) * size)
