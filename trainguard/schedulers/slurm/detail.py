"""What a job was submitted with: the controller tells it while it remembers the job, accounting may later."""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass, field, replace

from trainguard.core.errors import UnreachableError
from trainguard.schedulers.slurm import parse
from trainguard.schedulers.slurm.client import SlurmClient, no_such_job, silent, slurm, squeue
from trainguard.schedulers.slurm.ids import JobId, job_id
from trainguard.schedulers.slurm.patterns import OutputFile, expand, step_patterns
from trainguard.transports.posix_shell import Command, Result, new_mark

_HEADER = re.compile(r"^(Batch Script|Environment used) for .*\n-+\n")
_OUTPUT = re.compile(r"^#SBATCH\s+(?:--(output|error)[=\s]|-(o|e)\s*)(\S+)", re.MULTILINE)
_VARIABLE = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)=")


@dataclass(frozen=True)
class Detail:
    """One job, array element or component."""

    id: JobId
    fields: dict[str, str] = field(default_factory=dict)
    """squeue's DETAIL_FIELDS."""
    shown: str = ""
    """`scontrol show job`, as printed."""
    script: str = ""
    submit_line: str = ""
    environment: tuple[tuple[str, str], ...] | None = None
    """As it was at submission, where accounting stores it (job_env)."""
    version: tuple[int, int] = (0, 0)
    """Slurm's: 22.05 is (22, 5)."""

    def get(self, name: str) -> str:
        """Give one field; empty where Slurm gave nothing."""
        value = self.fields.get(name, "").strip()
        return "" if value in {"(null)", "N/A"} else value

    @property
    def excluded(self) -> tuple[str, ...]:
        """The nodes that it excludes already."""
        return parse.node_names(parse.show_value(self.shown, "ExcNodeList"))


async def controller_details(client: SlurmClient, asked: JobId, *, full: bool) -> list[Detail]:
    """Ask the controller; empty where it has forgotten the job. `full` also fetches the batch script.

    Raises UnreachableError: what was not told is not what there is not.
    """
    mark = new_mark()
    commands = [squeue(mark, f"--jobs={asked.asked}", fields=parse.DETAIL_FIELDS)]
    commands.append(slurm("scontrol", "show", "job", asked.asked))
    if full:
        commands.append(slurm("scontrol", "write", "batch_script", asked.asked, "-"))
    table, shown, *written = answers = await client.run(commands)
    for answer in answers:
        if silent(answer) or (answer is table and answer.code != 0 and not no_such_job(answer)):
            raise UnreachableError(f"the Slurm controller does not answer: {answer.problem}")
    script = written[0].text if written and _is_script(written[0]) else ""
    found = []
    for row in parse.rows(table.text, parse.DETAIL_FIELDS, mark):
        name = job_id(row["JobArrayID"])
        if name is not None and (asked.offset is None or asked == name):
            found.append(Detail(name, row, shown.text if shown.code == 0 else "", script))
    return found


def _is_script(answer: Result) -> bool:
    # `scontrol write batch_script` of a forgotten job prints an error and ends with 0.
    return answer.code == 0 and answer.text.startswith("#!")


async def stored(client: SlurmClient, detail: Detail) -> Detail:
    """Add what accounting stores: submit line, working directory, script and environment.

    Accounting runs up to 5 s behind; a job that it does not know yet is asked for again. Raises
    UnreachableError where it is silent, not where there is none.
    """
    columns = ("WorkDir", "Name", "SubmitLine")
    for attempt in range(4):
        line, script, environment, version = await client.run(_stored_queries(detail.id.asked))
        for answer in (line, script, environment):
            if silent(answer):
                raise UnreachableError(f"accounting does not answer: {answer.problem}")
        rows = parse.sacct_rows(line.text, columns) if line.code == 0 else []
        if line.code != 0 or any(row["SubmitLine"].strip() for row in rows):
            break
        await asyncio.sleep(0 if attempt == 3 else 2)
    text = _stored_text(script)
    fields: dict[str, str] = rows[-1] if rows else {}
    return replace(
        detail,
        fields={name: value for name, value in fields.items() if name != "SubmitLine"} | detail.fields,
        script=detail.script or (text if text.startswith("#!") else ""),
        submit_line=fields.get("SubmitLine", "").strip(),
        environment=variables(_stored_text(environment)),
        version=_version(version.text),
    )


def _stored_queries(name: str) -> list[Command]:
    columns = "WorkDir,JobName,SubmitLine"
    return [
        slurm("sacct", "-X", "-n", "-P", f"--delimiter={parse.SEP}", "-o", columns, "-j", name),
        slurm("sacct", "--batch-script", "-j", name),
        slurm("sacct", "--env-vars", "-j", name),
        slurm("sinfo", "--version"),
    ]


def _version(text: str) -> tuple[int, int]:
    match = re.search(r"(\d+)\.(\d+)", text)
    return (int(match[1]), int(match[2])) if match else (99, 0)


def _stored_text(answer: Result) -> str:
    text = answer.text if answer.code == 0 else ""
    body = _HEADER.sub("", text, count=1)
    return "" if body == text or body.strip() == "NONE" else body


def variables(text: str) -> tuple[tuple[str, str], ...] | None:
    """Read an environment, one variable a line; what holds newlines goes on on the next."""
    found: list[tuple[str, str]] = []
    dropping = False
    for line in text.strip("\n").split("\n"):
        match = _VARIABLE.match(line)
        if match:
            found.append((match[1], line[match.end() :]))
            dropping = False
        elif line.startswith("BASH_FUNC_"):
            dropping = True
        elif found and not dropping:
            found[-1] = (found[-1][0], f"{found[-1][1]}\n{line}")
    keep = [
        (name, value)
        for name, value in found
        if not name.startswith(("SLURM_", "SBATCH_")) or name == "SLURM_CONF"
    ]
    return tuple(keep) or None


def outputs(detail: Detail) -> list[OutputFile]:
    """Name the files that the job and, where the script's srun lines say so, its ranks write to."""
    name, workdir = detail.id, detail.get("WorkDir")
    nodes = parse.node_names(detail.get("BatchHost"))
    base = str(name.base)
    values = {
        "A": base,
        "a": "" if name.task is None else str(name.task),
        "j": parse.show_value(detail.shown, "JobId") if name.task is not None else base,
        "J": base,
        "u": detail.get("UserName"),
        "x": detail.get("Name"),
        "b": "" if name.task is None else str(name.task % 10),
    }
    batch = {**values, "N": nodes[0].partition(".")[0] if nodes else "", "n": "0", "t": "0", "s": "batch"}
    patterns = [detail.get("STDOUT"), detail.get("STDERR")]
    if not any(patterns):
        default = f"slurm-{base}.out" if name.task is None else f"slurm-{base}_{name.task}.out"
        patterns = [match[3] for match in _OUTPUT.finditer(detail.script)] or [default]
    found = [expand(pattern, batch, workdir) for pattern in patterns if pattern]
    found += [expand(pattern, values, workdir) for pattern in step_patterns(detail.script)]
    return list({one.path: one for one in found if one.path.startswith("/")}.values())
