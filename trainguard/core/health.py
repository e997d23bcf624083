"""What a series of observations means: the signals of one job.

`assess` folds one look into `Health` and gives the signals that began with it, each once an episode.
Unknown is neither healthy nor failed: while nothing can be seen, no clock of silence runs. Silence is
counted look by look, so neither a clock that jumps nor a guard that was away can make a stall.
"""

from __future__ import annotations

from trainguard.core.conditions import Condition, conditions, plain
from trainguard.core.fact import Fact
from trainguard.core.job import Watching
from trainguard.core.observation import Liveness, Observation
from trainguard.core.pace import Pace
from trainguard.core.progress import Reading
from trainguard.core.signal import Signal, SignalKind
from trainguard.core.silence import Silence

LEAST_STALL = 60.0
"""Seconds of silence below which nothing is a stall, unless the owner says so."""
_PAUSE_STALL = 600.0
"""The same while a checkpoint or an evaluation was announced."""
_STEPS = 3.0
_GAP_MARGIN = 1.5
_BLIND_LOOKS = 3
_BLIND_SECONDS = 60.0
_MAX_TOLD = 20
_MAX_AWAY = 600.0
"""Seconds between two looks that count at most: longer, and the guard was away."""


class Health(Fact):
    """What was seen of one job so far. Start with `Health()`, keep what `assess` gives back."""

    open: tuple[SignalKind, ...] = ()
    """Signals whose episode goes on."""
    unknown_since: float | None = None
    """When sight was lost; None while the job can be seen."""
    unknown_looks: int = 0
    token: str = ""
    """The incarnation that everything below is about."""
    last_at: float | None = None
    was_running: bool = False
    running_for: float = 0.0
    pending_for: float = 0.0
    gone_looks: int = 0
    silence: Silence = Silence()
    pace: Pace = Pace()
    low_looks: int = 0
    low_for: float = 0.0
    told: tuple[str, ...] = ()
    """Warnings that were passed on, the last 20."""

    @property
    def uncertain(self) -> bool:
        """Whether the next check should come soon (`cadence.next_check`)."""
        return bool(set(self.open) - {SignalKind.WARNING}) or self.unknown_since is not None

    @property
    def degraded(self) -> bool:
        """Whether the guard's status is `Degraded`."""
        return bool(set(self.open) - {SignalKind.WARNING})


def assess(
    health: Health, observation: Observation, reading: Reading, watching: Watching, now: float
) -> tuple[Health, tuple[Signal, ...]]:
    """Fold one look at `now` into `health`; give it back with the signals that began now."""
    health = _entered(health, observation)
    elapsed = 0.0 if health.last_at is None else min(max(now - health.last_at, 0.0), _MAX_AWAY)
    if observation.liveness is Liveness.UNKNOWN:
        return _blinded(health, observation, now)
    back = _sight_restored(health, observation, now)
    health = _looked(health, observation, reading, watching, elapsed)
    found = conditions(health, observation, reading, watching, stall_threshold(health, reading, watching))
    opened = tuple(condition for condition in found if _begins(health, condition))
    health = health.model_copy(
        update={
            "open": tuple(dict.fromkeys(condition.kind for condition in found)),
            "told": (*health.told, *_warnings(opened))[-_MAX_TOLD:],
            "last_at": now,
            "unknown_since": None,
            "unknown_looks": 0,
        }
    )
    return health, back + tuple(_signal(condition, observation, now) for condition in opened)


def stall_threshold(health: Health, reading: Reading, watching: Watching) -> float:
    """Seconds of silence after which a running job counts as stale.

    The owner's `stall_after`, else three step times and at least 60 s; longer where the job was seen to fall
    silent for longer and come back, or has announced a checkpoint or an evaluation.
    """
    if watching.stall_after > 0:
        threshold = watching.stall_after
    else:
        step_seconds = reading.progress.step_seconds if reading.progress else None
        threshold = max(_STEPS * (step_seconds or 0.0), LEAST_STALL)
        if reading.pause is not None:
            threshold = max(threshold, _PAUSE_STALL)
    return max(threshold, _GAP_MARGIN * health.silence.usual_gap)


def _entered(health: Health, observation: Observation) -> Health:
    """Begin anew with a new incarnation; the job's own pace and its usual gaps stay known."""
    token = observation.incarnation.token if observation.incarnation else health.token
    if token == health.token:
        return health
    return Health(
        token=token,
        unknown_since=health.unknown_since,
        unknown_looks=health.unknown_looks,
        open=tuple(kind for kind in health.open if kind is SignalKind.BLIND),
        last_at=health.last_at,
        silence=health.silence.restarted(),
        pace=health.pace.restarted(),
        told=health.told,
    )


def _looked(
    health: Health, observation: Observation, reading: Reading, watching: Watching, elapsed: float
) -> Health:
    """Advance what is counted over looks."""
    running = observation.liveness is Liveness.RUNNING and not observation.restart_underway
    threshold = stall_threshold(health, reading, watching)
    silence = health.silence.looked(observation, reading, watching, elapsed, threshold) if running else None
    stepped = silence is not None and silence.stepped
    usage = observation.utilisation.gpu_percent
    low = bool(
        running and usage and health.silence.begun and sum(usage) / len(usage) < watching.low_gpu_percent
    )
    return health.model_copy(
        update={
            "was_running": health.was_running or running,
            "running_for": health.running_for + elapsed if running else 0.0,
            "pending_for": health.pending_for + elapsed if observation.liveness is Liveness.PENDING else 0.0,
            "gone_looks": health.gone_looks + 1 if observation.liveness is Liveness.GONE else 0,
            "silence": silence or health.silence.quietened(),
            "pace": health.pace.looked(reading, watching) if stepped else health.pace,
            "low_looks": health.low_looks + 1 if low else 0,
            "low_for": health.low_for + elapsed if low else 0.0,
        }
    )


def _begins(health: Health, condition: Condition) -> bool:
    """Whether a condition begins an episode; a warning begins one with each new text."""
    if condition.kind is SignalKind.WARNING:
        return condition.detail not in health.told
    return condition.kind not in health.open


def _warnings(found: tuple[Condition, ...]) -> tuple[str, ...]:
    return tuple(condition.detail for condition in found if condition.kind is SignalKind.WARNING)


def _blinded(health: Health, observation: Observation, now: float) -> tuple[Health, tuple[Signal, ...]]:
    """Count a look that saw nothing. What was known stays as it was."""
    since = now if health.unknown_since is None else min(health.unknown_since, now)
    looks = health.unknown_looks + 1
    blind = looks >= _BLIND_LOOKS and now - since >= _BLIND_SECONDS
    begins = blind and SignalKind.BLIND not in health.open
    health = health.model_copy(
        update={
            "unknown_since": since,
            "unknown_looks": looks,
            "open": (*health.open, SignalKind.BLIND) if begins else health.open,
            "last_at": now,
        }
    )
    if not begins:
        return health, ()
    why = f": {plain(observation.reason)}" if observation.reason else ""
    condition = Condition(
        SignalKind.BLIND, f"nothing could be seen for {now - since:.0f} s{why}", ("scheduler",)
    )
    return health, (_signal(condition, observation, now),)


def _sight_restored(health: Health, observation: Observation, now: float) -> tuple[Signal, ...]:
    if SignalKind.BLIND not in health.open or health.unknown_since is None:
        return ()
    detail = f"the job can be seen again after {now - health.unknown_since:.0f} s"
    return (_signal(Condition(SignalKind.WARNING, detail, ("scheduler",)), observation, now),)


def _signal(condition: Condition, observation: Observation, now: float) -> Signal:
    return Signal(
        kind=condition.kind,
        at=now,
        detail=condition.detail,
        sources=condition.sources,
        incarnation=observation.incarnation,
    )
