"""`trainguard doctor`: what can be reached and done, what can't, and why."""

from __future__ import annotations

import asyncio
import json
import shutil
import sys
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import httpx
import typer
from rich.markup import escape

from trainguard.cli.terminal import print_table, table
from trainguard.core.errors import TrainguardError
from trainguard.core.job import Job, JobRef

EXTRAS = {
    "slurm": ("paramiko", "Slurm over SSH"),
    "kubernetes": ("kubernetes_asyncio", "Kubernetes"),
    "llm": ("litellm", "second opinions of a language model"),
    "postgres": ("asyncpg", "ledger on Postgres"),
    "fast": ("hyperscan", "diagnosis at full speed"),
}
Finding = dict[str, Any]


def doctor(
    job: Annotated[
        str | None, typer.Argument(help="A job to look at: its state folder, or its scheduler's id.")
    ] = None,
    cluster: Annotated[str, typer.Option(help="Its cluster's block, such as slurm-cluster/lab.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON with stable field names.")] = False,
) -> None:
    """Say what can be reached and done, what can't, and why. Exits 1 where something needed is missing.

    A cluster alone is logged in to and its jobs are counted; with a job it says what can be done to that.
    """
    findings = asyncio.run(_examine(job, cluster))
    if as_json:
        typer.echo(json.dumps({"findings": findings}, indent=2))
    else:
        shown = table("what", "state", "detail", "to mend it")
        for row in findings:
            shown.add_row(*(escape(row[name]) for name in ("what", "state", "detail", "remedy")))
        print_table(shown)
    if any(row["state"] == "missing" for row in findings):
        raise typer.Exit(1)


def _listed(count: int) -> str:
    seen = f"{count} job{'s' * (count != 1)} seen"
    return f"{seen}; with a job's id this says what can be done to it"


def _found(what: str, state: str, detail: str, remedy: str = "") -> Finding:
    return {"what": what, "state": state, "detail": detail, "remedy": remedy}


async def _examine(job: str | None, cluster: str) -> list[Finding]:
    findings = [_python(), *_packages(), await _prefect(), await _ledger(), _disk()]
    if cluster or job:
        findings += await _job(job, cluster)
    return findings


def _python() -> Finding:
    return _found("python", "ok", sys.version.split()[0])


def _packages() -> list[Finding]:
    rows = [_found("trainguard", "ok", version("trainguard"))]
    for extra, (module, use) in EXTRAS.items():
        if find_spec(module) is None:
            rows.append(_found(extra, "absent", use, f"pip install 'trainguard[{extra}]'"))
            continue
        try:
            rows.append(_found(extra, "ok", f"{module} {version(module.replace('_', '-'))}: {use}"))
        except PackageNotFoundError:
            rows.append(_found(extra, "ok", f"{module}: {use}"))
    return rows


async def _prefect() -> Finding:
    from prefect.settings import get_current_settings

    url = get_current_settings().api.url
    if not url:
        return _found(
            "prefect", "absent", "PREFECT_API_URL is not set", "prefect server start, then prefect config set"
        )
    try:
        async with httpx.AsyncClient(timeout=5) as client:
            answer = await client.get(f"{url}/admin/version")
        return _found("prefect", "ok", f"server {answer.json()} at {url}")
    except (httpx.HTTPError, ValueError) as problem:
        return _found(
            "prefect", "missing", f"{url} does not answer: {problem}", "start it: prefect server start"
        )


async def _ledger() -> Finding:
    from trainguard.ledger.ledger import Ledger

    try:
        async with await Ledger.open() as ledger:
            return _found("ledger", "ok", _jobs(len(await ledger.jobs())))
    except TrainguardError as problem:
        return _found("ledger", "missing", str(problem), "see TRAINGUARD_LEDGER_URL")


def _jobs(count: int) -> str:
    return f"{count} job{'s' * (count != 1)} on record"


def _disk() -> Finding:
    free = shutil.disk_usage(Path.home()).free
    state = "ok" if free > 2**30 else "missing"
    return _found(
        "disk", state, f"{free / 2**30:.1f} GiB free at {Path.home()}", "" if state == "ok" else "free some"
    )


async def _job(job: str | None, slug: str) -> list[Finding]:
    from trainguard.blocks.clusters import as_block
    from trainguard.blocks.local_host import LocalHost
    from trainguard.schedulers.local.starting import load_job

    try:
        block = await as_block(slug) if slug else LocalHost()
        scheduler = block.make_scheduler()
    except TrainguardError as problem:
        return [_found(slug, "missing", str(problem), getattr(problem, "remedy", ""))]
    try:
        if job is None:
            return [_found(slug, "ok", _listed(len(await scheduler.discover("*"))))]
        known = block.place(Job(ref=JobRef(id=job))) if slug else load_job(Path(job), block.cluster_name())
        access = await scheduler.validate(known)
    except TrainguardError as problem:
        return [_found(job or slug, "missing", str(problem), getattr(problem, "remedy", ""))]
    finally:
        await scheduler.close()
    rows = [_found(known.name, "ok" if access.logs_readable else "missing", "its logs can be read")]
    rows += [_found(kind.value, "ok", "can be done") for kind in sorted(access.possible)]
    rows += [_found(kind.value, "absent", why) for kind, why in sorted(access.impossible.items())]
    return rows + [_found(known.name, "warning", warning) for warning in access.warnings]
