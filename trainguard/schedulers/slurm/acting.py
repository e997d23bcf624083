"""Acting on Slurm jobs: each action once, on the incarnation that it is meant for, and found afterwards."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from trainguard.core.action import Action, ActionKind, Fence, Outcome, OutcomeStatus
from trainguard.core.errors import AccessRefusedError, RefusedError, UnreachableError
from trainguard.core.job import Job, Resume, ResumeBy
from trainguard.core.observation import Liveness
from trainguard.schedulers.slurm.changes import Changes, changes_for
from trainguard.schedulers.slurm.client import SlurmClient, check, silent, slurm
from trainguard.schedulers.slurm.detail import Detail, controller_details, stored
from trainguard.schedulers.slurm.finding import Finder
from trainguard.schedulers.slurm.gating import Target, gate
from trainguard.schedulers.slurm.ids import JobId, is_node_name, job_id
from trainguard.schedulers.slurm.jobs import attempt, incarnation
from trainguard.schedulers.slurm.journal import TAKEN, WITHIN, Journal
from trainguard.schedulers.slurm.marks import FENCE, LONGEST, Mark, marked
from trainguard.schedulers.slurm.observing import Observer
from trainguard.schedulers.slurm.parse import Record
from trainguard.schedulers.slurm.states import STATES
from trainguard.schedulers.slurm.submit import submission
from trainguard.transports.posix_shell import AnswerLostError, Command, Result

SUPPORTED = frozenset(
    {
        ActionKind.RESTART,
        ActionKind.RESTART_EXCLUDING_NODE,
        ActionKind.RESTART_WITH_MORE_MEMORY,
        ActionKind.RESTART_FROM_EARLIER_CHECKPOINT,
        ActionKind.EXTEND_TIME_LIMIT,
        ActionKind.HOLD,
        ActionKind.RELEASE,
        ActionKind.CANCEL,
        ActionKind.DRAIN_NODE,
    }
)
_CHUNK = 200
"""Parts of a job that are acted on with one note; an array may have thousands."""


class Actor:
    """Performs actions on one cluster's jobs."""

    def __init__(
        self,
        client: SlurmClient,
        observer: Observer,
        finder: Finder,
        journal: Journal,
        *,
        patience: float = 90.0,
        requeue_delay: float = 10.0,
    ) -> None:
        self._client = client
        self._observer = observer
        self._finder = finder
        self._journal = journal
        self._patience = patience
        self._delay = requeue_delay
        self.details: dict[JobId, Detail] = {}
        """What jobs were submitted with, kept for the time after the controller has forgotten them."""

    async def perform(self, job: Job, action: Action, fence: Fence) -> Outcome:
        """Act; the fence was not used before, or was begun and stopped half-way."""
        if FENCE.fullmatch(fence.token) is None:
            raise RefusedError(f"{fence.token[:60]!r} can't be used as a mark")
        asked, records, seen = await self._observer.current(job)
        begun = self._finder.half_way.get(fence.token)
        gate(action, seen, records, begun)
        mark = (
            begun.mark
            if begun
            else Mark(
                fence.token,
                str(action.kind),
                action.incarnation.token,
                job.ref.id,
                attempt(job.ref, records) + 1,
            )
        )
        target = Target(job, asked, tuple(records), seen, mark, begun)
        try:
            return await self._dispatch(target, action, fence)
        except AnswerLostError as lost:
            return _outcome(fence, OutcomeStatus.UNKNOWN, str(lost))

    async def _dispatch(self, target: Target, action: Action, fence: Fence) -> Outcome:
        if action.kind is ActionKind.DRAIN_NODE:
            return await self._drain(action, fence)
        if action.kind in {ActionKind.HOLD, ActionKind.RELEASE}:
            return await self._hold_or_release(target, action, fence)
        if action.kind is ActionKind.CANCEL:
            return await self._cancel(target, fence)
        return await self._restart(target, action, fence)

    async def _act(self, target: Target, commands: Sequence[Command], what: str) -> list[Result]:
        """Write the note, then run the commands as long as each succeeds; only the last one matters.

        Raises RefusedError with the note taken back, or AnswerLostError where Slurm may have accepted.
        """
        answers = await self._send(target, commands, again=target.begun is not None)
        try:
            _check_all(answers, what)
        except UnreachableError as unheard:
            self._finder.lost(target.mark.fence, _within(commands))
            raise AnswerLostError(str(unheard)) from unheard
        except (RefusedError, AccessRefusedError):
            await self._client.run([self._journal.erase(target.mark.fence)])
            raise
        return answers[1:]

    async def _send(self, target: Target, commands: Sequence[Command], *, again: bool) -> list[Result]:
        """Write the note and run the commands, which may go on without us for as long as the note says."""
        within = _within(commands)
        note = self._journal.write(target.mark, within, again=again)
        try:
            answers = await self._client.run([note, *commands], within=within)
        except AnswerLostError:
            self._finder.lost(target.mark.fence, within)
            raise
        if answers[0].code == TAKEN:
            raise UnreachableError(f"{target.mark.fence} is being carried out by another process", 10.0)
        return answers

    async def _each(self, target: Target, steps: Sequence[_Step], what: str) -> tuple[list[Record], str]:
        """Do the same to several parts of a job: gives those to which it was done, and why not to the others.

        Raises RefusedError with the note taken back where nothing was done, or AnswerLostError.
        """
        done: list[Record] = []
        refused: list[RefusedError | AccessRefusedError] = []
        for at in range(0, len(steps), _CHUNK):
            chunk = steps[at : at + _CHUNK]
            commands = [command for step in chunk for command in step.commands]
            answers = await self._send(target, commands, again=target.begun is not None or at > 0)
            lost, place = "", 1
            for step in chunk:
                try:
                    _check_all(
                        [answers[0], *answers[place : place + step.decides + 1]], f"{what} {step.record.id}"
                    )
                except UnreachableError as unheard:
                    lost = lost or str(unheard)
                except (RefusedError, AccessRefusedError) as refusal:
                    refused.append(refusal)
                else:
                    done.append(step.record)
                place += len(step.commands)
            if lost:
                self._finder.lost(target.mark.fence, _within(commands))
                raise AnswerLostError(lost)
        if refused and not done:
            await self._client.run([self._journal.erase(target.mark.fence)])
            raise refused[0]
        return done, _left_out([str(problem) for problem in refused])

    # The owner's queue: hold, release, cancel

    async def _hold_or_release(self, target: Target, action: Action, fence: Fence) -> Outcome:
        pending = [record for record in target.records if STATES.get(record.state) is Liveness.PENDING]
        if not pending:
            raise RefusedError(f"only a pending job can be put on {action.kind}; it is {target.seen.native}")
        steps = [
            _Step(
                record,
                (_first(slurm("scontrol", str(action.kind), str(record.id))), _comment(record, target.mark)),
            )
            for record in pending
        ]
        _, but = await self._each(target, steps, str(action.kind))
        return _outcome(fence, OutcomeStatus.DONE, f"{action.kind} of {target.asked}{but}")

    async def _cancel(self, target: Target, fence: Fence) -> Outcome:
        live = [r for r in target.records if STATES.get(r.state) in {Liveness.PENDING, Liveness.RUNNING}]
        commands = [_comment(record, target.mark) for record in live[:_CHUNK]]
        commands.append(
            slurm(
                "scancel",
                str(target.asked.base if target.asked.offset is not None else target.asked),
                if_ok=True,
            )
        )
        await self._act(target, commands, f"scancel of {target.asked}")
        return _outcome(fence, OutcomeStatus.DONE, f"cancelled {target.asked}")

    async def _drain(self, action: Action, fence: Fence) -> Outcome:
        if not action.nodes or not all(is_node_name(node) for node in action.nodes):
            raise RefusedError("no valid node is named")
        (answer,) = await self._client.run(
            [
                slurm("scontrol", "update", f"NodeName={','.join(action.nodes)}", "State=DRAIN",
                      f"Reason=trainguard {fence.token}"),
            ]
        )  # fmt: skip
        try:
            check(answer, f"draining {', '.join(action.nodes)}")
        except UnreachableError as unheard:
            self._finder.lost(fence.token, 45.0)
            raise AnswerLostError(str(unheard)) from unheard
        return _outcome(fence, OutcomeStatus.DONE, f"drained: {', '.join(action.nodes)}")

    # Restarts

    async def _restart(self, target: Target, action: Action, fence: Fence) -> Outcome:
        resume = target.job.checkpoints.resume if target.job.checkpoints is not None else Resume()
        if action.kind is ActionKind.RESTART_FROM_EARLIER_CHECKPOINT and (
            not action.checkpoint or resume.by is ResumeBy.NOTHING
        ):
            raise RefusedError(
                "the job can't be told which checkpoint to use: set `resume` in its checkpoints"
            )
        if target.begun is not None and target.begun.born is not None:
            return await self._submitted(target, fence, target.begun.born)
        details = await self._details(target, full=True)
        record = target.failed[0]
        changes = await changes_for(
            self._client, action, details[0], record, await self._unsafe_nodes(target)
        )
        again = bool(action.checkpoint) and resume.by in {ResumeBy.ARGUMENT, ResumeBy.ENVIRONMENT}
        # What is only held is let go; it is not requeued.
        ran = STATES.get(record.state) in {Liveness.FAILED, Liveness.RUNNING}
        if again or (ran and not record.requeue):
            return await self._submit(target, action, fence, details[0], resume, changes)
        if action.checkpoint and resume.by is ResumeBy.SYMLINK:
            await self._link(target, resume.name, action.checkpoint)
        return await self._requeue(target, fence, changes)

    async def _details(self, target: Target, *, full: bool) -> list[Detail]:
        found = await controller_details(self._client, target.failed[0].id, full=full)
        if not found and target.asked in self.details:
            found = [self.details[target.asked]]
        if not found:
            found = [await stored(self._client, Detail(target.asked))]
        self.details[target.asked] = found[0]
        return found

    async def _unsafe_nodes(self, target: Target) -> tuple[str, ...]:
        """Nodes where the old processes may live on: after a node failure they are not killed but out of sight.

        A node whose state is not determined yet is one of them.
        """
        if not any(record.state in {"NODE_FAIL", "BOOT_FAIL"} for record in target.records):
            return ()
        unsafe = {node.name for node in await self._client.nodes() if node.bad or node.unknown}
        return tuple(node for node in target.seen.nodes if node in unsafe)

    async def _link(self, target: Target, name: str, checkpoint: str) -> None:
        directory = target.job.checkpoints.directory if target.job.checkpoints is not None else ""
        path = name if name.startswith("/") else f"{directory.rstrip('/')}/{name}"
        script = '[ ! -e "$1" ] || [ -L "$1" ] || exit 5; ln -sfn -- "$2" "$1"'
        (answer,) = await self._client.run([Command(("sh", "-c", script, "sh", path, checkpoint))])
        if answer.code == 5:
            raise RefusedError(f"{path} is there and is no link: it is not replaced")
        if silent(answer):
            raise UnreachableError(f"linking {path}: {answer.problem}")
        if answer.code != 0:
            raise RefusedError(f"linking {path}: {answer.problem}")

    async def _requeue(self, target: Target, fence: Fence, changes: Changes) -> Outcome:
        """Requeue, held where something must be changed before it may start again."""
        hold = bool(changes.fields) or any(target.held_up(record) for record in target.failed)
        steps = []
        for record in target.failed:
            mark = _comment(record, target.mark)
            if target.held_up(record):
                steps.append(_Step(record, (_first(mark),)))
                continue
            requeue = slurm("scontrol", "requeuehold" if hold else "requeue", _name(record), if_ok=True)
            # No comment can be written on a finished job; on a live one it is written before it is killed.
            over = STATES.get(record.state) is not Liveness.RUNNING
            steps.append(
                _Step(record, (_first(requeue), mark)) if over else _Step(record, (_first(mark), requeue), 1)
            )
        done, but = await self._each(target, steps, "requeueing")
        return await self._start(target, fence, changes, done, but, hold=hold)

    async def _start(
        self,
        target: Target,
        fence: Fence,
        changes: Changes,
        requeued: Sequence[Record],
        but: str,
        *,
        hold: bool,
    ) -> Outcome:
        """Wait until the old processes are gone, make the changes, let it go, without Slurm's waiting time."""
        told = ", ".join(("requeued", *changes.told)) + but
        now = await self._pending(target, requeued)
        if now is None:
            if hold:
                raise AnswerLostError(
                    f"{target.asked} is requeued and held, but its old processes do not end"
                )
            return _outcome(fence, OutcomeStatus.DONE, f"{told}; its old processes are still ending")
        start = f"StartTime=now+{self._wait(requeued, now)}"
        stay: list[str] = []
        for name in map(_name, requeued):
            steps = [slurm("scontrol", "update", f"JobId={name}", *changes.fields)] if changes.fields else []
            steps += [slurm("scontrol", "release", name, if_ok=True)] if hold else []
            answers = await self._client.run(
                [*steps, slurm("scontrol", "update", f"JobId={name}", start, if_ok=True)]
            )
            try:
                _check_all(answers[:-1], f"changing {name} ({told})")
            except UnreachableError as unheard:
                raise AnswerLostError(str(unheard)) from unheard
            except (RefusedError, AccessRefusedError) as refused:
                stay.append(f"{refused}; it is requeued and stays held")
        if len(stay) == len(requeued):
            return _outcome(fence, OutcomeStatus.REFUSED, stay[0])
        told += _left_out(stay)
        _, records, _ = await self._observer.current(target.job)
        return _outcome(
            fence, OutcomeStatus.DONE, told, incarnation(target.job.ref, target.asked, records)
        )  # fmt: skip

    def _wait(self, requeued: Sequence[Record], now: float) -> int:
        """Seconds until the next run may start: a run that ended long ago has left nothing behind."""
        ends = [record.end for record in requeued if STATES.get(record.state) is Liveness.FAILED]
        since = now - max(end or now for end in ends) if len(ends) == len(requeued) else 0.0
        return max(0, math.ceil(self._delay - since))

    async def _pending(self, target: Target, requeued: Sequence[Record]) -> float | None:
        """Wait until the job is pending again; gives the cluster's time, None where it takes too long."""
        deadline = time.monotonic() + self._patience
        names = {record.id for record in requeued}
        while True:
            look = await self._client.look([target.asked.asked])
            mine = [record for record in look.records if record.id in names]
            if mine and all(record.state != "COMPLETING" and record.restarts for record in mine):
                return look.now
            if time.monotonic() > deadline:
                return None
            await asyncio.sleep(0.5)

    async def _submit(
        self, target: Target, action: Action, fence: Fence, detail: Detail, resume: Resume, changes: Changes
    ) -> Outcome:
        whole_array = target.asked.task is None and target.records[0].id.task is not None
        if whole_array:
            raise RefusedError(
                "elements of an array can be submitted again one by one only: guard the elements"
            )
        await self._check_owner(target)
        detail = await stored(self._client, detail)
        live = STATES.get(target.records[0].state) not in {Liveness.FAILED, None} if target.records else False
        options = list(changes.options)
        if live:
            # It starts only once the old one has ended, whatever becomes of this process in between.
            options.append(f"--dependency=afterany:{target.asked}")
        comment = marked(target.records[0].comment if target.records else "", target.mark)
        if len(comment.encode()) > LONGEST:
            raise RefusedError(
                f"the job's own comment leaves no room for a mark: Slurm takes 1024 bytes, with it they are {len(comment.encode())}"
            )
        tasks = "" if target.asked.task is None else str(target.asked.task)
        call = submission(detail, comment, resume, action.checkpoint, options, tasks)
        command = call.command()
        answers = await self._act(
            target, [Command(command.argv, command.stdin, command.timeout, if_ok=True)], "sbatch"
        )
        born = job_id(answers[-1].text.strip().partition(";")[0])
        if born is None:
            raise AnswerLostError(f"sbatch gave no job id: {answers[-1].problem}")
        if live:
            await self._end_old(target)
        name = JobId(born.base, target.asked.task)
        self._observer.follow(target.job.ref, name)
        return await self._told(target, fence, name, changes, call.environment is not None)

    async def _check_owner(self, target: Target) -> None:
        """A job that is submitted belongs to whoever submits it."""
        (answer,) = await self._client.run([Command(("id", "-un"))])
        login, owner = answer.text.strip(), target.records[0].user if target.records else ""
        if answer.code != 0 or not login:
            raise UnreachableError(f"the login node does not tell who we are: {answer.problem}")
        if owner != login:
            raise RefusedError(
                f"it must be submitted again, and the job of {owner or 'somebody'} would then be {login}'s: "
                "log in as its owner"
            )

    async def _end_old(self, target: Target) -> None:
        (answer,) = await self._client.run([slurm("scancel", str(target.asked))])
        if answer.code != 0:
            raise AnswerLostError(
                f"submitted again, but the old {target.asked} was not cancelled: {answer.problem}"
            )

    async def _submitted(self, target: Target, fence: Fence, born: JobId) -> Outcome:
        """Take up a submission that waits for the old job: end that."""
        await self._end_old(target)
        self._observer.follow(target.job.ref, born)
        return _outcome(fence, OutcomeStatus.DONE, f"submitted again as {born}; {target.asked} cancelled")

    async def _told(
        self, target: Target, fence: Fence, name: JobId, changes: Changes, environment: bool
    ) -> Outcome:
        told = ", ".join((f"submitted again as {name}", *changes.told))
        if not environment:
            told += "; with the login's environment, as accounting stores none (AccountingStoreFlags=job_env)"
        look = await self._client.look([name.asked])
        made = incarnation(target.job.ref, name, [record for record in look.records if record.id == name])
        return _outcome(fence, OutcomeStatus.DONE, told, made)


def _name(record: Record) -> str:
    """A heterogeneous job is requeued by its leader's id only."""
    return str(record.id.base) if record.id.offset is not None else str(record.id)


@dataclass(frozen=True)
class _Step:
    """What is done to one part of a job."""

    record: Record
    commands: tuple[Command, ...]
    decides: int = 0
    """The command whose success is the action's; what comes after it only marks."""


def _first(command: Command) -> Command:
    """Let a command depend on the note alone, not on what became of the part before."""
    return replace(command, if_ok=False, if_first=True)


def _within(commands: Sequence[Command]) -> float:
    """Seconds for a note and its commands: an answer takes well below one, a silent controller up to 60."""
    return min(max(75.0, 1.5 * len(commands)), WITHIN)


def _check_all(answers: Sequence[Result], what: str) -> None:
    for answer in answers:
        check(answer, what)


def _left_out(problems: Sequence[str]) -> str:
    more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
    return f"; not so: {'; '.join(problems[:3])}{more}" if problems else ""


def _comment(record: Record, mark: Mark) -> Command:
    text = marked(record.comment, mark)
    return slurm("scontrol", "update", f"JobId={_name(record)}", f"Comment={text}", if_ok=True)


def _outcome(fence: Fence, status: OutcomeStatus, detail: str, made: object = None) -> Outcome:
    return Outcome.model_validate(
        {"fence": fence.token, "status": status, "at": time.time(), "detail": detail, "incarnation": made}
    )
