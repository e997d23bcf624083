"""How far a training job is, read from what it prints.

`read_progress` folds log text into a `Reading`, chunk by chunk. How the text is cut does not matter.
Logs are hostile: every number is bounded, a jump is believed only once the next line continues it, and
nothing but numbers, our own words and checked links leaves this module.
"""

from __future__ import annotations

import re

from pydantic import Field

from trainguard.core.counter import Counter, EpochMark, advance
from trainguard.core.fact import Fact
from trainguard.core.links import Link, LinkKind, find_links
from trainguard.core.log_formats import MAX_LINE, Count, Epoch, Rank, read_line
from trainguard.core.loss import Losses
from trainguard.core.notices import Pause, announces_saving, read_saved, read_trouble
from trainguard.core.observation import Progress
from trainguard.core.pattern import compile_pattern

__all__ = ["Link", "LinkKind", "Pause", "Reading", "compile_pattern", "read_progress", "restarted"]

_MAX_COUNTERS = 12
_MAX_CHECKPOINTS = 50
_SETTLED = 20
"""Values after which a counter no longer counts as a stray line."""
_STRAY = 500
"""Values of other counters after which a stray one is forgotten."""


class Reading(Fact):
    """What is known from the log so far. Give it back to `read_progress` with the next chunk."""

    progress: Progress | None = None
    """Of the current attempt. A step that went back is a new attempt."""
    best_step: int | None = None
    """The furthest step over all attempts: recovery must pass it."""
    first_step_at: float | None = None
    """When the current attempt's first step was read; None while it starts or compiles."""
    progressed_at: float | None = None
    """When the current attempt last went forward."""
    last_line_at: float | None = None
    """When text was last read."""
    attempts: int = 1
    """Attempts seen: one more for each time the step went back, or `restarted` was called."""
    losses: Losses = Losses()
    checkpoint_steps: tuple[int, ...] = ()
    """Steps at which the log says a checkpoint was written, at most 50; whether it is good is not said."""
    pause: Pause | None = None
    """Announced after the last step."""
    trouble: str = ""
    """Lost nodes or workers that the log told of after the last step, in our words."""
    links: tuple[Link, ...] = ()
    """At most 20, each once."""
    counters: tuple[Counter, ...] = Field(default=(), repr=False)
    """What the next chunk is folded into."""
    epoch: EpochMark | None = None
    restarts: int = 0
    values: int = 0
    tail: str = Field(default="", repr=False)
    """The beginning of a line that is not complete."""

    @property
    def loss_history(self) -> tuple[tuple[int, float], ...]:
        """(step, loss), at most 200, thinned evenly; losses may be NaN or infinite."""
        return self.losses.history

    @property
    def nonfinite_losses(self) -> int:
        """How many of the last losses in a row were NaN or infinite."""
        return self.losses.nonfinite

    @property
    def nonfinite_grads(self) -> int:
        """How many of the last gradient norms in a row were NaN."""
        return self.losses.nan_grads


def read_progress(text: str, before: Reading, at: float, pattern: str = "") -> Reading:
    """Fold `text`, read at `at`, into what was known. `pattern` is `Watching.progress_pattern`.

    Raises ConfigError for a pattern that `compile_pattern` refuses.
    """
    own = compile_pattern(pattern) if pattern else None
    if not text:
        return before
    fold = _Fold(before, at, own)
    lines = _END.split(text)
    lines[0] = before.tail + lines[0][:MAX_LINE]
    tail = lines.pop()[:MAX_LINE]
    for line in lines:
        if clean := _ESCAPE.sub("", line[:MAX_LINE]).strip():
            fold.read(clean)
    return fold.reading(tail)


def restarted(reading: Reading) -> Reading:
    """Begin a new attempt: what belongs to the old incarnation is dropped, best step, losses and links stay.

    Call it when the scheduler names a new incarnation; a step that goes back in the log does it by itself.
    """
    counters = tuple(
        counter.model_copy(
            update={
                **dict.fromkeys(
                    ("step", "value", "doubt", "first_at", "grew_at", "mark_at", "mark_step"), None
                ),
                "best": counter.furthest,
                "run": 0,
                "stride": 0,
            }
        )
        for counter in reading.counters
    )
    return reading.model_copy(
        update={
            **dict.fromkeys(("progress", "first_step_at", "progressed_at", "pause", "epoch"), None),
            "losses": reading.losses.restarted(),
            "counters": counters,
            "restarts": reading.restarts + 1,
            "attempts": reading.attempts + 1,
            "trouble": "",
            "tail": "",
        }
    )


_END = re.compile(r"[\r\n]")
_ESCAPE = re.compile(
    r"\x1b(?:\[[0-9;?]*[ -/]*[@-~]|\][^\x07\x1b]{0,200}(?:\x07|\x1b\\)|[@-Z\\-_])|[\x00-\x08\x0b-\x1f\x7f-\x9f]"
)


class _Fold:
    """A reading while a chunk is folded into it."""

    def __init__(self, before: Reading, at: float, own: re.Pattern[str] | None) -> None:
        self._before = before
        self._at = at
        self._own = own
        self._counters = {counter.name: counter for counter in before.counters}
        self._epoch = before.epoch
        self._values = before.values
        self._losses = before.losses
        self._checkpoints = before.checkpoint_steps
        self._pause = before.pause
        self._trouble = before.trouble
        self._links = before.links
        self._primary = _primary(before.counters, before.values)

    def read(self, line: str) -> None:
        """Fold one clean line."""
        self._links = find_links(line, self._links)
        said = read_line(line, self._own)
        if said.epoch is not None:
            self._enter(said.epoch)
        if said.counted is not None:
            self._count(said.counted, said.step_seconds, has_loss=said.loss is not None)
        elif said.evaluation:
            self._pause = Pause.EVALUATION
        else:
            self._notice(line)
        step = None if self._primary is None else self._primary.step
        self._losses = self._losses.read(step, said.loss, said.grad_norm)

    def _enter(self, epoch: Epoch) -> None:
        known = self._epoch
        from_zero = epoch.from_zero or (known is not None and known.from_zero)
        total = epoch.total or (known.total if known else None)
        self._epoch = EpochMark(
            index=epoch.number if from_zero else max(epoch.number - 1, 0), total=total, from_zero=from_zero
        )

    def _count(self, count: Count, seconds: float | None, *, has_loss: bool) -> None:
        self._values += 1
        before = self._counters.get(count.name)
        if before is None:
            before = Counter(name=count.name, rank=count.rank, order=self._values)
        after = self._counters[count.name] = advance(
            before,
            count,
            self._epoch,
            self._at,
            seen=self._values,
            losses=before.losses + has_loss,
            seconds=before.seconds if seconds is None else seconds,
        )
        self._forget()
        self._primary = _primary(tuple(self._counters.values()), self._values)
        grew = after.samples > before.samples
        if grew and self._primary is not None and self._primary.name == count.name:
            self._pause, self._trouble = None, ""

    def _forget(self) -> None:
        if len(self._counters) > _MAX_COUNTERS:
            least = min(self._counters.values(), key=lambda counter: (counter.samples, counter.seen))
            del self._counters[least.name]

    def _notice(self, line: str) -> None:
        """Take note of checkpoints, pauses and trouble in a line without a counter."""
        saved = read_saved(line)
        if saved is not None:
            self._saved(saved.step)
        elif announces_saving(line):
            self._pause = Pause.CHECKPOINT
        elif self._primary is not None and not self._trouble:
            self._trouble = read_trouble(line)

    def _saved(self, step: int | None) -> None:
        if self._pause is Pause.CHECKPOINT:
            self._pause = None
        if step is None and self._primary is not None:
            step = self._primary.step
        if step is not None and step not in self._checkpoints[-1:]:
            self._checkpoints = (*self._checkpoints, step)[-_MAX_CHECKPOINTS:]

    def reading(self, tail: str) -> Reading:
        """Give the reading after the chunk."""
        primary = self._primary
        update: dict[str, object] = {
            "last_line_at": self._at,
            "losses": self._losses,
            "checkpoint_steps": self._checkpoints,
            "pause": self._pause,
            "trouble": self._trouble,
            "links": self._links,
            "counters": tuple(self._counters.values()),
            "epoch": self._epoch,
            "values": self._values,
            "tail": tail,
        }
        if primary is not None and primary.step is not None:
            update |= {
                "progress": Progress(
                    step=primary.step,
                    total=primary.total,
                    loss=self._losses.last,
                    step_seconds=primary.step_seconds,
                    at=primary.grew_at,
                ),
                "best_step": primary.furthest,
                "first_step_at": primary.first_at,
                "progressed_at": primary.grew_at,
                "attempts": 1 + self._before.restarts + primary.rewinds,
            }
        return self._before.model_copy(update=update)


def _primary(counters: tuple[Counter, ...], values: int) -> Counter | None:
    """Choose the counter that tells the global step: stated before labelled before bare, the training's own."""

    def trust(counter: Counter) -> tuple[int, ...]:
        stray = counter.rank > Rank.LABELLED and counter.samples < _SETTLED and values - counter.seen > _STRAY
        return (
            -1 if stray else counter.rank if counter.samples > 1 or counter.rank == Rank.OWN else 0,
            counter.losses > 0,
            counter.unfinished,
            -counter.order,
        )

    return max((counter for counter in counters if counter.step is not None), key=trust, default=None)
