"""`trainguard demo`: a real small training meets real trouble under a real guard, on this machine alone."""

from __future__ import annotations

import asyncio
import contextlib
import getpass
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from trainguard.cli.prefect_server import prefect_server
from trainguard.cli.terminal import print_table, table
from trainguard.core.action import ActionKind
from trainguard.core.cadence import Cadence
from trainguard.core.errors import UserError
from trainguard.core.incident import IncidentState
from trainguard.core.job import CheckpointSpec, Resume, ResumeBy, Watching
from trainguard.core.policy import Allow, Policy
from trainguard.core.report import IncidentFile, steps_lost, what_happened
from trainguard.core.verdict import FaultClass
from trainguard.demo.scenario import SCENARIO, TORCH_SCENARIO, Scenario

if TYPE_CHECKING:
    from trainguard.core.decision import ApprovalRequest
    from trainguard.ledger.ledger import Ledger

WIDE = 120
POLICY = Policy(
    allow=(
        Allow(action=ActionKind.RESTART_WITH_MORE_MEMORY, faults=(FaultClass.HOST_OOM,)),
        Allow(action=ActionKind.RESTART_FROM_EARLIER_CHECKPOINT, faults=(FaultClass.CHECKPOINT_CORRUPTION,)),
        Allow(action=ActionKind.SET_ASIDE_CHECKPOINT),
        Allow(action=ActionKind.RESTART),
    ),
    approval_deadline=1800,
    verify_deadline=300,
)
"""What a careful owner might whitelist; nothing in it or in the guard knows of a demo."""


def demo(
    yes: Annotated[bool, typer.Option("--yes", help="Answer the question that comes up.")] = False,
    torch: Annotated[bool, typer.Option("--torch", help="Two ranks under torchrun; needs PyTorch.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the end as JSON.")] = False,
    keep: Annotated[
        bool, typer.Option("--keep", help="Keep the folder with logs, ledger and evidence.")
    ] = False,
    port: Annotated[int | None, typer.Option(help="Port of Prefect's server; by default a free one.")] = None,
) -> None:
    """Watch a training job die for real reasons and come back."""
    scenario = TORCH_SCENARIO if torch else SCENARIO
    _require("torch" if torch else "numpy")
    folder = Path(tempfile.mkdtemp(prefix="trainguard-demo-"))
    os.environ["TRAINGUARD_LEDGER_URL"] = f"sqlite:///{folder / 'ledger.db'}"
    began = time.monotonic()
    try:
        typer.echo("Starting Prefect's server (SQLite) ...", err=True)
        with prefect_server(folder / "prefect", port) as environment:
            os.environ.update(environment)
            typer.echo(f"Prefect UI: {environment['PREFECT_UI_URL']}", err=True)
            files, outcome = _play(scenario, folder, yes=yes, as_json=as_json)
        _print_end(files, outcome, as_json)
        typer.echo(f"The whole demo took {time.monotonic() - began:.0f} s.", err=True)
    finally:
        if keep:
            typer.echo(f"Kept: {folder}", err=True)
        else:
            shutil.rmtree(folder, ignore_errors=True)
    if not _as_told(scenario, files):
        raise typer.Exit(1)


def _require(module: str) -> None:
    from importlib.util import find_spec

    if find_spec(module) is None:
        raise UserError(f"the demo needs {module}", f"pip install {module}")


def _play(scenario: Scenario, folder: Path, *, yes: bool, as_json: bool) -> tuple[list[IncidentFile], str]:
    from trainguard.blocks.local_host import LocalHost
    from trainguard.cli.guarding import FIRST_SIGNAL, GuardOptions, guard_here
    from trainguard.schedulers.local.starting import LocalJob, start_job

    work = folder / "training"
    config = LocalJob(
        command=(*_launcher(scenario), "--work", str(work), *scenario.arguments),
        name="spirals",
        project="demo",
        state=folder / "job",
        checkpoints=CheckpointSpec(
            directory=str(work / "checkpoints"),
            format="glob",
            glob=scenario.checkpoint_glob,
            resume=Resume(by=ResumeBy.ARGUMENT, name="--resume"),
        ),
        watching=Watching(stall_after=scenario.stall_after),
        supervisor={"memory": {"limit": scenario.memory_limit}} if scenario.memory_limit else {},
    )
    for planned in scenario.incidents:
        typer.echo(f"  to come: {planned.story}", err=True)
    block = LocalHost()
    job = asyncio.run(start_job(config, block.cluster_name()))
    options = GuardOptions(policy=POLICY, cadence=Cadence(settle=10, young=(10, 10), steady=20, uncertain=10))
    if yes:
        _answer_in_background()
    else:
        typer.echo(
            f"To answer from another terminal: TRAINGUARD_LEDGER_URL={os.environ['TRAINGUARD_LEDGER_URL']} "
            "trainguard approve",
            err=True,
        )
    try:
        code = guard_here(job, block, options, quiet_end=as_json, farewell="The demo was stopped.")
    finally:
        _stop(folder / "job")
    if code > FIRST_SIGNAL:
        raise typer.Exit(code)
    return asyncio.run(_record(job.key))


def _stop(folder: Path) -> None:
    """Leave no training and no supervisor behind."""
    from trainguard.schedulers.local.starting import SUPERVISOR

    for word in ("stop", "quit"):
        argv = [sys.executable, "-I", "-S", SUPERVISOR, "tell", str(folder), word]
        subprocess.run(argv, capture_output=True, check=False)


def _launcher(scenario: Scenario) -> tuple[str, ...]:
    if scenario is TORCH_SCENARIO:
        ranks = ("--standalone", "--nproc-per-node", "2")
        return (sys.executable, "-m", "torch.distributed.run", *ranks, "-m", scenario.module)
    return (sys.executable, "-m", scenario.module)


def _answer_in_background() -> None:
    """Approve what is asked, as a person at another terminal would."""
    from threading import Thread

    Thread(target=lambda: asyncio.run(_answer_questions()), daemon=True, name="answers").start()


async def _answer_questions() -> None:
    from trainguard.core.errors import LedgerUnavailableError
    from trainguard.ledger.ledger import Ledger

    # the ledger goes with the demo's folder, while this thread still looks at it
    with contextlib.suppress(LedgerUnavailableError):
        async with await Ledger.open() as ledger:
            while True:
                for question in await ledger.open_requests():
                    await asyncio.sleep(3)
                    await _approve(ledger, question)
                await asyncio.sleep(1)


async def _approve(ledger: Ledger, question: ApprovalRequest) -> None:
    from trainguard.core.decision import Answer, ApprovalAnswer

    answer = ApprovalAnswer(
        request=question.id,
        answer=Answer.APPROVE,
        by=f"{getpass.getuser()} (--yes)",
        via="cli",
        at=time.time(),
    )
    current = question.incarnation.token if question.incarnation else None
    await ledger.answer(answer, current, time.time())


async def _record(job_key: str) -> tuple[list[IncidentFile], str]:
    from trainguard.ledger.ledger import Ledger
    from trainguard.tasks.records import incident_file

    async with await Ledger.open() as ledger:
        incidents = reversed(await ledger.incidents(job_key))
        files = [await incident_file(ledger, incident.id) for incident in incidents]
        stand = await ledger.job_status(job_key)
    return [file for file in files if file is not None], stand.outcome if stand else "unknown"


def _row(known: IncidentFile) -> dict[str, Any]:
    incident = known.incident
    failed = incident.failed_at or incident.detected_at
    return {
        "class": known.diagnosis.fault.value if known.diagnosis else "unknown",
        "decision": _decision(known),
        "outcome": incident.state.value,
        "steps_lost": steps_lost(incident),
        "seconds": {
            "detect": round(incident.detected_at - failed, 1),
            "restart": _since(failed, incident.acted_at),
            "verified": _since(failed, incident.recovered_at),
        },
    }


def _since(began: float, at: float | None) -> float | None:
    return None if at is None else round(at - began, 1)


def _decision(known: IncidentFile) -> str:
    if known.answer is not None:
        return f"{known.answer.answer.value} by {known.answer.by}"
    steps = known.plan.steps if known.plan else ()
    return ", ".join(f"{step.verdict.value} {step.action.kind.value}" for step in steps) or "report"


def _print_end(files: list[IncidentFile], outcome: str, as_json: bool) -> None:
    rows = [_row(known) for known in files]
    if as_json:
        typer.echo(json.dumps({"incidents": rows, "outcome": outcome}))
        return
    shown = table("failure", "diagnosed as", "decided", "outcome", "lost", "seconds")
    for known, row in zip(files, rows, strict=True):
        seconds = " / ".join("-" if s is None else str(s) for s in row["seconds"].values())
        lost = "-" if row["steps_lost"] is None else f"{row['steps_lost']} steps"
        decision = row["decision"].replace("_", " ")
        cells = (what_happened(known.incident), row["class"], decision, row["outcome"], lost, seconds)
        shown.add_row(*map(escape, cells))
    print_table(shown, wide=WIDE)
    typer.echo("Seconds: from the failure to its detection / to the restart / to verified progress.")
    for known in files:
        if known.diagnosis is not None and known.diagnosis.code_location:
            typer.echo(f"In the code: {known.diagnosis.cause} ({known.diagnosis.code_location})")
    typer.echo(f"Outcome: {outcome}")


def _as_told(scenario: Scenario, files: list[IncidentFile]) -> bool:
    """Whether every planned incident ended as announced, and no other came."""
    ends = [known.incident.state is IncidentState.RECOVERED for known in files]
    return ends == [planned.recovers for planned in scenario.incidents]
