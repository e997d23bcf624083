"""How far a training job is, read from what it prints.

`read_progress` folds log text into a `Reading`, chunk by chunk. How the text is cut does not matter.
Logs are hostile: every number is bounded, a jump is believed only once the next line continues it, and
nothing but numbers and checked links leaves this module.
"""

from __future__ import annotations

from enum import StrEnum

from trainguard.core.fact import Fact
from trainguard.core.observation import Progress


class LinkKind(StrEnum):
    """Trackers whose pages are shown. Stable contract: stored in ledgers, do not rename."""

    WANDB = "wandb"
    MLFLOW = "mlflow"
    TENSORBOARD = "tensorboard"


class Link(Fact):
    """The page of a training run in a tracker."""

    kind: LinkKind
    url: str
    """http or https, without control characters, quotes or brackets."""
    run_id: str = ""


class Pause(StrEnum):
    """What the log announced that makes a silence plausible."""

    CHECKPOINT = "checkpoint"
    EVALUATION = "evaluation"


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
    loss_history: tuple[tuple[int, float], ...] = ()
    """(step, loss), at most 200, thinned evenly; losses may be NaN or infinite."""
    nonfinite_losses: int = 0
    """How many of the last losses in a row were NaN or infinite."""
    nonfinite_grads: int = 0
    """How many of the last gradient norms in a row were NaN or infinite."""
    checkpoint_steps: tuple[int, ...] = ()
    """Steps at which the log says a checkpoint was written, at most 50; whether it is good is not said."""
    pause: Pause | None = None
    """Announced after the last step."""
    trouble: str = ""
    """A line since the last step that tells of lost nodes or workers; cleaned, at most 200 characters."""
    links: tuple[Link, ...] = ()
    """At most 20, each once."""


def read_progress(text: str, before: Reading, at: float, pattern: str = "") -> Reading:
    """Fold `text`, read at `at`, into what was known. `pattern` is `Watching.progress_pattern`.

    Raises ConfigError for a pattern that `compile_pattern` refuses.
    """
    raise NotImplementedError


def restarted(reading: Reading) -> Reading:
    """Begin a new attempt: what belongs to the old incarnation is dropped, best step, losses and links stay.

    Call it when the scheduler names a new incarnation; a step that goes back in the log does it by itself.
    """
    raise NotImplementedError
