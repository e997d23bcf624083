"""What is true of a job at one look: one small rule for each kind of signal."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from trainguard.core.job import Watching
from trainguard.core.masking import mask
from trainguard.core.observation import Liveness, Observation
from trainguard.core.progress import Reading
from trainguard.core.signal import SignalKind

if TYPE_CHECKING:
    from trainguard.core.health import Health

_LOOKS = 2
_UNSEEN_TIMES = 10.0
_UNSEEN_SECONDS = 1_800.0
"""Silence after which a job whose utilisation nobody can read is stalled all the same."""
_FIRST_STEP = 1_800.0
"""Seconds without a first step after which the owner is told."""
_STANDSTILL_TIMES = 3.0
_STANDSTILL_SECONDS = 600.0
_NONFINITE_LOSSES = 2
_NAN_GRADS = 3
_LOW_LOOKS = 5
_LOW_SECONDS = 300.0
_GONE_LOOKS = 3


class Condition(NamedTuple):
    """A condition that holds, in words, and which independent sources show it."""

    kind: SignalKind
    detail: str
    sources: tuple[str, ...]


class Look(NamedTuple):
    """Everything a rule may look at."""

    health: Health
    observation: Observation
    reading: Reading
    watching: Watching
    threshold: float


def conditions(
    health: Health, observation: Observation, reading: Reading, watching: Watching, threshold: float
) -> tuple[Condition, ...]:
    """Give every condition that holds, the gravest first."""
    look = Look(health, observation, reading, watching, threshold)
    found = (rule(look) for rule in _RULES)
    return tuple(condition for condition in found if condition is not None)


def _crash(look: Look) -> Condition | None:
    seen = look.observation
    if seen.liveness is not Liveness.FAILED or seen.restart_underway:
        return None
    told: list[str] = []
    for word in (plain(seen.native), plain(seen.reason), _exit(seen)):
        if word and word != "failed" and not any(word in said for said in told):
            told.append(word)
    ended = seen.exit_code is not None or seen.exit_signal is not None
    return Condition(
        SignalKind.CRASH,
        f"failed: {', '.join(told) or 'no reason given'}",
        ("scheduler", "process") if ended else ("scheduler",),
    )


def _exit(seen: Observation) -> str:
    if seen.exit_signal is not None:
        return f"signal {seen.exit_signal}"
    return "" if seen.exit_code is None else f"exit code {seen.exit_code}"


def _early_stop(look: Look) -> Condition | None:
    floor = look.watching.auto_stop_min_steps
    if look.observation.liveness is not Liveness.SUCCEEDED or floor == 0:
        return None
    step = _last_step(look)
    if step is None:
        return Condition(
            SignalKind.WARNING, f"ended well, but its step is unknown: the floor is {floor}", ("scheduler",)
        )
    if step >= floor:
        return None
    return Condition(
        SignalKind.EARLY_STOP, f"ended well at step {step}, below the floor of {floor}", ("scheduler", "log")
    )


def _stuck(look: Look) -> Condition | None:
    seen, deadline = look.observation, look.watching.pending_deadline
    if seen.liveness.terminal or seen.liveness is Liveness.GONE:
        return None
    if seen.stuck:
        return Condition(SignalKind.STUCK, f"will not move by itself: {plain(seen.stuck)}", ("scheduler",))
    if seen.liveness is Liveness.PENDING and 0 < deadline <= look.health.pending_for:
        why = f" ({plain(seen.reason)})" if seen.reason else ""
        return Condition(
            SignalKind.STUCK,
            f"has waited for {look.health.pending_for:.0f} s, longer than allowed{why}",
            ("scheduler",),
        )
    return None


def _stall(look: Look) -> Condition | None:
    silence = look.health.silence
    if not _counts(look) or not silence.begun or silence.stale_looks < _LOOKS:
        return None
    step = "heartbeat" if look.observation.heartbeat_age is not None else "log"
    log_stale = silence.log_stale(look.observation, look.threshold)
    sources = (step, "log") if log_stale and step != "log" else (step,)
    silent = f"no sign of progress for {_silent(look):.0f} s"
    if silence.idle_gpu_looks >= _LOOKS:
        return Condition(SignalKind.STALL, f"{silent} and its GPUs are idle", (*sources, "gpu"))
    if silence.idle_process_looks >= _LOOKS and log_stale:
        return Condition(SignalKind.STALL, f"{silent} and its processes are idle", (*sources, "process"))
    unseen = max(_UNSEEN_TIMES * look.threshold, _UNSEEN_SECONDS)
    if silence.unseen_looks >= _LOOKS and silence.stale_for >= unseen and log_stale:
        # A heartbeat is often the log's own age: without utilisation the two count as one source.
        return Condition(SignalKind.STALL, f"{silent}; what its processes do can't be read", sources[:1])
    return None


def _numerical(look: Look) -> Condition | None:
    reading = look.reading
    if look.observation.liveness is not Liveness.RUNNING:
        return None
    losses, grads = reading.nonfinite_losses, reading.nonfinite_grads
    if losses >= _NONFINITE_LOSSES:
        return Condition(SignalKind.NUMERICAL, f"the last {losses} losses are not finite", ("log",))
    if losses and grads:
        return Condition(SignalKind.NUMERICAL, "loss and gradient norm are not finite", ("log",))
    if grads >= _NAN_GRADS:
        return Condition(SignalKind.NUMERICAL, f"the last {grads} gradient norms are NaN", ("log",))
    return None


def _degraded(look: Look) -> Condition | None:
    seen = look.observation
    if seen.liveness is Liveness.GONE and look.health.gone_looks >= _GONE_LOOKS and look.health.was_running:
        return Condition(SignalKind.DEGRADED, "its scheduler no longer knows it", ("scheduler",))
    if not _counts(look):
        return None
    if seen.bad_nodes:
        nodes = plain(", ".join(seen.bad_nodes))
        return Condition(SignalKind.DEGRADED, f"runs on bad nodes: {nodes}", ("scheduler",))
    return None if _stall(look) else _standstill(look)


def _standstill(look: Look) -> Condition | None:
    """A job without progress that can't be called stalled."""
    silence = look.health.silence
    if not silence.begun:
        waited = look.health.running_for
        late = waited >= _FIRST_STEP
        return (
            Condition(SignalKind.DEGRADED, f"no step was seen in {waited:.0f} s", ("log",)) if late else None
        )
    if silence.stale_looks >= _LOOKS and look.reading.trouble:
        return Condition(SignalKind.DEGRADED, f"no progress, and {look.reading.trouble}", ("log",))
    if silence.stale_for >= max(_STANDSTILL_TIMES * look.threshold, _STANDSTILL_SECONDS):
        detail = f"no sign of progress for {_silent(look):.0f} s, but it is not known to be idle"
        return Condition(SignalKind.DEGRADED, detail, ("log",))
    return None


def _collapse(look: Look) -> Condition | None:
    pace = look.health.pace
    if not _counts(look) or pace.slowdown is None or not pace.collapsed(look.watching):
        return None
    return Condition(SignalKind.THROUGHPUT_COLLAPSE, f"{pace.slowdown:.1f} times slower than usual", ("log",))


def _low_utilisation(look: Look) -> Condition | None:
    if look.health.low_looks < _LOW_LOOKS or look.health.low_for < _LOW_SECONDS:
        return None
    return Condition(
        SignalKind.LOW_UTILISATION,
        f"GPU use under {look.watching.low_gpu_percent:g} % for {look.health.low_for:.0f} s",
        ("gpu",),
    )


def _warning(look: Look) -> Condition | None:
    seen = look.observation
    return Condition(SignalKind.WARNING, plain(seen.warning), ("scheduler",)) if seen.warning else None


_RULES: tuple[Callable[[Look], Condition | None], ...] = (
    _crash,
    _early_stop,
    _stuck,
    _numerical,
    _stall,
    _degraded,
    _collapse,
    _low_utilisation,
    _warning,
)


def _counts(look: Look) -> bool:
    """Whether the job should go forward now."""
    return look.observation.liveness is Liveness.RUNNING and not look.observation.restart_underway


def _silent(look: Look) -> float:
    ages = (look.observation.heartbeat_age, look.observation.log_age)
    return max(look.health.silence.steps_for, *(age or 0.0 for age in ages))


def _last_step(look: Look) -> int | None:
    known = [progress.step for progress in (look.reading.progress, look.observation.progress) if progress]
    return max(known, default=None)


def plain(text: str) -> str:
    """Reduce foreign text to at most 200 printable characters on one line, masked: half a secret can't be told."""
    shown = mask(text)[:200]
    return "".join(character if character.isprintable() else " " for character in shown).strip()
