"""Guarding from the command line: a guard flow in this process, its status lines on the terminal."""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
import typer
from pydantic import BaseModel, ConfigDict
from rich.console import Console
from rich.markup import escape
from rich.status import Status

from trainguard.cli.told import ToldToEnd, until_told
from trainguard.core.cadence import Cadence
from trainguard.core.errors import UserError
from trainguard.core.job import Job
from trainguard.core.policy import Policy
from trainguard.core.status_line import HEADER

FIRST_SIGNAL = 128
"""A shell gives this and the signal's number as the exit code of what a signal ended."""


class GuardOptions(BaseModel):
    """How to guard; the guard flow's parameters but for job and cluster."""

    model_config = ConfigDict(frozen=True)

    policy: Policy = Policy()
    cadence: Cadence = Cadence()
    until: datetime | None = None
    minutes: float | None = None
    take_over: bool = False
    notifiers: tuple[str, ...] = ()
    model: str = ""
    rules: tuple[Path, ...] = ()


class _OnTerminal(logging.Handler):
    """Keeps the newest status line in place and prints what is worth keeping above it."""

    def __init__(self, status: Status) -> None:
        super().__init__()
        self._status = status

    def emit(self, record: logging.LogRecord) -> None:
        text = self.format(record)
        if record.name != "trainguard.status":
            self._status.console.print(text, markup=False, highlight=False)
            return
        if len(text) > self._status.console.width - len("* "):
            text = "  ".join(text.split())  # too narrow for columns
        self._status.update(escape(text))


def _is_news(record: logging.LogRecord) -> bool:
    """Whether a line is worth a person's while: Prefect's own on each run and task are in its UI."""
    if not record.name.startswith("prefect"):
        return True
    wanted = os.environ.get("PREFECT_LOGGING_LEVEL", "").upper() in {"DEBUG", "INFO"}
    told = record.getMessage()
    ours = "Finished in state" in told or "Execution was cancelled" in told  # an end and Ctrl-C: we tell them
    return wanted or (record.levelno >= logging.WARNING and not ours)


def require_prefect() -> None:
    """Make sure that a Prefect server answers, or that Prefect may start one. Raises UserError."""
    from prefect.settings import get_current_settings

    url = get_current_settings().api.url
    if not url:
        os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "120")
        typer.echo("PREFECT_API_URL is not set: Prefect starts a server for this command alone.", err=True)
        return
    try:
        httpx.get(f"{url}/health", timeout=10).raise_for_status()
    except httpx.HTTPError as problem:
        raise UserError(
            f"no Prefect server answers at {url}: {problem}",
            "start one with `prefect server start`, or mend PREFECT_API_URL",
        ) from problem


def guard_here(
    job: Job,
    cluster: Any,
    options: GuardOptions,
    *,
    as_json: bool = False,
    quiet_end: bool = False,
    farewell: str = "",
) -> int:
    """Guard a job in this process until it ends. Gives the exit code: 0 succeeded or `until`, 1 not.

    Where a signal ended it the code is 128 and the signal's number, and `farewell` is said.
    """
    live = sys.stderr.isatty()
    console = Console(stderr=True)
    status = console.status(escape(f"guarding {job.name}")) if live else None
    handler: logging.Handler = _OnTerminal(status) if status else logging.StreamHandler()
    if status:
        if console.width > len(HEADER):
            console.print(f"  {HEADER}", style="dim", highlight=False)
        status.start()
    told = 0
    try:
        with _listening(handler):
            state = until_told(_guard(job, cluster, options))
    except ToldToEnd as signal:
        told = signal.number
    finally:
        if status:
            status.stop()
    if told:
        again = f"The guard stopped; the job goes on. Guard it again: trainguard watch {job.ref.id}"
        typer.echo(farewell or again, err=True)
        return FIRST_SIGNAL + told
    return _tell(job, state, as_json=as_json, quiet=quiet_end)


@contextmanager
def _listening(handler: logging.Handler) -> Iterator[None]:
    """Take the place of Prefect's console, which would write across the status line."""
    from prefect.logging.handlers import PrefectConsoleHandler

    handler.setFormatter(logging.Formatter("%(message)s"))
    handler.addFilter(_is_news)
    ours, root = logging.getLogger("trainguard"), logging.getLogger()
    ours.setLevel(logging.INFO)
    ours.handlers[:] = [handler]
    ours.propagate = False
    before = root.handlers[:]
    root.handlers[:] = [handler, *(one for one in before if not isinstance(one, PrefectConsoleHandler))]
    try:
        yield
    finally:
        root.handlers[:] = before


async def _guard(job: Job, cluster: Any, options: GuardOptions) -> Any:
    from trainguard.flows.guard import guard

    take_over = options.take_over
    while True:
        state = await guard(
            job=job,
            cluster=await save_block(cluster),
            policy=options.policy,
            until=options.until,
            minutes=options.minutes,
            take_over=take_over,
            cadence=options.cadence,
            **await load_blocks(options),
            rules=list(options.rules),
            return_state=True,
        )
        if state.name != "HandedOver":
            return state
        take_over = True


def patrol_here(
    cluster: Any, selector: str, options: GuardOptions, *, only_failed: bool, as_json: bool
) -> int:
    """Guard a cluster's jobs in this process for the patrol's time. Gives the exit code."""
    try:
        outcome, jobs = until_told(_patrol(cluster, selector, options, only_failed))
    except ToldToEnd as told:
        typer.echo("The patrol stopped; the jobs go on.", err=True)
        return FIRST_SIGNAL + told.number
    if as_json:
        typer.echo(json.dumps({"selector": selector, "outcome": outcome, "jobs": jobs}))
        return 0
    for job in jobs:
        typer.echo(f"{job['name']}: {job['status']}: {job['outcome']}".rstrip(": "))
    typer.echo(outcome)
    return 0


async def _patrol(
    cluster: Any, selector: str, options: GuardOptions, only_failed: bool
) -> tuple[str, list[dict[str, str]]]:
    """Go on patrol; give what it says of itself, and the jobs of the cluster that it found in need of a guard."""
    from trainguard.blocks.clusters import as_block
    from trainguard.flows.patrol import patrol

    began, slug = time.time(), await save_block(cluster)
    block = await as_block(slug)
    state: Any = await patrol(
        cluster=slug,
        selector=selector,
        policy=options.policy,
        until=options.until,
        minutes=options.minutes,
        only_failed=only_failed,
        cadence=options.cadence,
        **await load_blocks(options),
        rules=list(options.rules),
        return_state=True,
    )
    if state.name == "Refused":
        raise UserError(state.message or state.name)
    return state.message or state.name, await _stands(block.cluster_name(), began)


async def _stands(cluster: str, since: float) -> list[dict[str, str]]:
    """How the jobs of a cluster stand that were guarded since then, in the words of `run --json`."""
    from trainguard.ledger.ledger import Ledger

    rows = []
    async with await Ledger.open() as ledger:
        for job in await ledger.jobs():
            stand = await ledger.job_status(job.key) if job.ref.cluster == cluster else None
            if stand is not None and stand.at >= since:
                row = {"job": job.key, "name": job.name, "status": stand.status, "outcome": stand.outcome}
                rows.append(row)
    return rows


async def save_block(cluster: Any) -> str:
    """Save a block under its cluster's name, so that it can be seen and picked in the UI."""
    if isinstance(cluster, str):
        return cluster
    name = "".join(c if c.isalnum() else "-" for c in cluster.cluster_name().lower()).strip("-")
    await cluster.save(name, overwrite=True)
    return f"{cluster.get_block_type_slug()}/{name}"


async def load_blocks(options: GuardOptions) -> dict[str, Any]:
    """Load the notifiers and the language model, as parameters of the flows. Raises ConfigError for a missing one."""
    from trainguard.blocks.loading import load_block

    return {
        "notifiers": [await load_block("notifiers", slug) for slug in options.notifiers],
        "model": await load_block("model", options.model) if options.model else None,
    }


def _tell(job: Job, state: Any, *, as_json: bool, quiet: bool) -> int:
    outcome = state.message or state.name
    if as_json:
        typer.echo(json.dumps({"job": job.key, "name": job.name, "status": state.name, "outcome": outcome}))
    if state.name in {"CredentialError", "Refused"}:
        raise UserError(outcome)
    if not as_json and not quiet:
        typer.echo(f"{job.name}: {state.name}: {outcome}")
    failed = outcome.startswith(("unrecoverable", "gone")) or not (
        state.is_completed() or state.is_cancelled()
    )
    return 1 if failed else 0
