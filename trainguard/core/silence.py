"""How long a running job has shown no progress, and how long it usually shows none."""

from __future__ import annotations

from trainguard.core.fact import Fact
from trainguard.core.job import Watching
from trainguard.core.observation import Observation
from trainguard.core.progress import Reading

_MAX_GAPS = 200
_LONGEST_GAP = 1_800.0
"""Longer silences that ended by themselves are luck, not habit."""
_LOG_LAG = 30.0
"""Seconds by which the reading of a log may lag behind the job."""
_UNBROKEN = 0.9
"""Share of the time between two looks by which the age of the last sign of life grows where none came."""
IDLE_CPU_PERCENT = 5.0
"""Of one core, over the whole process tree: less is idle."""


class Silence(Fact):
    """Silence of one incarnation, counted over looks. Seconds."""

    begun: bool = False
    """A first step was seen: what comes before it (start, compilation) is never a stall."""
    stepped: bool = False
    """The last look saw progress."""
    steps_for: float = 0.0
    """Since progress was last seen."""
    lines_for: float = 0.0
    """Since the log last grew."""
    step_mark: tuple[int | None, int, int | None] | None = None
    line_mark: float | None = None
    age: float | None = None
    """The age of the last sign of life at the last look."""
    gaps: tuple[float, ...] = ()
    """Silences worth the name that ended by themselves, the last 200, over all incarnations."""
    stale_looks: int = 0
    """Looks in a row at which every sign of life was older than the threshold."""
    idle_gpu_looks: int = 0
    idle_process_looks: int = 0
    unseen_looks: int = 0
    """Stale looks in a row without any utilisation."""
    stale_for: float = 0.0

    @property
    def usual_gap(self) -> float:
        """The 99th percentile of the silences that ended by themselves."""
        if not self.gaps:
            return 0.0
        ordered = sorted(self.gaps)
        return ordered[max(0, -(-len(ordered) * 99 // 100) - 1)]

    def restarted(self) -> Silence:
        """Begin with a new incarnation; the usual gaps stay known."""
        return Silence(gaps=self.gaps)

    def quietened(self) -> Silence:
        """Stop counting while the job does not run."""
        return self.model_copy(
            update={
                **dict.fromkeys(("stale_looks", "idle_gpu_looks", "idle_process_looks", "unseen_looks"), 0),
                **dict.fromkeys(("steps_for", "lines_for", "stale_for"), 0.0),
                "stepped": False,
                "age": None,
            }
        )

    def looked(
        self, observation: Observation, reading: Reading, watching: Watching, elapsed: float, threshold: float
    ) -> Silence:
        """Take in a look at the running job, `elapsed` seconds after the last."""
        # One interval counts for at most half the threshold: a stall takes several looks.
        counted = min(elapsed, threshold / 2)
        mark = _step_mark(observation, reading)
        # The first mark of an incarnation may be the last of the one before: only a change is a step.
        moved = mark is not None and mark != self.step_mark
        stepped = moved and self.step_mark is not None
        lines = reading.last_line_at != self.line_mark
        update: dict[str, object] = {
            "begun": self.begun or stepped or reading.first_step_at is not None,
            "stepped": stepped,
            "step_mark": mark or self.step_mark,
            "line_mark": reading.last_line_at,
            "steps_for": 0.0 if moved else self.steps_for + counted,
            "lines_for": 0.0 if lines else self.lines_for + counted,
        }
        after = self.model_copy(update=update)
        return after._aged(observation, watching, elapsed, threshold, begun=self.begun)

    def _aged(
        self, observation: Observation, watching: Watching, elapsed: float, threshold: float, *, begun: bool
    ) -> Silence:
        counted = min(elapsed, threshold / 2)
        ages = [age for age in (observation.heartbeat_age, observation.log_age) if age is not None]
        age = min(ages, default=self.steps_for)
        ended = self.age is not None and age < self.age
        # Without ages, silence ends when progress is seen, which sets its clock to nought.
        gap = min(self.age or 0.0, _LONGEST_GAP) if ended and begun else 0.0
        worth_keeping = gap > threshold / 3
        # A step read now from a log that has not grown since the last stale look was made before that.
        late = self.stale_looks > 0 and age >= (self.age or 0.0) + _UNBROKEN * elapsed
        stale = self._is_stale(observation, threshold, stepped=self.stepped and not late)
        return self.model_copy(
            update={
                "age": age,
                "gaps": (*self.gaps, gap)[-_MAX_GAPS:] if worth_keeping else self.gaps,
                "stale_looks": self.stale_looks + 1 if stale else 0,
                "stale_for": self.stale_for + counted if stale else 0.0,
                "idle_gpu_looks": self.idle_gpu_looks + 1
                if stale and _gpu_idle(observation, watching)
                else 0,
                "idle_process_looks": self.idle_process_looks + 1
                if stale and _process_idle(observation)
                else 0,
                "unseen_looks": self.unseen_looks + 1 if stale and _unseen(observation) else 0,
            }
        )

    def _is_stale(self, observation: Observation, threshold: float, *, stepped: bool) -> bool:
        """Whether every sign of life that can be read is older than the threshold."""
        heartbeat, log = observation.heartbeat_age, observation.log_age
        if stepped or (heartbeat is not None and heartbeat < threshold):
            return False
        if heartbeat is None and log is None:
            return self.steps_for >= threshold
        if log is None or log < threshold:
            # The log still grows, or nobody knows: then it is the steps that must be missing.
            return self.steps_for >= threshold + (0.0 if log is None else _LOG_LAG)
        return True

    def log_stale(self, observation: Observation, threshold: float) -> bool:
        """Whether the log has not grown for as long as the threshold."""
        if observation.log_age is not None:
            return observation.log_age >= threshold
        return self.lines_for >= threshold


def _step_mark(observation: Observation, reading: Reading) -> tuple[int | None, int, int | None] | None:
    """What changes when the training goes forward, by whatever source tells it."""
    read = reading.progress.step if reading.progress else None
    told = observation.progress.step if observation.progress else None
    return None if read is None and told is None else (read, reading.attempts, told)


def _gpu_idle(observation: Observation, watching: Watching) -> bool:
    usage = observation.utilisation.gpu_percent
    return bool(usage) and max(usage or ()) < watching.idle_gpu_percent


def _process_idle(observation: Observation) -> bool:
    usage = observation.utilisation
    return not usage.gpu_percent and usage.cpu_percent is not None and usage.cpu_percent < IDLE_CPU_PERCENT


def _unseen(observation: Observation) -> bool:
    return not observation.utilisation.gpu_percent and observation.utilisation.cpu_percent is None
