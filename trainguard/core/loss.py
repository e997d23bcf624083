"""The losses of a training over its steps, and when they stop being numbers."""

from __future__ import annotations

import math

from trainguard.core.fact import AnyFloat, Fact

MAX_HISTORY = 200


class Losses(Fact):
    """What is known of a job's losses."""

    history: tuple[tuple[int, AnyFloat], ...] = ()
    """(step, loss), at most 200, thinned evenly over all attempts."""
    last: AnyFloat | None = None
    nonfinite: int = 0
    """How many of the last losses in a row were NaN or infinite, each step counted once."""
    nan_grads: int = 0
    """How many of the last gradient norms in a row were NaN. An infinite one is what a loss scaler looks for."""
    every: int = 1
    """Every how many losses one is kept."""
    skipped: int = 0
    loss_step: int | None = None
    grad_step: int | None = None

    def read(self, step: int | None, loss: float | None, grad_norm: float | None) -> Losses:
        """Fold what one line says at `step`; the same step said by another rank counts once."""
        changes: dict[str, object] = {}
        if loss is not None and (step is None or step != self.loss_step):
            bad = self.nonfinite + 1 if not math.isfinite(loss) else 0
            changes |= {"last": loss, "nonfinite": bad, "loss_step": step}
            changes |= self._kept(step, loss) if step is not None else {}
        if grad_norm is not None and (step is None or step != self.grad_step):
            bad = self.nan_grads + 1 if math.isnan(grad_norm) else 0
            changes |= {"nan_grads": bad, "grad_step": step}
        return self.model_copy(update=changes) if changes else self

    def restarted(self) -> Losses:
        """Begin a new attempt: the history stays, what the old attempt printed last does not count on."""
        return self.model_copy(
            update={"last": None, "nonfinite": 0, "nan_grads": 0, "loss_step": None, "grad_step": None}
        )

    def _kept(self, step: int, loss: float) -> dict[str, object]:
        if self.skipped + 1 < self.every:
            return {"skipped": self.skipped + 1}
        history = (*self.history, (step, loss))
        every = self.every
        if len(history) > MAX_HISTORY:
            history, every = history[::2], every * 2
        return {"history": history, "every": every, "skipped": 0}
