"""Guards in a process of their own: python guards.py PLAN, a JSON file that `scene.GuardProcess` writes.

Files in a job's folder hold it up: while `hold-collect` is there, collecting evidence does not end. `freeze_at`
in the plan names a place at which the whole process stops itself, as by SIGSTOP from outside, once.
"""

from __future__ import annotations

import asyncio
import functools
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from prefect.exceptions import PrefectHTTPStatusError

from trainguard.blocks.local_host import LocalHost
from trainguard.blocks.notifier import SlackWebhook
from trainguard.core import health
from trainguard.core.cadence import Cadence
from trainguard.core.policy import Policy, Preset
from trainguard.flows.guard import guard
from trainguard.ledger.ledger import Ledger
from trainguard.schedulers.local import LocalScheduler
from trainguard.schedulers.local.starting import load_job
from trainguard.supervisor import supervisor
from trainguard.tasks import lease, prefect_view, tell

QUICK = Cadence(settle=1, young=(1, 2), steady=2, uncertain=1, least=0.1)
PLACES: dict[str, tuple[Any, str]] = {
    "intent": (Ledger, "write_intent"),
    "last check of the lease": (Ledger, "check_lease"),
    "act": (LocalScheduler, "perform"),
    "command": (supervisor, "send"),
    "outcome": (Ledger, "write_outcome"),
    "incident": (Ledger, "open_incident"),
}


def shorten(plan: dict[str, Any]) -> None:
    """Make waiting times short where the plan says so."""
    wanted = {
        "lease_seconds": (lease, "LEASE_SECONDS"),
        "renew_seconds": (lease, "RENEW_SECONDS"),
        "unrecorded_seconds": (tell, "UNRECORDED_SECONDS"),
        "blind_seconds": (health, "_BLIND_SECONDS"),
        "cancel_seconds": (prefect_view, "CANCEL_SECONDS"),
    }
    for name, (module, constant) in wanted.items():
        if name in plan:
            setattr(module, constant, plan[name])
    if "ledger_patience" in plan:
        Ledger.open.__func__.__kwdefaults__["patience"] = plan["ledger_patience"]  # type: ignore[attr-defined]
    if "retry_seconds" in plan:
        for name, module in list(sys.modules.items()):
            if name.startswith("trainguard.") and hasattr(module, "RETRY_SECONDS"):
                setattr(module, "RETRY_SECONDS", plan["retry_seconds"])  # noqa: B010 - modules have no such attribute


def freeze_before(place: str, mark: Path) -> None:
    """Stop the whole process when it first comes to `place`."""
    owner, name = PLACES[place]
    original: Callable[..., Any] = getattr(owner, name)

    @functools.wraps(original)
    def stopping(*arguments: Any, **named: Any) -> Any:
        if not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGSTOP)
        return original(*arguments, **named)

    setattr(owner, name, stopping)


def hold_collecting() -> None:
    """Let a file hold up the collecting of evidence."""
    original = LocalScheduler.collect

    @functools.wraps(original)
    async def held(self: LocalScheduler, job: Any, observation: Any) -> Any:
        gate = Path(job.ref.id).parent / "hold-collect"
        while gate.exists():
            (gate.parent / "collecting").touch()
            await asyncio.sleep(0.05)
        return await original(self, job, observation)

    LocalScheduler.collect = held  # type: ignore[method-assign]


async def stand(folder: Path, job: dict[str, Any], plan: dict[str, Any]) -> None:
    """Guard one job and note how its guard ended."""
    notifiers = [SlackWebhook(url=plan["tell"], allow_any_host=True)] if plan.get("tell") else None
    block = LocalHost()
    guarded = load_job(folder / "job", block.cluster_name())
    while True:
        try:
            ended = await guard(
                job=guarded,
                cluster=block,
                policy=Policy(preset=Preset(job["preset"]), **job.get("policy", {})),
                cadence=QUICK,
                notifiers=notifiers,
                return_state=True,
            )
            break
        except PrefectHTTPStatusError:
            # SQLite answers 503 to a burst of starts: who starts a flow tries again, while it has not begun.
            async with await Ledger.open() as ledger:
                if await ledger.job_status(guarded.key) is not None:
                    raise
            await asyncio.sleep(2)
    with (folder / "ends").open("a") as ends:
        ends.write(json.dumps([os.getpid(), ended.type.value, ended.name, ended.message]) + "\n")


async def main() -> None:
    """Guard all jobs of the plan."""
    plan = json.loads(Path(sys.argv[1]).read_text())
    shorten(plan)
    hold_collecting()
    if plan.get("freeze_at"):
        freeze_before(plan["freeze_at"], Path(sys.argv[1]).with_suffix(".frozen"))
    async with asyncio.TaskGroup() as guards:
        for job in plan["jobs"]:
            guards.create_task(stand(Path(job["folder"]), job, plan))
            await asyncio.sleep(0.5)


if __name__ == "__main__":
    asyncio.run(main())
