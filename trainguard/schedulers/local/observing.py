"""From the supervisor's state to an observation: pure."""

from __future__ import annotations

from typing import Any

from trainguard.core.job import Incarnation, JobRef
from trainguard.core.observation import Liveness, Observation, Progress, Utilisation

# Defined in trainguard/supervisor/supervisor.py, STATUSES.
LIVENESS = {
    "pending": Liveness.PENDING,
    "running": Liveness.RUNNING,
    "retrying": Liveness.PENDING,
    "done": Liveness.SUCCEEDED,
    "failed": Liveness.FAILED,
    "stopped": Liveness.STOPPED,
    "refused": Liveness.FAILED,
}


def read_state(ref: JobRef, state: dict[str, Any]) -> Observation:
    """Say what a state means. Raises KeyError, TypeError or ValueError where it is garbage."""
    native, now = str(state["status"]), float(state["now"])
    liveness = LIVENESS.get(native, Liveness.UNKNOWN)
    ended = liveness.terminal
    return Observation(
        job=ref,
        at=now,
        source="supervisor",
        liveness=liveness,
        native=native,
        reason=str(state.get("reason") or "")
        if native in LIVENESS
        else f"{native!r} is no status known here",
        incarnation=read_incarnation(ref, state),
        exit_code=state.get("exit_code") if ended else None,
        exit_signal=state.get("exit_signal") if ended else None,
        oom_killed=state.get("oom_killed") if ended else None,
        ended_at=state.get("ended_at") if ended else None,
        memory_limit=state.get("memory_limit") or None,
        nodes=(str(state["supervisor"]["host"]),),
        progress=_progress(state),
        # Its own heartbeat alone: a log that grows says that something writes, not that it trains.
        heartbeat_age=None if ended else _age(now, state.get("beat_at")),
        log_age=None if ended else _age(now, state.get("log_at")),
        utilisation=Utilisation() if ended else _utilisation(state),
        restart_underway=native == "retrying",
        warning=_warning(state),
        fix=str(state.get("fix") or ""),
    )


def read_incarnation(ref: JobRef, state: dict[str, Any]) -> Incarnation | None:
    """Name the attempt that a state or a command's result speaks of."""
    if not state.get("token"):
        return None
    return Incarnation(
        job=ref,
        token=str(state["token"]),
        attempt=int(state["attempt"]),
        native_id=f"pid {state['pid']}" if state.get("pid") else "",
        started_at=state.get("started_at"),
    )


def _age(now: float, at: float | None) -> float | None:
    # A clock that was set back makes the future: not old.
    return None if at is None else max(0.0, now - at)


def _progress(state: dict[str, Any]) -> Progress | None:
    # A step that was only guessed from the log (`Total steps = 1,000`) is for people; the guard reads better.
    if state.get("step") is None or state.get("step_source") not in {"heartbeat", "pattern"}:
        return None
    return Progress(step=int(state["step"]), total=state.get("total"), at=state.get("heartbeat_at"))


def _utilisation(state: dict[str, Any]) -> Utilisation:
    gpus = state.get("gpus") or []
    percents = [gpu["percent"] for gpu in gpus]
    memory = [
        100 * gpu["memory_used"] / gpu["memory_total"]
        for gpu in gpus
        if gpu["memory_used"] is not None and gpu["memory_total"]
    ]
    known = bool(gpus) and None not in percents
    return Utilisation(
        gpu_percent=tuple(percents) if known else None,
        gpu_memory_percent=tuple(memory) if gpus and len(memory) == len(gpus) else None,
        cpu_percent=state.get("cpu_percent"),
        memory_bytes=state.get("rss_bytes"),
    )


def _warning(state: dict[str, Any]) -> str:
    said = [str(state["warning"])] if state.get("warning") else []
    if state.get("retries_used"):
        said.append(f"{state['retries_used']} of {state['retries_max']} own retries used")
    if state.get("log_dropped"):
        said.append(f"{state['log_dropped']} bytes of log could not be written")
    return "; ".join(said)
