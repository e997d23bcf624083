"""Building the sbatch call that submits a saved job again. Pure.

A requeue keeps everything of a job, so it is preferred. It can't tell the script a new argument or variable,
and a finished job submitted with --no-requeue can't be requeued; then the saved script is submitted again
with the options of its submit line, which `scontrol write batch_script` does not hold.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from trainguard.core.errors import RefusedError
from trainguard.core.job import Resume, ResumeBy
from trainguard.schedulers.slurm.detail import Detail
from trainguard.schedulers.slurm.marks import without_marks
from trainguard.schedulers.slurm.parse import minutes, show_value
from trainguard.transports.posix_shell import Command, given

_WITHOUT_VALUE = (
    "--hold --parsable --requeue --no-requeue --overcommit --oversubscribe --contiguous --wait --quiet "
    "--spread-job --use-min-nodes --reboot --ignore-pbs --test-only --verbose --no-kill --get-user-env "
    "--exclusive -H -O -s -W -Q -v -k"
)
_FLAGS = frozenset(_WITHOUT_VALUE.split(" "))
_REPLACED = (
    "--comment --job-name -J --chdir -D --parsable --wait -W --array -a --dependency -d --begin -b --hold -H "
    "--test-only --export --export-file --quiet -Q --verbose -v"
)
_OURS = frozenset(_REPLACED.split(" "))
_FREE = frozenset({"--comment", "--job-name", "-J"})
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


# sbatch is looked for on the login's path: the job's own, in a stored environment, may be another.
_FIND = 's=$(command -v sbatch) || exit 127; exec env "TG_SBATCH=$s" /bin/sh -s'
_FIND_CLEAN = 's=$(command -v sbatch) || exit 127; exec env -i "TG_SBATCH=$s" /bin/sh -s'
_SHELLS_OWN = frozenset({"UID", "EUID", "PPID", "BASHOPTS", "SHELLOPTS", "BASH_VERSINFO", "OPTIND", "_"})
"""Variables that a shell sets itself and lets nobody set; exporting them would end it."""


@dataclass(frozen=True)
class Submission:
    """One sbatch call."""

    options: tuple[str, ...]
    arguments: tuple[str, ...]
    script: str
    environment: tuple[tuple[str, str], ...] | None = None
    added: tuple[tuple[str, str], ...] = ()

    def command(self) -> Command:
        """Both the batch script and the environment come on standard input: everybody on the login node can
        read the arguments of a process, and a path would have to lie there."""
        pairs = [(n, v) for n, v in (*(self.environment or ()), *self.added) if n not in _SHELLS_OWN]
        words = shlex.join(("--parsable", *self.options, "/dev/stdin", *self.arguments))
        lines = [
            "{",
            "s=$TG_SBATCH; unset TG_SBATCH",
            *(f"export {name}={shlex.quote(value)}" for name, value in pairs),
            f'{given(self.script)} | "$s" {words}',
            "exit $?",
            "}",
        ]
        find = _FIND_CLEAN if self.environment is not None else _FIND
        return Command(("sh", "-c", find), stdin="\n".join(lines), timeout=60)


def original_options(
    submit_line: str, command: str, free_text: str = ""
) -> tuple[list[str], list[str]] | None:
    """Take a submit line apart into options and the script's arguments.

    Slurm stores it joined by blanks, without quotes: where that leaves a doubt, None. `command` is what the
    controller says of the script, `free_text` the owner's comment and job name, which may hold blanks.
    """
    words, said, loose = submit_line.split(), command.split(), free_text.split()
    path = said[0] if said else ""
    if not words or ":" in words or "--wrap" in submit_line:
        return None
    if any(word.startswith("-") or (path and _is_script(word, path)) for word in loose):
        return None
    at = _script_at(words, path)
    if at is None or (said[1:] and words[at + 1 :] != said[1:]):
        return None
    return _without_ours(words[1:at]), words[at + 1 :]


def _script_at(words: Sequence[str], path: str) -> int | None:
    """Where the script stands: the first word that is no option and no option's value."""
    waiting, free = False, False
    for index, word in enumerate(words[1:], 1):
        if word.startswith("-"):
            waiting = "=" not in word and word not in _FLAGS and (word.startswith("--") or len(word) == 2)
            free = word.partition("=")[0] in _FREE
        elif waiting:
            waiting = False
        elif path and _is_script(word, path):
            return index
        elif path and free:
            continue
        else:
            return None if path or free else index
    return None


def _is_script(word: str, path: str) -> bool:
    return word == path or path.endswith("/" + word.removeprefix("./"))


def _without_ours(options: Sequence[str]) -> list[str]:
    kept: list[str] = []
    dropping = False
    for word in options:
        if word.startswith("-"):
            name = word.partition("=")[0]
            short = word[:2] if not word.startswith("--") else name
            dropping = name in _OURS or short in _OURS
        if not dropping:
            kept.append(word)
    return kept


def told_options(detail: Detail) -> list[str]:
    """Build the options from what the controller says, where the submit line can't be used.

    Raises RefusedError where something is set that no option is known for here: the job would not be the same.
    """
    wanted = {
        "--partition": detail.get("Partition"),
        "--nodes": detail.get("NumNodes").partition("-")[0],
        "--ntasks": detail.get("NumTasks"),
        "--cpus-per-task": detail.get("cpus-per-task"),
        "--account": detail.get("Account"),
        "--qos": detail.get("QOS"),
        "--reservation": detail.get("Reservation"),
        "--constraint": detail.get("Feature"),
        "--nodelist": "" if detail.get("BatchHost") else detail.get("ReqNodes"),
        "--gres": detail.get("tres-per-node").replace("gres:", "").replace("gres/", ""),
        "--output": detail.get("STDOUT"),
        "--error": "" if detail.get("STDERR") == detail.get("STDOUT") else detail.get("STDERR"),
    }
    limit = minutes(detail.get("TimeLimit"))
    options = [f"{name}={value}" for name, value in wanted.items() if value and value != "0"]
    return options + ([f"--time={limit}"] if limit else []) + _shown_options(detail.shown)


_UNSET = frozenset({"", "0", "*", "N/A", "00:00:00", "0:0:*:*"})
_SHOWN = {
    "MinMemoryNode": "--mem",
    "MinMemoryCPU": "--mem-per-cpu",
    "MinTmpDiskNode": "--tmp",
    "ExcNodeList": "--exclude",
    "Licenses": "--licenses",
    "Network": "--network",
    "CoreSpec": "--core-spec",
    "TimeMin": "--time-min",
    "MailUser": "--mail-user",
    "MailType": "--mail-type",
    "Prefer": "--prefer",
    "Switches": "--switches",
    "CpusPerTres": "--cpus-per-gpu",
    "MemPerTres": "--mem-per-gpu",
    "TresPerJob": "--gpus",
    "TresPerSocket": "--gpus-per-socket",
    "TresPerTask": "--gpus-per-task",
}
_ONLY_GPUS = frozenset({"CpusPerTres", "MemPerTres", "TresPerJob", "TresPerSocket", "TresPerTask"})
_GPU = re.compile(r"gres[:/]gpu(?::([^,]+))?")
_UNTOLD = (
    "BurstBuffer",
    "ClusterFeatures",
    "TresFreq",
    "TresBind",
    "Deadline",
    "MCS_label",
    "Socks/Node",
    "SegmentSize",
)


def _shown_options(shown: str) -> list[str]:
    """Read `scontrol show job`. What sbatch's --signal was is told nowhere; in the script it is kept."""
    told = {key: show_value(shown, key) for key in (*_SHOWN, *_UNTOLD)}
    told = {key: value for key, value in told.items() if value not in _UNSET}
    lost = [key for key in _UNTOLD if key in told]
    options = []
    for key, value in told.items():
        if key in _ONLY_GPUS:
            match = _GPU.fullmatch(value)
            if match is None:
                lost.append(key)
                continue
            value = match[1] or "1"
        if key in _SHOWN:
            options.append(f"{_SHOWN[key]}={value}")
    if lost:
        raise RefusedError(
            f"accounting has no submit line of it, and the options behind {', '.join(lost)} of `scontrol show job` "
            "are not known here: submitted again it would not be the same job"
        )
    tasks, _, rest = show_value(shown, "NtasksPerN:B:S:C").partition(":")
    if rest not in _UNSET | {"0:*:*", "0:*:1"}:
        raise RefusedError(
            "accounting has no submit line of it, and it binds tasks to boards, sockets or cores"
        )
    options += [f"--ntasks-per-node={tasks}"] if tasks not in _UNSET else []
    shares = {
        "NO": "--exclusive",
        "YES": "--oversubscribe",
        "USER": "--exclusive=user",
        "MCS": "--exclusive=mcs",
    }
    flags = [
        shares.get(show_value(shown, "OverSubscribe"), ""),
        "--contiguous" if show_value(shown, "Contiguous") == "1" else "",
        {"0": "--no-requeue", "1": "--requeue"}.get(show_value(shown, "Requeue"), ""),
    ]
    return options + [flag for flag in flags if flag]


def _free_text(detail: Detail, comment: str) -> str:
    """What of the owner's words stands in the submit line; a name that was not given is the script's."""
    words = {word.partition("=")[0] for word in detail.submit_line.split()}
    name = detail.get("Name") if words & {"--job-name", "-J"} else ""
    return f"{without_marks(comment) if '--comment' in words else ''} {name}"


def _tells_arguments(detail: Detail) -> bool:
    """22.05 shows them behind the script's path, 24.11 the path alone; `--wrap` and stdin have none."""
    words = detail.get("Command").split()
    return len(words) != 1 or detail.version <= (22, 5)


def export_option(submit_line: str) -> str:
    """Give what the owner wanted exported; the default is everything."""
    match = re.search(r"(?:^|\s)--export[= ](\S+)", submit_line)
    return match[1] if match else "ALL"


def resumed(
    arguments: Sequence[str], resume: Resume, checkpoint: str
) -> tuple[tuple[str, ...], tuple[tuple[str, str], ...]]:
    """Tell the script where to resume: its arguments, and variables to add. Raises RefusedError."""
    if not checkpoint:
        return tuple(arguments), ()
    if resume.by is ResumeBy.ENVIRONMENT:
        if not _NAME.fullmatch(resume.name):
            raise RefusedError(f"{resume.name!r} is no name of an environment variable")
        return tuple(arguments), ((resume.name, checkpoint),)
    if resume.by is ResumeBy.ARGUMENT:
        return (*_without_option(arguments, resume.name), resume.name, checkpoint), ()
    return tuple(arguments), ()


def _without_option(arguments: Sequence[str], name: str) -> list[str]:
    """Drop `--resume X` and `--resume=X` of an earlier restart."""
    kept: list[str] = []
    skip = False
    for word in arguments:
        if skip or word == name:
            skip = not skip
        elif not word.startswith(f"{name}="):
            kept.append(word)
    return kept


def submission(
    detail: Detail, comment: str, resume: Resume, checkpoint: str, changes: Sequence[str], tasks: str = ""
) -> Submission:
    """Build the call. Raises RefusedError where the job can't be submitted again as it was."""
    if not detail.script:
        raise RefusedError(
            "its batch script is known neither to the controller any more nor to accounting "
            "(AccountingStoreFlags=job_script keeps it)"
        )
    if detail.id.offset is not None or " : " in detail.submit_line:
        raise RefusedError("a heterogeneous job can only be requeued, not submitted again")
    taken = original_options(detail.submit_line, detail.get("Command"), _free_text(detail, comment))
    options, arguments = taken or (told_options(detail), detail.get("Command").split()[1:])
    if taken is None and not detail.get("Partition"):
        raise RefusedError(
            "the controller has forgotten how it was submitted, and accounting's submit line leaves doubts"
        )
    if taken is None and not _tells_arguments(detail):
        raise RefusedError(
            "this Slurm's controller does not tell the arguments of a batch script, and accounting has no submit "
            "line of it: a requeue keeps them, submitting it again could lose them"
        )
    if resume.by is ResumeBy.ARGUMENT and checkpoint and "sbatch --wrap" in detail.script[:200]:
        raise RefusedError("a job made by --wrap takes no arguments: resume it by an environment variable")
    arguments_, added = resumed(arguments, resume, checkpoint)
    export = export_option(detail.submit_line)
    if added and export.split(",")[0] not in {"ALL", "all"}:
        export = ",".join([*(part for part in export.split(",") if part not in {"NONE", "NIL"}), added[0][0]])
    options = [
        *options,
        f"--export={export}",
        f"--job-name={detail.get('Name')}",
        f"--chdir={detail.get('WorkDir')}",
        *changes,
        f"--comment={comment}",
        *([f"--array={tasks}"] if tasks else []),
    ]
    return Submission(tuple(options), arguments_, detail.script, detail.environment, added)
