"""Acting on Slurm jobs: each action once, on the incarnation that it is meant for, and found afterwards."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

from trainguard.core.action import Action, ActionKind, Fence, Outcome, OutcomeStatus
from trainguard.core.errors import AccessRefusedError, NotFoundError, RefusedError, UnreachableError
from trainguard.core.job import Job, Resume, ResumeBy
from trainguard.core.observation import Liveness, Observation
from trainguard.schedulers.slurm.changes import Changes, changes_for
from trainguard.schedulers.slurm.client import SlurmClient, check, silent, slurm
from trainguard.schedulers.slurm.detail import Detail, controller_details, stored
from trainguard.schedulers.slurm.finding import Finder, requeued_and_held
from trainguard.schedulers.slurm.ids import JobId, is_node_name, job_id
from trainguard.schedulers.slurm.jobs import attempt, incarnation
from trainguard.schedulers.slurm.journal import TAKEN, Journal
from trainguard.schedulers.slurm.marks import FENCE, Mark, mark_of, marked
from trainguard.schedulers.slurm.observing import Observer
from trainguard.schedulers.slurm.parse import Record
from trainguard.schedulers.slurm.states import STATES, held, plain
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
_MOST_ELEMENTS = 200


@dataclass(frozen=True)
class Target:
    """What is acted on: the job as its guard knows it, and as Slurm shows it now."""

    job: Job
    asked: JobId
    records: tuple[Record, ...]
    seen: Observation
    mark: Mark
    resumes: bool
    """The same fence was begun before and stopped half-way."""

    @property
    def failed(self) -> tuple[Record, ...]:
        """The parts that a restart brings back: of an array the failed elements alone."""
        if len(self.records) == 1 or self.records[0].id.offset is not None:
            return self.records[:1]
        parts = [r for r in self.records if STATES.get(r.state) is Liveness.FAILED]
        return tuple(parts or self.records)


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
        mark = begun or Mark(
            fence.token, str(action.kind), action.incarnation.token, job.ref.id, attempt(job.ref, records) + 1
        )
        target = Target(job, asked, tuple(records), seen, mark, begun is not None)
        try:
            return await self._dispatch(target, action, fence)
        except AnswerLostError as lost:
            self._finder.lost(fence.token)
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
        """Write the note, then run the commands as long as each succeeds.

        Raises RefusedError with the note taken back, or AnswerLostError where Slurm may have accepted.
        """
        note = self._journal.write(target.mark, again=target.resumes)
        answers = await self._client.run([note, *commands])
        if answers[0].code == TAKEN:
            raise UnreachableError(f"{target.mark.fence} is being carried out by another process", 10.0)
        for answer in answers:
            try:
                check(answer, what)
            except UnreachableError as silent:
                raise AnswerLostError(str(silent)) from silent
            except (RefusedError, AccessRefusedError):
                await self._client.run([self._journal.erase(target.mark.fence)])
                raise
        return answers[1:]

    # The owner's queue: hold, release, cancel

    async def _hold_or_release(self, target: Target, action: Action, fence: Fence) -> Outcome:
        pending = [record for record in target.records if STATES.get(record.state) is Liveness.PENDING]
        if not pending:
            raise RefusedError(f"only a pending job can be put on {action.kind}; it is {target.seen.native}")
        commands = [
            command
            for record in pending[:_MOST_ELEMENTS]
            for command in (
                slurm("scontrol", str(action.kind), str(record.id), if_ok=True),
                _comment(record, target.mark),
            )
        ]
        await self._act(target, commands, f"{action.kind} of {target.asked}")
        return _outcome(fence, OutcomeStatus.DONE, f"{action.kind} of {target.asked}")

    async def _cancel(self, target: Target, fence: Fence) -> Outcome:
        live = [r for r in target.records if STATES.get(r.state) in {Liveness.PENDING, Liveness.RUNNING}]
        commands = [_comment(record, target.mark) for record in live[:_MOST_ELEMENTS]]
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
        except UnreachableError as silent:
            raise AnswerLostError(str(silent)) from silent
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
        details = await self._details(target, full=True)
        record = target.failed[0]
        changes = await changes_for(self._client, action, details[0], record, _unsafe_nodes(target))
        again = bool(action.checkpoint) and resume.by in {ResumeBy.ARGUMENT, ResumeBy.ENVIRONMENT}
        over = STATES.get(record.state) is Liveness.FAILED
        if target.resumes and _was_submitted(target):
            return await self._submitted(target, fence)
        if again or (over and not record.requeue):
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
        failed = target.failed[:_MOST_ELEMENTS]
        verb = "requeuehold" if changes.fields else "requeue"
        commands: list[Command] = []
        for record in failed:
            if requeued_and_held(record) or launch_failed(record):
                verb = "requeuehold"
                commands.append(_comment(record, target.mark))
                continue
            over = STATES.get(record.state) is not Liveness.RUNNING
            mark = _comment(record, target.mark)
            requeue = slurm("scontrol", verb, _name(record), if_ok=True)
            # No comment can be written on a finished job; on a live one it is written before it is killed.
            commands += [requeue, mark] if over else [mark, requeue]
        await self._act(target, commands, f"requeueing {target.asked}")
        return await self._start(
            target, fence, changes, [_name(r) for r in failed], hold=verb == "requeuehold"
        )

    async def _start(
        self, target: Target, fence: Fence, changes: Changes, names: Sequence[str], *, hold: bool
    ) -> Outcome:
        """Wait until the old processes are gone, make the changes, let it go, without Slurm's waiting time."""
        told = ", ".join(("requeued", *changes.told))
        now = await self._pending(target)
        if now is None:
            if hold:
                raise AnswerLostError(
                    f"{target.asked} is requeued and held, but its old processes do not end"
                )
            return _outcome(fence, OutcomeStatus.DONE, f"{told}; its old processes are still ending")
        start = f"StartTime=now+{self._wait(target, now)}"
        for name in names:
            steps = [slurm("scontrol", "update", f"JobId={name}", *changes.fields)] if changes.fields else []
            steps += [slurm("scontrol", "release", name, if_ok=True)] if hold else []
            answers = await self._client.run(
                [*steps, slurm("scontrol", "update", f"JobId={name}", start, if_ok=True)]
            )
            for answer in answers[:-1]:
                try:
                    check(answer, f"changing {name} ({told})")
                except UnreachableError as silent:
                    raise AnswerLostError(str(silent)) from silent
                except RefusedError as refused:
                    return _outcome(fence, OutcomeStatus.REFUSED, f"{refused}; it is requeued and stays held")
        _, records, _ = await self._observer.current(target.job)
        return _outcome(
            fence, OutcomeStatus.DONE, told, incarnation(target.job.ref, target.asked, records)
        )  # fmt: skip

    def _wait(self, target: Target, now: float) -> int:
        """Seconds until the next run may start: a run that ended long ago has left nothing behind."""
        ends = [record.end for record in target.failed if STATES.get(record.state) is Liveness.FAILED]
        since = now - max(end or now for end in ends) if len(ends) == len(target.failed) else 0.0
        return max(0, math.ceil(self._delay - since))

    async def _pending(self, target: Target) -> float | None:
        """Wait until the job is pending again; gives the cluster's time, None where it takes too long."""
        deadline = time.monotonic() + self._patience
        names = {record.id for record in target.failed}
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
        detail = await stored(self._client, detail)
        live = STATES.get(target.records[0].state) not in {Liveness.FAILED, None} if target.records else False
        options = list(changes.options)
        if live:
            # It starts only once the old one has ended, whatever becomes of this process in between.
            options.append(f"--dependency=afterany:{target.asked}")
        comment = marked(target.records[0].comment if target.records else "", target.mark)
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

    async def _end_old(self, target: Target) -> None:
        (answer,) = await self._client.run([slurm("scancel", str(target.asked))])
        if answer.code != 0:
            raise AnswerLostError(
                f"submitted again, but the old {target.asked} was not cancelled: {answer.problem}"
            )

    async def _submitted(self, target: Target, fence: Fence) -> Outcome:
        """Take up a submission that waits for the old job: end that."""
        await self._end_old(target)
        return _outcome(fence, OutcomeStatus.DONE, f"submitted again; {target.asked} cancelled")

    async def _told(
        self, target: Target, fence: Fence, name: JobId, changes: Changes, environment: bool
    ) -> Outcome:
        told = ", ".join((f"submitted again as {name}", *changes.told))
        if not environment:
            told += "; with the login's environment, as accounting stores none (AccountingStoreFlags=job_env)"
        look = await self._client.look([name.asked])
        made = incarnation(target.job.ref, name, [record for record in look.records if record.id == name])
        return _outcome(fence, OutcomeStatus.DONE, told, made)


def gate(action: Action, seen: Observation, records: Sequence[Record], begun: Mark | None) -> None:
    """Refuse what must not be done to the job as it is now. Raises NotFoundError, RefusedError, UnreachableError."""
    if seen.liveness is Liveness.GONE:
        raise NotFoundError(f"{seen.job.id}: {seen.reason}")
    if seen.liveness is Liveness.UNKNOWN and not seen.restart_underway:
        raise UnreachableError(f"nothing is done to a job that can't be seen: {seen.reason}")
    if begun is None and (seen.incarnation is None or seen.incarnation.token != action.incarnation.token):
        raise RefusedError("another incarnation is current than the one this action is meant for")
    if action.kind is ActionKind.DRAIN_NODE or begun is not None:
        return
    if seen.liveness in {Liveness.STOPPED, Liveness.SUCCEEDED}:
        raise RefusedError(f"the job has ended ({seen.native}): it is left as it is")
    if action.kind is ActionKind.CANCEL and seen.liveness is Liveness.FAILED:
        raise RefusedError(f"the job has ended already ({seen.native})")
    if action.kind.restarts:
        _gate_restart(seen, records)


def _gate_restart(seen: Observation, records: Sequence[Record]) -> None:
    if seen.restart_underway:
        raise RefusedError("Slurm is bringing it back by itself")
    if any(held(record) and not launch_failed(record) for record in records):
        raise RefusedError(f"it is held ({seen.reason or seen.native}): whoever holds it decides")
    if seen.liveness is Liveness.PENDING and not all(launch_failed(record) for record in records):
        raise RefusedError(f"it has not run yet ({seen.reason or seen.native}): there is nothing to restart")


def launch_failed(record: Record) -> bool:
    """Whether Slurm itself holds it because the launch failed on the node."""
    return plain(record.reason).startswith("launch failed requeued held")


def _unsafe_nodes(target: Target) -> tuple[str, ...]:
    """Nodes where the old processes may live on: after a node failure they are not killed but out of sight."""
    return target.seen.bad_nodes if any(r.state in {"NODE_FAIL", "BOOT_FAIL"} for r in target.records) else ()


def _was_submitted(target: Target) -> bool:
    return (
        bool(target.records)
        and all(mark_of(record.comment, target.mark.fence) is None for record in target.records)
        and any(STATES.get(record.state) in {Liveness.RUNNING, Liveness.PENDING} for record in target.records)
    )


def _name(record: Record) -> str:
    """A heterogeneous job is requeued by its leader's id only."""
    return str(record.id.base) if record.id.offset is not None else str(record.id)


def _comment(record: Record, mark: Mark) -> Command:
    text = marked(record.comment, mark)
    return slurm("scontrol", "update", f"JobId={_name(record)}", f"Comment={text}", if_ok=True)


def _outcome(fence: Fence, status: OutcomeStatus, detail: str, made: object = None) -> Outcome:
    return Outcome.model_validate(
        {"fence": fence.token, "status": status, "at": time.time(), "detail": detail, "incarnation": made}
    )
