"""`trainguard status` and `trainguard incidents`: what the ledger knows, without any server."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markdown import Markdown
from rich.markup import escape

from trainguard.cli.terminal import age, print_table, table
from trainguard.core.errors import UserError
from trainguard.core.history import NodeEvent
from trainguard.core.incident import Incident
from trainguard.core.job import Job
from trainguard.core.messages import moment, span
from trainguard.core.nodes import node_records
from trainguard.core.report import IncidentFile, incident_report, steps_lost, what_happened
from trainguard.ledger.ledger import Ledger
from trainguard.tasks.records import incident_file

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON with stable field names.")]


def status(
    job: Annotated[
        str | None, typer.Argument(help="Only the job with this name or key; without it all.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show the guarded jobs and how they are."""
    rows = [row for row in asyncio.run(_jobs()) if job is None or job in {row["job"], row["name"]}]
    if job is not None and not rows:
        raise UserError(f"no job {job!r} has been guarded", "list them: trainguard status")
    if as_json:
        typer.echo(json.dumps({"jobs": rows}, indent=2))
        return
    if not rows:
        typer.echo("No job has been guarded yet. Start one: trainguard run -- COMMAND")
        return
    now = time.time()
    shown = table("job", "status", "state", "progress", "attempt", "incidents", "guard on", "seen")
    for row in rows:
        words = (row[name] for name in ("name", "status", "liveness", "progress", "attempt", "incidents"))
        guard = (row["guard"] or "nobody").partition("/")[0]  # its machine; the rest is for programs
        shown.add_row(*(escape(str(word)) for word in words), escape(guard), age(row["seen_at"], now))
    print_table(shown)
    console = Console(soft_wrap=True)
    for row in rows:
        if row["questions"]:
            ways = ", ".join(f"trainguard approve {question}" for question in row["questions"])
            console.print(f"{row['name']} waits for your answer: {ways}", markup=False, highlight=False)
        if row["outcome"]:
            console.print(f"{row['name']}: {row['outcome']}", markup=False, highlight=False)


async def _jobs() -> list[dict[str, Any]]:
    async with await Ledger.open() as ledger:
        return [await _job_row(ledger, job) for job in await ledger.jobs()]


async def _job_row(ledger: Ledger, job: Job) -> dict[str, Any]:
    stand = await ledger.job_status(job.key)
    seen = await ledger.latest_observation(job.key)
    lease = await ledger.lease(job.key)
    incidents = await ledger.incidents(job.key)
    requests = await ledger.open_requests(job.key)
    run = seen.incarnation if seen else None
    return {
        "job": job.key,
        "name": job.name,
        "status": stand.status if stand else "Pending",
        "outcome": stand.outcome if stand else "",
        "liveness": seen.liveness.value if seen else "unknown",
        "native": seen.native if seen else "",
        "progress": str(seen.progress) if seen and seen.progress else "-",
        "attempt": run.attempt if run else None,
        "incidents": len(incidents),
        "questions": [request.id for request in requests],
        "guard": lease.holder if lease else None,
        "seen_at": seen.at if seen else None,
    }


def incidents(
    incident: Annotated[
        str | None, typer.Argument(help="An incident's id; without it all are listed.")
    ] = None,
    job: Annotated[str | None, typer.Option(help="Only incidents of the job with this name or key.")] = None,
    node: Annotated[
        str | None,
        typer.Option(help="Only incidents whose fault points at the node with this name."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List incidents, or show one with its evidence."""
    if incident is not None:
        _show(asyncio.run(_one(incident)), as_json)
        return
    found, events = asyncio.run(_incidents(job, node))
    if as_json:
        facts: dict[str, Any] = {"incidents": [_row(job, row) for job, row in found]}
        if node is not None:
            facts["nodes"] = [record.model_dump(mode="json") for record in node_records(events)]
        typer.echo(json.dumps(facts, indent=2))
        return
    for record in node_records(events):
        faults = ", ".join(record.faults)
        typer.echo(f"{record.node}: {faults}; incidents: {record.incidents}, jobs: {record.jobs}")
    _list(found)


async def _incidents(
    wanted: str | None, node: str | None
) -> tuple[list[tuple[Job | None, Incident]], list[NodeEvent]]:
    """Give the incidents that were asked for, and what they laid at the node's door."""
    async with await Ledger.open() as ledger:
        jobs = {job.key: job for job in await ledger.jobs()}
        events = [] if node is None else await ledger.node_events(node)
        ids = dict.fromkeys(event.incident for event in events)
        rows: Sequence[Incident | None] = (
            await ledger.incidents() if node is None else [await ledger.incident(one) for one in ids]
        )
    found = [(jobs.get(row.job_key), row) for row in rows if row is not None]
    if wanted is not None:
        found = [(job, row) for job, row in found if wanted in {row.job_key, job.name if job else ""}]
    listed = {row.id for _, row in found}
    return found, [event for event in events if event.incident in listed]


def _list(found: list[tuple[Job | None, Incident]]) -> None:
    if not found:
        typer.echo("No incidents.")
        return
    shown = table("incident", "job", "what", "state", "detected", "outcome")
    for job, row in found:
        name = job.name if job else row.job_key
        state = row.state.replace("_", " ")
        cells = (row.id, name, what_happened(row), state, moment(row.detected_at), row.outcome)
        shown.add_row(*map(escape, cells))
    print_table(shown)


def _row(job: Job | None, incident: Incident) -> dict[str, Any]:
    ends = incident.recovered_at or incident.closed_at
    since = incident.failed_at or incident.detected_at
    return {
        "incident": incident.id,
        "job": incident.job_key,
        "name": job.name if job else "",
        "state": incident.state.value,
        "signals": [signal.kind.value for signal in incident.signals],
        "detected_at": incident.detected_at,
        "step": incident.step,
        "steps_lost": steps_lost(incident),
        "lasted": span(ends - since) if ends else None,
        "outcome": incident.outcome,
    }


async def _one(incident_id: str) -> IncidentFile:
    async with await Ledger.open() as ledger:
        known = await incident_file(ledger, incident_id)
    if known is None:
        raise UserError(f"there is no incident {incident_id!r}", "list them: trainguard incidents")
    return known


def _show(known: IncidentFile, as_json: bool) -> None:
    if as_json:
        typer.echo(known.model_dump_json(indent=2))
    else:
        Console().print(Markdown(incident_report(known)))
