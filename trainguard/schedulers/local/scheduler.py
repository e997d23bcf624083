"""The scheduler of one machine: each job has its own supervisor, and its state folder is all there is to it."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from trainguard.core.action import Access, Action, ActionKind, Fence, Outcome, OutcomeStatus
from trainguard.core.checkpoint import Checkpoint
from trainguard.core.errors import (
    AccessRefusedError,
    ConfigError,
    NotFoundError,
    RefusedError,
    SchedulerError,
    UnreachableError,
)
from trainguard.core.evidence import Evidence
from trainguard.core.job import Job, JobRef, ResumeBy
from trainguard.core.observation import Liveness, LogBatch, Observation
from trainguard.schedulers.base import Scheduler
from trainguard.schedulers.local.evidence import collect
from trainguard.schedulers.local.observing import read_incarnation, read_state
from trainguard.schedulers.local.reading import read_batch
from trainguard.schedulers.local.starting import default_root
from trainguard.supervisor import supervisor
from trainguard.supervisor.checkpoints import find_checkpoints

T = TypeVar("T")

RESTARTS = frozenset(
    {
        ActionKind.RESTART,
        ActionKind.RESTART_FROM_EARLIER_CHECKPOINT,
        ActionKind.RESTART_WITH_MORE_MEMORY,
        ActionKind.REDUCE_EVAL_SIZE,
    }
)


class LocalScheduler(Scheduler):
    """Jobs of this machine. `JobRef.id` is the absolute state folder."""

    name: ClassVar[str] = "local"
    supports: ClassVar[frozenset[ActionKind]] = RESTARTS | {
        ActionKind.CANCEL,
        ActionKind.SET_ASIDE_CHECKPOINT,
        ActionKind.FREE_DISK,
        ActionKind.INSTALL_DEPENDENCY,
    }
    poll_seconds: ClassVar[float] = 1.0

    def __init__(
        self,
        cluster: str = "",
        *,
        roots: Sequence[Path] = (),
        look_seconds: float = 10.0,
        answer_seconds: float = 60.0,
    ) -> None:
        super().__init__(cluster or socket.gethostname())
        self._roots = tuple(roots) or (default_root(),)
        self._look_seconds = look_seconds
        self._answer_seconds = answer_seconds
        self._threads = ThreadPoolExecutor(8, thread_name_prefix=f"local {self.cluster}")
        self._closed = False

    async def validate(self, job: Job) -> Access:
        """Look at the folder, the log and what the supervisor's settings allow."""
        folder = Path(job.ref.id)
        state = await self._ask(lambda: supervisor.view(folder))
        config = (await self._ask(lambda: supervisor.read_json(folder / "spec.json")) or {}).get("config", {})
        warnings = [str(state["warning"])] if state["warning"] else []
        readable = True
        try:
            await self.logs(job, "", 4096)
        except SchedulerError as error:
            readable = False
            warnings.append(str(error))
        impossible = why_impossible(job, config, state)
        return Access(
            job_seen=True,
            logs_readable=readable,
            possible=self.supports - set(impossible),
            impossible=impossible,
            warnings=tuple(warnings),
        )

    async def observe(self, jobs: Sequence[Job]) -> Mapping[JobRef, Observation]:
        """Read every job's state; a folder that can't be read, or not in time, is UNKNOWN."""
        refs = list({job.ref: None for job in jobs})
        seen = await asyncio.gather(*(self._observe(ref) for ref in refs))
        return dict(zip(refs, seen, strict=True))

    async def _observe(self, ref: JobRef) -> Observation:
        try:
            return read_state(ref, await self._ask(lambda: supervisor.view(Path(ref.id))))
        except NotFoundError as error:
            return _blind(ref, Liveness.GONE, str(error))
        except SchedulerError as error:
            return _blind(ref, Liveness.UNKNOWN, str(error))
        except (KeyError, TypeError, ValueError) as error:
            return _blind(ref, Liveness.UNKNOWN, f"state.json makes no sense: {error!r}")

    async def logs(self, job: Job, cursor: str = "", limit: int = 1_000_000) -> LogBatch:
        """Read the attempts' logs and the job's extra logs on from the cursor."""
        return await self._ask(lambda: read_batch(job, cursor, limit))

    async def collect(self, job: Job, observation: Observation) -> Sequence[Evidence]:
        """Gather log tails, state, attempts, kernel log, stacks and GPU state."""
        del observation
        return await self._ask(lambda: collect(job), seconds=90.0)

    async def _perform(self, job: Job, action: Action, fence: Fence) -> Outcome:
        """Put the command into the inbox, see that a supervisor is there, and wait for its answer."""
        folder = Path(job.ref.id)
        command = make_command(job, action, fence)
        await self._ask(lambda: supervisor.view(folder))
        await self._ask(lambda: supervisor.send(folder, command))
        try:
            outcome = await self._answer(job, fence)
        except UnreachableError as error:
            return Outcome(fence=fence.token, status=OutcomeStatus.UNKNOWN, at=time.time(), detail=str(error))
        if outcome is None:
            raise UnreachableError(f"{folder}: the command is neither in the inbox nor answered")
        if outcome.status is OutcomeStatus.REFUSED:
            raise RefusedError(outcome.detail)
        return outcome

    async def find(self, job: Job, fence: Fence) -> Outcome | None:
        """Read the fence's result; a command that still waits is brought to its end first."""
        await self._ask(lambda: supervisor.view(Path(job.ref.id)))
        return await self._answer(job, fence)

    async def _answer(self, job: Job, fence: Fence) -> Outcome | None:
        """Wait for a command's result. A supervisor that died over it is started again: it finishes."""
        folder = Path(job.ref.id)
        deadline = time.monotonic() + self._answer_seconds
        revived_at = 0.0
        while True:
            answer = await self._ask(lambda: supervisor.result_of(folder, fence.token))
            if answer is None:
                return None
            if answer["status"] in {"done", "refused"}:
                return _outcome(job.ref, fence, answer)
            if time.monotonic() > deadline:
                detail = f"the supervisor has not answered yet: {answer['status']}"
                return Outcome(fence=fence.token, status=OutcomeStatus.UNKNOWN, at=time.time(), detail=detail)
            state = await self._ask(lambda: supervisor.view(folder))
            if not state["supervisor_alive"] and time.monotonic() - revived_at > 2.0:
                revived_at = time.monotonic()
                await self._ask(lambda: supervisor.revive(folder), seconds=60.0)
            await asyncio.sleep(0.05)

    async def discover(self, selector: str) -> Sequence[JobRef]:
        """Find jobs below the roots. `*`, or `name=GLOB`, `project=GLOB`, `status=WORD`, joined by commas."""
        wanted = parse_selector(selector)
        found: list[JobRef] = []
        for folder in await self._ask(lambda: state_folders(self._roots)):
            try:
                state = await self._ask(partial(supervisor.view, folder))
            except SchedulerError:
                state = {}
            if all(fnmatchcase(str(state.get(key, "")), pattern) for key, pattern in wanted.items()):
                found.append(JobRef(scheduler=self.name, cluster=self.cluster, id=str(folder)))
        return found

    async def checkpoints(self, job: Job) -> tuple[Checkpoint, ...] | None:
        """Look into the job's checkpoint directory; one that does not exist yet holds none."""
        if job.checkpoints is None:
            return None
        return await self._ask(lambda: look_at_checkpoints(job), seconds=120.0)

    async def close(self) -> None:
        """Let the threads go."""
        self._closed = True
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _ask(self, question: Callable[[], T], seconds: float = 0.0) -> T:
        """Ask the file system in a thread: it may hang for ever. The supervisor's errors become ours."""
        if self._closed:
            raise RuntimeError("this scheduler is closed")
        limit = seconds or self._look_seconds
        try:
            return await asyncio.wait_for(
                asyncio.get_running_loop().run_in_executor(self._threads, question), limit
            )
        except TimeoutError as error:
            raise UnreachableError(f"the file system did not answer within {limit:.0f} s") from error
        except supervisor.MissingError as error:
            raise NotFoundError(str(error)) from error
        except supervisor.StateError as error:
            if isinstance(error.__cause__, PermissionError):
                raise AccessRefusedError(str(error), "run the guard as the user who runs the job") from error
            raise UnreachableError(str(error)) from error
        except supervisor.Refusal as error:
            raise RefusedError(str(error)) from error


def make_command(job: Job, action: Action, fence: Fence) -> dict[str, Any]:
    """Write an action down as a command for the supervisor."""
    command: dict[str, Any] = {"fence": fence.token, "token": action.incarnation.token, "by": "guard"}
    directory = job.checkpoints.directory if job.checkpoints else ""
    if action.kind in RESTARTS:
        resume = job.checkpoints.resume if job.checkpoints and action.checkpoint else None
        command["do"] = "restart"
        command["resume"] = {
            "by": resume.by.value if resume else ResumeBy.NOTHING.value,
            "name": resume.name if resume else "",
            "path": action.checkpoint,
            "directory": directory,
        }
        if action.kind is ActionKind.RESTART_WITH_MORE_MEMORY:
            command["memory_limit"] = action.memory_bytes or 0
        if action.kind is ActionKind.REDUCE_EVAL_SIZE:
            command["reduce_eval"] = True
    elif action.kind is ActionKind.CANCEL:
        command.update(do="stop", reason=action.note or "cancelled by the guard")
    elif action.kind is ActionKind.SET_ASIDE_CHECKPOINT:
        command.update(do="set_aside", path=action.checkpoint, root=directory, note=action.note)
    elif action.kind is ActionKind.INSTALL_DEPENDENCY:
        command.update(do="install", package=action.package)
    else:
        command["do"] = "free_disk"
    return command


def look_at_checkpoints(job: Job) -> tuple[Checkpoint, ...] | None:
    """Find the job's checkpoints; None where the directory can't be read. Raises ConfigError, StateError."""
    spec = job.checkpoints
    assert spec is not None
    folder = Path(job.ref.id)
    running = supervisor.view(folder)["status"] not in supervisor.OVER
    cwd = (supervisor.read_json(folder / "spec.json") or {}).get("cwd", "/")
    try:
        found = find_checkpoints(
            Path(cwd) / spec.directory, spec.format, spec.glob, time.time() if running else None
        )
    except FileNotFoundError:
        return ()
    except OSError:
        return None
    except ValueError as error:
        raise ConfigError("checkpoints", str(error)) from error
    return tuple(Checkpoint.model_validate(asdict(one)) for one in found)


def why_impossible(job: Job, config: dict[str, Any], state: dict[str, Any]) -> dict[ActionKind, str]:
    """Say which actions the supervisor's settings do not allow, and which setting would."""
    reasons: dict[ActionKind, str] = {}
    install, free = config.get("install", {}), config.get("free_disk", {})
    if not state.get("memory_limit"):
        reasons[ActionKind.RESTART_WITH_MORE_MEMORY] = "the job has no memory limit; set memory.limit"
    if not config.get("eval", {}).get("name"):
        reasons[ActionKind.REDUCE_EVAL_SIZE] = (
            "no smaller evaluation is declared; set eval.name and eval.values"
        )
    if not (free.get("paths") and free.get("patterns")):
        reasons[ActionKind.FREE_DISK] = "nothing may be deleted; set free_disk.paths and free_disk.patterns"
    if not (install.get("packages") or install.get("commands")):
        reasons[ActionKind.INSTALL_DEPENDENCY] = "nothing may be installed; set install.packages"
    if job.checkpoints is None and not config.get("checkpoints", {}).get("directory"):
        reasons[ActionKind.SET_ASIDE_CHECKPOINT] = (
            "no checkpoint directory is declared; set checkpoints.directory"
        )
    return reasons


def parse_selector(selector: str) -> dict[str, str]:
    """Split `name=GLOB,status=WORD`. Raises ConfigError for a key that there is not."""
    wanted = {}
    for part in filter(None, (part.strip() for part in selector.split(","))):
        key, equals, pattern = part.partition("=")
        if part != "*" and (not equals or key not in {"name", "project", "status"}):
            raise ConfigError("selector", f"{part!r} is none of name=GLOB, project=GLOB, status=WORD, *")
        if equals:
            wanted[key] = pattern
    return wanted


def state_folders(roots: Sequence[Path]) -> list[Path]:
    """List the state folders directly below the roots."""
    found: set[Path] = set()
    for root in roots:
        found |= {path.parent for path in root.glob("*/state.json")}
    return sorted(found)


def _blind(ref: JobRef, liveness: Liveness, reason: str) -> Observation:
    return Observation(job=ref, at=time.time(), source="supervisor", liveness=liveness, reason=reason)


def _outcome(ref: JobRef, fence: Fence, answer: dict[str, Any]) -> Outcome:
    return Outcome(
        fence=fence.token,
        status=OutcomeStatus(answer["status"]),
        at=float(answer.get("ended_at") or answer["at"]),
        detail=str(answer.get("detail", "")),
        incarnation=read_incarnation(ref, answer),
    )
