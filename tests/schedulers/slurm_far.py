"""A login node that is scripted: squeue, scontrol, sbatch, sacct and the notes in the home, in memory."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from trainguard.core.action import Action, ActionKind, Fence
from trainguard.core.job import Incarnation, Job, JobRef
from trainguard.core.observation import Observation
from trainguard.schedulers.slurm import journal, logs
from trainguard.schedulers.slurm.parse import SACCT_FIELDS, SEP, SQUEUE_FIELDS
from trainguard.transports.posix_shell import AnswerLostError, Command, Result

NOW = 1_700_001_000
GIVEN = {"SubmitTime": "1700000000", "StartTime": "1700000010", "EndTime": "1700000900", "UserName": "alice"}
DETAILS = {"Partition": "gpu", "NumNodes": "1", "WorkDir": "/w", "Name": "train", "Command": "/w/train.sh"}
PROGRAMS = ("squeue", "sacct", "sinfo", "scontrol", "scancel", "date", "id")


class Far:
    """Rows as they are given, changed as Slurm would by what is asked."""

    def __init__(self) -> None:
        self.queue: dict[str, dict[str, str]] = {}
        self.accounts: list[dict[str, str]] = []
        self.sacct_problem = "Slurm accounting storage is disabled"
        self.sacct_silent = False
        """It does not tell of single jobs."""
        self.squeue_problem = ""
        self.sinfo_fails: set[int] = set()
        """Which calls of sinfo fail, counted from 1."""
        self.nodes: list[tuple[str, str, str]] = []
        self.memory = 4000
        self.shown = ""
        self.user = "alice"
        self.clock = float(NOW)
        self.notes: dict[str, tuple[str, float]] = {}
        self.home_hangs = False
        self.rounds = 0
        self.asked: list[str] = []
        self.done: list[str] = []
        """The commands that change something, as they were run."""
        self.answers: dict[str, Result] = {}
        """What a command that begins so answers, in place of being carried out."""
        self.lose = ""
        """Before a command that begins so the connection is cut for good."""
        self.during: Callable[[], None] = lambda: None
        """What happens while squeue is asked."""
        self.ending = False
        """Whether the processes of what is requeued go on for now."""
        self.born = 900
        self.read: list[str] = []
        """Files that were read."""

    async def run(
        self, commands: Sequence[Command], *, limit: int = 0, now: bool = False, within: float | None = None
    ) -> list[Result]:
        del limit, now, within
        self.rounds += 1
        found: list[Result] = []
        for command in commands:
            before = found[-1] if found else Result(0, b"", b"")
            if (command.if_ok and before.code != 0) or (command.if_first and found[0].code != 0):
                found.append(Result(before.code if command.if_ok else found[0].code, b"", b""))
            else:
                found.append(self._answer(command))
        return found

    async def close(self) -> None:
        """Nothing is held."""

    def _answer(self, command: Command) -> Result:
        argv = command.argv
        if argv[:2] == ("sh", "-c") and argv[2] in {journal._WRITE, journal._READ, journal._ERASE}:
            return self._note(argv)
        if "sbatch" in " ".join(argv[:5]) or "sbatch" in (command.stdin or "")[-2000:]:
            return self._change("sbatch", lambda: self._sbatch(command))
        if argv[:2] == ("sh", "-c") and argv[2] == logs._READ:
            self.read.append(argv[4])
            return Result(3, b"", b"")
        at = next((i for i, word in enumerate(argv) if word in PROGRAMS), None)
        name = argv[at] if at is not None else ""
        self.asked.append(name)
        if at is not None and name in {"scontrol", "scancel"}:
            return self._scontrol(argv[at:])
        if name == "squeue":
            return self._squeue(argv)
        if name == "sacct":
            return self._sacct(argv)
        if name == "sinfo":
            return self._sinfo(argv)
        text = {"date": f"{self.clock:.0f}", "id": self.user}.get(name, "")
        return Result(0, text.encode(), b"")

    # Notes

    def _note(self, argv: tuple[str, ...]) -> Result:
        script, fence = argv[2], argv[5]
        if self.home_hangs:
            return Result(124, b"", b"")
        if script == journal._READ:
            if fence not in self.notes:
                return Result(3, b"", b"")
            text, at = self.notes[fence]
            return Result(0, f"{self.clock:.0f} {at:.0f}\n{text}\n".encode(), b"")
        if script == journal._ERASE:
            self.notes.pop(fence, None)
        elif fence in self.notes and argv[7] != "again":
            return Result(journal.TAKEN, b"", b"")
        else:
            self.notes[fence] = (f"{argv[6]} at {self.clock:.0f}", self.clock)
        return Result(0, b"", b"")

    # Asking

    def _squeue(self, argv: tuple[str, ...]) -> Result:
        self.during()
        if self.squeue_problem:
            return Result(1, b"", self.squeue_problem.encode())
        fields = re.findall(r"([A-Za-z_-]+):", argv[-1])
        mark = argv[-1].rpartition(":")[2]
        wanted = _jobs(argv)
        rows = [
            row
            for name, row in self.queue.items()
            if wanted is None or name in wanted or re.split(r"[_+]", name)[0] in wanted
        ]
        if wanted is not None and len(wanted) == 1 and not rows:
            return Result(1, b"", b"slurm_load_jobs error: Invalid job id specified")
        return Result(
            0, "".join(SEP.join(row.get(f, "") for f in fields) + f"{mark}\n" for row in rows).encode(), b""
        )

    def _sacct(self, argv: tuple[str, ...]) -> Result:
        if self.sacct_silent and not any(word.startswith("--starttime") for word in argv):
            return Result(1, b"", b"sacct: error: Sending PersistInit msg: Connection refused")
        if self.sacct_problem:
            return Result(1, b"", self.sacct_problem.encode())
        wanted = _jobs(argv)
        rows = [row for row in self.accounts if wanted is None or row["JobID"] in wanted]
        return Result(
            0, "".join(SEP.join(row.get(f, "") for f in SACCT_FIELDS) + "\n" for row in rows).encode(), b""
        )

    def _sinfo(self, argv: tuple[str, ...]) -> Result:
        if self.asked.count("sinfo") in self.sinfo_fails:
            return Result(1, b"", b"slurm_load_node: Zero Bytes were transmitted or received")
        if "--version" in argv:
            return Result(0, b"slurm-wlm 22.05.8", b"")
        mark, partition = argv[-1].rpartition(":")[2], any(word.startswith("--partition=") for word in argv)
        last = str(self.memory) if partition else ""
        return Result(
            0, "".join(SEP.join((n, s, last or r)) + f"{mark}\n" for n, s, r in self.nodes).encode(), b""
        )

    # Changing

    def _change(self, line: str, carry_out: Callable[[], Result]) -> Result:
        if self.lose and line.startswith(self.lose):
            raise AnswerLostError("the connection was cut")
        for begins, answer in self.answers.items():
            if line.startswith(begins):
                return answer
        self.done.append(line)
        return carry_out()

    def _sbatch(self, command: Command) -> Result:
        self.born += 1
        text = f"{' '.join(command.argv)} {command.stdin}"
        comment = re.search(r"--comment=([^']*)", text)
        self.put(str(self.born), "PENDING", Reason="Dependency", Comment=comment[1] if comment else "")
        self.queue[str(self.born)]["options"] = text
        return Result(0, f"{self.born}\n".encode(), b"")

    def _scontrol(self, words: tuple[str, ...]) -> Result:
        line = " ".join(words[1:] if words[0] == "scontrol" else words)
        verb, rest = (words[1], words[2:]) if words[0] == "scontrol" else ("scancel", words[1:])
        if verb == "show":
            return Result(0, self.shown.encode(), b"")
        if verb == "write":
            return Result(0, b"#!/bin/sh\nexit 3\n", b"")
        return self._change(line, lambda: self._carry_out(verb, rest))

    def _carry_out(self, verb: str, rest: tuple[str, ...]) -> Result:
        if verb == "update":
            fields = dict(word.split("=", 1) for word in rest)
            row = self.queue.get(fields.pop("JobId", ""), {})
            if "Comment" in fields:
                row["Comment"] = fields["Comment"]
            return Result(0, b"", b"")
        row = self.queue[rest[0]]
        if verb in {"requeue", "requeuehold"}:
            reason = "BeginTime" if verb == "requeue" else "job requeued in held state"
            count = int(row["RestartCnt"] or 0) + 1
            row |= {"State": "PENDING", "RestartCnt": str(count), "Reason": reason, "NodeList": ""}
            if self.ending:
                row |= {"State": "COMPLETING", "EndTime": f"{self.clock:.0f}"}
            else:
                row["SubmitTime"] = f"{self.clock:.0f}"
        elif verb == "scancel":
            row |= {"State": "CANCELLED"}
        else:
            row["Reason"] = "JobHeldUser" if verb == "hold" else "Resources"
        return Result(0, b"", b"")

    # What the tests give

    def put(self, native: str, state: str, **more: str) -> None:
        given = {"JobArrayID": native, "JobID": native, "State": state, "Requeue": "1", "RestartCnt": "0"}
        names = {*SQUEUE_FIELDS, *DETAILS, *more}
        self.queue[native] = {name: (given | GIVEN | DETAILS | more).get(name, "") for name in names}

    def account(self, native: str, state: str, **more: str) -> None:
        self.accounts.append(
            {"JobID": native, "State": state, "ExitCode": "0:0", "Submit": "1700000000", "User": "alice"}
            | more
        )


def _jobs(argv: tuple[str, ...]) -> list[str] | None:
    return next((word.partition("=")[2].split(",") for word in argv if word.startswith("--jobs=")), None)


def job(native: str, **more: object) -> Job:
    ref = JobRef(scheduler="slurm", cluster="c", id=native)
    return Job.model_validate({"ref": ref, "name": native, **more})


def act(seen: Observation | Incarnation, kind: ActionKind = ActionKind.RESTART, **more: object) -> Action:
    incarnation = seen.incarnation if isinstance(seen, Observation) else seen
    return Action.model_validate({"kind": kind, "incarnation": incarnation, **more})


def fence(number: int = 1) -> Fence:
    return Fence(token=f"tg-x-{number}", incident="x", lease=1)
