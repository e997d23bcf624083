"""What this login may do, tried without harm."""

from __future__ import annotations

from dataclasses import dataclass

from trainguard.core.action import Access, ActionKind
from trainguard.core.errors import AccessRefusedError, UnreachableError
from trainguard.core.observation import Observation
from trainguard.schedulers.slurm.acting import SUPPORTED
from trainguard.schedulers.slurm.client import SlurmClient, slurm
from trainguard.transports.posix_shell import Command

_PROBE = "trainguard-probe-no-such-node"
"""slurmctld checks the right before the name: with the right this is an unknown node, without it a refusal."""
_SHORT_AGE = 30
"""Seconds: three usual looks."""


@dataclass(frozen=True)
class Facts:
    """What the cluster says of itself and of this login."""

    user: str
    operator: bool
    """May act on other users' jobs."""
    may_drain: bool
    accounting: bool
    min_job_age: int | None
    """Seconds for which the controller remembers an ended job."""

    def access(self, owner: str, seen: Observation) -> Access:
        """Say what may be done to a job of this owner."""
        impossible = {}
        if not self.may_drain:
            impossible[ActionKind.DRAIN_NODE] = (
                f"draining needs Slurm's AdminLevel Administrator (sacctmgr modify user {self.user} set "
                "adminlevel=Administrator), or SlurmUser; without it the node is excluded from the job instead"
            )
        if owner and owner != self.user and not self.operator:
            why = (
                f"the job is {owner}'s and the login is {self.user}: log in as {owner} or as a Slurm operator"
            )
            impossible |= {kind: why for kind in SUPPORTED if kind is not ActionKind.DRAIN_NODE}
        warnings = self._warnings(seen)
        if owner and owner != self.user and self.operator:
            warnings.append(
                f"the job is {owner}'s and the login is {self.user}: it can be requeued only. Where it must be "
                f"submitted again (not to be requeued, or told its checkpoint by an argument), log in as {owner}"
            )
        return Access(
            job_seen=True,
            logs_readable=False,
            possible=frozenset(SUPPORTED - set(impossible)),
            impossible=impossible,
            warnings=tuple(warnings),
        )

    def poll_seconds(self, usual: float) -> float:
        """How often to look so that no end is missed: the controller forgets an ended job after MinJobAge."""
        return max(min(usual, self.min_job_age / 3), 1.0) if self.min_job_age else usual

    def _warnings(self, seen: Observation) -> list[str]:
        found = []
        if not self.accounting:
            age = "an unknown time" if self.min_job_age is None else f"{self.min_job_age} s (MinJobAge)"
            found.append(f"no accounting: how a job ended is known for {age} only")
        if self.min_job_age and self.min_job_age < _SHORT_AGE:
            found.append(
                f"Slurm forgets an ended job after {self.min_job_age} s (MinJobAge): how it ended can be missed "
                "where the cluster can't be reached for a moment; ask for 300 s"
            )
        if seen.stuck:
            found.append(f"stuck: {seen.stuck}")
        return found


class Validator:
    """Asks who we are and tries the privilege that is not the owner's."""

    def __init__(self, client: SlurmClient) -> None:
        self._client = client

    async def facts(self) -> Facts:
        """Ask. Raises AccessRefusedError where Slurm's commands are missing, UnreachableError where it is silent."""
        user, config, probe, level = await self._client.run(
            [
                Command(("id", "-un")),
                slurm("scontrol", "show", "config"),
                slurm("scontrol", "update", f"NodeName={_PROBE}", "State=DRAIN", "Reason=probe"),
                slurm("sh", "-c", 'sacctmgr -nP show user "$(id -un)" format=AdminLevel'),
            ],
            now=True,
        )
        if config.code in {126, 127}:
            raise AccessRefusedError(
                "Slurm's commands are not on the login node's PATH",
                "Set `slurm_path` to the folder that holds squeue and sbatch.",
            )
        if config.code != 0 or "SLURM_VERSION" not in config.text:
            raise UnreachableError(f"the Slurm controller does not answer: {config.problem}")
        settings = dict(
            (name.strip(), value.strip())
            for name, _, value in (line.partition("=") for line in config.text.splitlines())
        )
        who = user.text.strip()
        superuser = who in {"root", settings.get("SlurmUser", "").partition("(")[0]}
        admin = level.text.strip() in {"Operator", "Administrator"} if level.code == 0 else False
        age = settings.get("MinJobAge", "").split()
        return Facts(
            user=who,
            operator=superuser or admin,
            may_drain="invalid node name" in probe.problem.lower(),
            accounting=settings.get("AccountingStorageType", "").endswith("slurmdbd"),
            min_job_age=int(age[0]) if age and age[0].isdigit() else None,
        )
