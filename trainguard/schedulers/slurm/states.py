"""What Slurm's words mean for a guard. Pure.

States: https://slurm.schedmd.com/job_state_codes.html; reasons: https://slurm.schedmd.com/job_reason_codes.html
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from trainguard.core.observation import Liveness
from trainguard.schedulers.slurm.parse import Record

STATES: Mapping[str, Liveness] = {
    "PENDING": Liveness.PENDING,
    "CONFIGURING": Liveness.PENDING,
    "REQUEUED": Liveness.PENDING,
    "REQUEUE_FED": Liveness.PENDING,
    "REQUEUE_HOLD": Liveness.PENDING,
    "RESV_DEL_HOLD": Liveness.PENDING,
    "SPECIAL_EXIT": Liveness.PENDING,
    "POWER_UP_NODE": Liveness.PENDING,
    # It holds nodes and its processes stand still: nothing that should beat its heart.
    "SUSPENDED": Liveness.PENDING,
    "STOPPED": Liveness.PENDING,
    "RUNNING": Liveness.RUNNING,
    "RESIZING": Liveness.RUNNING,
    "SIGNALING": Liveness.RUNNING,
    "STAGE_OUT": Liveness.RUNNING,
    # Hides how the job ended; the end is told once it is over.
    "COMPLETING": Liveness.RUNNING,
    "COMPLETED": Liveness.SUCCEEDED,
    "FAILED": Liveness.FAILED,
    "TIMEOUT": Liveness.FAILED,
    "NODE_FAIL": Liveness.FAILED,
    "OUT_OF_MEMORY": Liveness.FAILED,
    "BOOT_FAIL": Liveness.FAILED,
    "LAUNCH_FAILED": Liveness.FAILED,
    "RECONFIG_FAIL": Liveness.FAILED,
    # Ended by the owner, an operator or a rule of the site.
    "CANCELLED": Liveness.STOPPED,
    "PREEMPTED": Liveness.STOPPED,
    "DEADLINE": Liveness.STOPPED,
    "REVOKED": Liveness.STOPPED,
}

STUCK: Mapping[str, str] = {
    "launch failed requeued held": "the launch failed on the node and Slurm holds the job",
    "dependencyneversatisfied": "a job that it depends on can't end as required any more",
    "reqnodenotavail": "the nodes that it asks for are down, drained or reserved",
    "badconstraints": "no node can ever meet what it asks for",
    "invalidaccount": "its account is not valid",
    "invalidqos": "its QOS is not valid",
    "accountnotallowed": "its account may not use the partition",
    "qosnotallowed": "its QOS may not be used with the partition",
    "partitiontimelimit": "its time limit exceeds the partition's",
    "partitionnodelimit": "it asks for more nodes than the partition gives",
    "partitiondown": "its partition is down",
    "partitioninactive": "its partition is inactive",
    "jobheldadmin": "an administrator holds it",
    "maxmempernode": "it asks for more memory than a node may give",
    "maxmemperlimit": "it asks for more memory than is allowed",
    "reservationdeleted": "its reservation was deleted",
    "specialexit": "it ended with an exit code for which this cluster holds jobs",
}
_AWAY = "reqnodenotavail"
_HELD = ("jobheld", "launch failed requeued held", "job requeued in held state", "specialexit")
OOM_CODE = 125
IO_CODE = 53
"""Slurm gives these in place of a signal: out of memory, and no output file or working directory."""


@dataclass(frozen=True)
class Settings:
    """Seconds."""

    settle: float = 10.0
    """How long a preempted or node-failed job that may be requeued is given to come back."""
    away_deadline: float = 300.0
    """Longer without the nodes it asks for is stuck: a node that starts, or whose controller has just started and
    does not know it yet, is away for a while. slurmctld waits as long for a silent node (SlurmdTimeout)."""
    completing_deadline: float = 300.0
    """Longer in COMPLETING than this is stuck."""
    requeue_delay: float = 10.0
    """Between the end of a run and the start of the next. Slurm's own delay is cred_expire + 1, 121 by default.
    With none, slurmd takes the new credential for the revoked one (`Killing non-startable batch job: Job
    credential revoked`, seen on 22.05): its time stamp must be later, and the old run's sockets gone."""


@dataclass(frozen=True)
class Reading:
    """A record, understood."""

    liveness: Liveness
    native: str
    reason: str = ""
    exit_code: int | None = None
    exit_signal: int | None = None
    oom_killed: bool | None = None
    restart_underway: bool = False
    stuck: str = ""
    warning: str = ""


def plain(reason: str) -> str:
    """Bring squeue's and scontrol's spelling of a reason together."""
    return reason.replace("_", " ").strip().lower()


def held(record: Record) -> bool:
    """Whether somebody or something holds the job. A running array element may show its array's hold."""
    if STATES.get(record.state) is not Liveness.PENDING:
        return False
    return record.state in {"SPECIAL_EXIT", "REQUEUE_HOLD", "RESV_DEL_HOLD"} or plain(
        record.reason
    ).startswith(_HELD)


def requeued_and_held(record: Record) -> bool:
    """Whether it stands in the middle of being requeued with changes."""
    return plain(record.reason).startswith("job requeued in held state") and (
        held(record) or record.state == "COMPLETING"
    )


def read(record: Record, now: float, settings: Settings, pending_deadline: float = 0.0) -> Reading:
    """Understand one record at the cluster's time `now`."""
    liveness = STATES.get(record.state, Liveness.UNKNOWN)
    if liveness is Liveness.UNKNOWN:
        return Reading(liveness, record.state, f"Slurm says {record.state!r}, a word not known here")
    if liveness is Liveness.PENDING:
        return _pending(record, now, settings, pending_deadline)
    if liveness is Liveness.RUNNING:
        return _running(record, now, settings)
    if _may_come_back(record, now, settings):
        return Reading(
            Liveness.UNKNOWN,
            record.state,
            f"{record.state}: Slurm may be requeueing it",
            restart_underway=True,
        )
    return _ended(record, liveness)


def _pending(record: Record, now: float, settings: Settings, deadline: float) -> Reading:
    is_held = held(record)
    waited = now - (record.eligible or record.submit)
    stuck = ""
    for word, meaning in STUCK.items():
        if plain(record.reason).startswith(word) or record.state.replace("_", "").lower() == word:
            if word != _AWAY or waited > settings.away_deadline:
                stuck = f"{record.reason or record.state}: {meaning}"
            break
    waits = not is_held and record.state not in {"SUSPENDED", "STOPPED"}
    if not stuck and waits and 0 < deadline < waited:
        stuck = f"pending for {waited:.0f} s ({record.reason or 'no reason given'}), longer than its deadline"
    return Reading(
        Liveness.PENDING,
        record.state,
        record.reason,
        restart_underway=bool(record.restarts) and not is_held and record.state == "PENDING",
        stuck=stuck,
        warning="held" if is_held and not stuck else "",
    )


def _running(record: Record, now: float, settings: Settings) -> Reading:
    stuck = ""
    if record.state == "COMPLETING" and record.end and now - record.end > settings.completing_deadline:
        stuck = f"completing for {now - record.end:.0f} s: its processes or its epilog do not end"
    warning = f"Slurm has started it {record.restarts + 1} times" if record.restarts else ""
    return Reading(
        Liveness.RUNNING,
        record.state,
        record.reason,
        restart_underway=record.requeueing,
        stuck=stuck,
        warning=warning,
    )


def _may_come_back(record: Record, now: float, settings: Settings) -> bool:
    return (
        record.state in {"NODE_FAIL", "PREEMPTED", "BOOT_FAIL"}
        and record.source == "squeue"
        and record.requeue
        and record.end is not None
        and now - record.end < settings.settle
    )


def _ended(record: Record, liveness: Liveness) -> Reading:
    oom = True if record.state == "OUT_OF_MEMORY" or record.signal == OOM_CODE else None
    warning, reason = "", record.reason
    if liveness is Liveness.SUCCEEDED and record.derived_code:
        warning = f"the batch script ended with 0, but one of its steps with {record.derived_code}"
    if record.signal == IO_CODE and liveness is Liveness.FAILED:
        reason = f"{reason}: its output file or working directory can't be used (0:53)"
    signal = record.signal if 0 < record.signal < IO_CODE else None
    return Reading(
        liveness,
        record.state,
        reason,
        exit_code=record.code if signal is None and record.signal == 0 else None,
        exit_signal=signal,
        oom_killed=oom,
        warning=warning,
    )
