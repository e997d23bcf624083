"""`trainguard run`, `watch` and `patrol`."""

from __future__ import annotations

import asyncio
import shlex
import sys
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError

from trainguard.cli.guarding import GuardOptions, guard_here, load_blocks, patrol_here, require_prefect
from trainguard.cli.settings import Settings, load_settings, policy_of, rules_of
from trainguard.core.errors import ConfigError, UserError
from trainguard.core.job import CheckpointSpec, Job, JobRef, Resume, ResumeBy
from trainguard.schedulers.local.starting import LocalJob, load_job, start_job

Config = Annotated[Path | None, typer.Option("--config", help="Settings file; by default ./trainguard.toml.")]
PolicyFile = Annotated[Path | None, typer.Option("--policy", help="TOML file with the policy.")]
PresetName = Annotated[str | None, typer.Option("--preset", help="observe, assist or autonomous.")]
AllowList = Annotated[
    list[str] | None, typer.Option("--allow", help="An action that may run; may be repeated.")
]
RuleFiles = Annotated[
    list[Path] | None,
    typer.Option("--rules", help="A file of own rules or exit-code handlers; may be given often."),
]
Minutes = Annotated[
    float | None, typer.Option("--minutes", min=0, help="Guard for so long, then leave the job alone.")
]
Until = Annotated[datetime | None, typer.Option("--until", help="Guard until this local time.")]
TakeOver = Annotated[bool, typer.Option("--take-over", help="Take the job over from the guard that has it.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the end as JSON with stable field names.")]
ClusterSlug = Annotated[
    str,
    typer.Option(
        "--cluster", help="The cluster's block, such as slurm-cluster/lab; by default this machine."
    ),
]


def run(
    command: Annotated[list[str] | None, typer.Argument(help="The training command, after --.")] = None,
    name: Annotated[str, typer.Option(help="What to call the job; by default the command's own name.")] = "",
    state: Annotated[Path | None, typer.Option(help="State folder of the job.")] = None,
    checkpoints: Annotated[Path | None, typer.Option(help="Folder of its checkpoints.")] = None,
    resume_argument: Annotated[
        str, typer.Option(help="Option that names the checkpoint, such as --resume.")
    ] = "",
    resume_environment: Annotated[str, typer.Option(help="Variable that names the checkpoint.")] = "",
    config: Config = None,
    policy: PolicyFile = None,
    preset: PresetName = None,
    allow: AllowList = None,
    rules: RuleFiles = None,
    minutes: Minutes = None,
    until: Until = None,
    as_json: AsJson = False,
) -> None:
    """Start a training command on this machine and guard it.

    The command runs under a supervisor of its own and outlives this one: after Ctrl-C, or if the guard is
    killed, `trainguard watch STATE` guards it again.
    """
    settings = load_settings(config)
    flags = {
        "command": tuple(command or ()),
        "name": name,
        "state": state,
        "checkpoints": _checkpoints(checkpoints, resume_argument, resume_environment),
    }
    local = _local_job(settings, {key: value for key, value in flags.items() if value})
    options = _options(settings, policy, preset, allow, rules, minutes, until, take_over=False)
    require_prefect()
    asyncio.run(load_blocks(options))  # what is missing is said before anything is started
    block = _this_machine()
    job = asyncio.run(start_job(local, block.cluster_name()))
    typer.echo(f"{job.name} runs under its supervisor in {job.ref.id}", err=True)
    raise typer.Exit(guard_here(job, block, options, as_json=as_json))


def watch(
    job: Annotated[
        str,
        typer.Argument(
            help="State folder of a local job, the id by which its scheduler knows it, or its Kubernetes manifest."
        ),
    ],
    cluster: ClusterSlug = "",
    name: Annotated[str, typer.Option(help="What to call it; by default its id.")] = "",
    checkpoints: Annotated[
        Path | None, typer.Option(help="Folder of its checkpoints, as the job sees it.")
    ] = None,
    resume_argument: Annotated[str, typer.Option(help="Option that names the checkpoint.")] = "",
    resume_environment: Annotated[str, typer.Option(help="Variable that names the checkpoint.")] = "",
    config: Config = None,
    policy: PolicyFile = None,
    preset: PresetName = None,
    allow: AllowList = None,
    rules: RuleFiles = None,
    minutes: Minutes = None,
    until: Until = None,
    take_over: TakeOver = False,
    as_json: AsJson = False,
) -> None:
    """Guard a job that already runs."""
    settings = load_settings(config)
    options = _options(settings, policy, preset, allow, rules, minutes, until, take_over=take_over)
    if not cluster:
        block: Any = _this_machine()
        known = load_job(Path(job), block.cluster_name())
        require_prefect()
        raise typer.Exit(guard_here(known, block, options, as_json=as_json))
    require_prefect()
    spec = _checkpoints(checkpoints, resume_argument, resume_environment)
    raise typer.Exit(
        guard_here(asyncio.run(_job_of(cluster, job, name, spec)), cluster, options, as_json=as_json)
    )


def patrol(
    selector: Annotated[str, typer.Argument(help="Which jobs: `user=alice`, `namespace=ml`, `*`.")],
    cluster: ClusterSlug = "",
    only_failed: Annotated[
        bool, typer.Option("--only-failed", help="Guard only jobs that have failed.")
    ] = False,
    config: Config = None,
    policy: PolicyFile = None,
    preset: PresetName = None,
    allow: AllowList = None,
    rules: RuleFiles = None,
    minutes: Minutes = None,
    until: Until = None,
    as_json: AsJson = False,
) -> None:
    """Guard every job of a cluster that a selector finds, for a time or for good."""
    settings = load_settings(config)
    options = _options(settings, policy, preset, allow, rules, minutes, until, take_over=False)
    require_prefect()
    found = cluster or _this_machine()
    raise typer.Exit(patrol_here(found, selector, options, only_failed=only_failed, as_json=as_json))


def _options(
    settings: Settings,
    policy: Path | None,
    preset: str | None,
    allow: list[str] | None,
    rules: list[Path] | None,
    minutes: float | None,
    until: datetime | None,
    *,
    take_over: bool,
) -> GuardOptions:
    if until is not None and until.astimezone() < datetime.now().astimezone():
        raise ConfigError(
            "--until", f"{until:%Y-%m-%d %H:%M} is over", "give a time to come, such as 2030-01-31T08:00"
        )
    return GuardOptions(
        policy=policy_of(settings, policy, preset, allow),
        cadence=settings.cadence,
        until=until.astimezone() if until else None,
        minutes=minutes,
        take_over=take_over,
        notifiers=tuple(settings.notifiers),
        model=settings.model,
        rules=rules_of(settings, rules),
    )


def _checkpoints(folder: Path | None, argument: str, environment: str) -> CheckpointSpec | None:
    if folder is None:
        if argument or environment:
            raise ConfigError("--checkpoints", "missing: a resume option needs the folder of the checkpoints")
        return None
    if argument and environment:
        raise ConfigError(
            "--resume-argument", "given together with --resume-environment", "choose one of them"
        )
    by = ResumeBy.ARGUMENT if argument else ResumeBy.ENVIRONMENT if environment else ResumeBy.NOTHING
    return CheckpointSpec(
        directory=str(folder.expanduser().resolve()), resume=Resume(by=by, name=argument or environment)
    )


def _local_job(settings: Settings, flags: dict[str, Any]) -> LocalJob:
    """Join file and flags; ask for what is missing on a terminal, say what is missing off one."""
    table = {**settings.job, **flags}
    if not table.get("command"):
        if not sys.stdin.isatty():
            raise ConfigError("command", "missing", "give it after --: trainguard run -- python train.py")
        table["command"] = shlex.split(typer.prompt("Training command"))
    table.setdefault("name", _name_of(table["command"]))
    try:
        return LocalJob.model_validate(table)
    except ValidationError as problem:
        first = problem.errors()[0]
        field = "job." + ".".join(str(part) for part in first["loc"])
        raise ConfigError(field, f"{first['msg']} (found {first['input']!r})") from None


def _name_of(command: list[str] | tuple[str, ...]) -> str:
    scripts = [word for word in command if word.endswith((".py", ".sh"))]
    return Path(scripts[0] if scripts else command[0]).stem


def _this_machine() -> Any:
    from trainguard.blocks.local_host import LocalHost

    return LocalHost()


async def _job_of(slug: str, native_id: str, name: str, spec: CheckpointSpec | None) -> Job:
    from trainguard.blocks.clusters import as_block

    if not native_id:
        raise UserError("no job was named")
    block = await as_block(slug)
    return block.place(Job(ref=JobRef(id=native_id), name=name, checkpoints=spec))
