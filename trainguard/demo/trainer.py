"""Train a small model for real: `python -m trainguard.demo.trainer --work FOLDER [--resume CHECKPOINT]`.

Writes a checkpoint every few steps (`FOLDER/checkpoints/step-000120.npz`, atomically), one honest line a
step, and begins where `--resume` or the variable RESUME_FROM says. With `--fault KIND@STEP` it meets
trouble on the way; see `trainguard.demo.faults`. Needs numpy.
"""

from __future__ import annotations

import argparse
import io
import math
import os
import sys
import time
from pathlib import Path
from typing import Any

# One thread is enough, and a linear algebra library that spins would look busy while it waits.
for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(variable, "1")

import numpy as np  # noqa: E402 - it reads the variables above when it is imported

from trainguard.demo.faults import Fault, FaultKind, Tape, deadlock, write_and_be_killed  # noqa: E402
from trainguard.demo.model import Array, Spirals, Weights, gradients, new_weights, norm  # noqa: E402

RATES = {"warm-up": 0.05, "cruise": 0.1, "cool-down": 0.02}
"""Learning rate of each phase of the training."""
WARM_UP = 40
LEAK = 6 * 2**20
"""Bytes that the leaking cache keeps of each step."""
LEAK_LIMIT = 2 * 2**30
"""Where the leak ends by itself on a machine without a memory limit."""
KEPT_CHECKPOINTS = 8


class Trainer:
    """One attempt of the training."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self._data = Spirals(options.seed)
        self._tape = Tape(options.work, tuple(options.fault))
        self._checkpoints: Path = options.work / "checkpoints"
        self._checkpoints.mkdir(parents=True, exist_ok=True)
        self._leaks = self._diverges = False
        self._cache: list[Array] = []
        self._cool_down = "cool-down"
        self._not_finite = 0
        self._weights, self._done = self._begin(options.resume)

    def run(self) -> None:
        """Train to the last step."""
        for step in range(self._done + 1, self._options.steps + 1):
            began = time.monotonic()
            self._meet_trouble(step)
            loss, length, rate = self._step(step)
            left = self._options.step_seconds - (time.monotonic() - began)
            if left > 0:
                time.sleep(left)
            took = (time.monotonic() - began) * 1000
            say(
                f"step {step}/{self._options.steps} loss {loss:.4f} "
                f"grad_norm {length:.4g} lr {rate:g} time {took:.1f}ms"
            )
            self._watch_loss(step, loss)
            if step % self._options.save_every == 0:
                self._save(step)
        say(f"finished {self._options.steps} steps")

    def _begin(self, resume: Path | None) -> tuple[Weights, int]:
        if resume is None:
            say(f"starting from scratch with seed {self._options.seed}")
            return new_weights(self._options.seed), 0
        weights, step = load(resume)
        say(f"resumed from {resume} at step {step}")
        return weights, step

    def _step(self, step: int) -> tuple[float, float, float]:
        points, classes = self._data.batch(step, self._options.batch)
        if self._leaks:
            self._remember(points)
        loss, slopes = gradients(self._weights, points, classes)
        rate = self._rate(step)
        for name, slope in slopes.items():
            self._weights[name] -= np.float32(rate) * slope
        return loss, norm(slopes), rate

    def _rate(self, step: int) -> float:
        phase = "warm-up" if step <= WARM_UP else "cruise"
        if step > 0.9 * self._options.steps:
            phase = self._cool_down
        return RATES[phase] * (1e6 if self._diverges else 1.0)

    def _remember(self, points: Array) -> None:
        """Keep augmented copies of a batch for later epochs. Nobody ever takes one out."""
        copies = LEAK // points.nbytes
        self._cache.append(np.repeat(points, copies, axis=0) + np.float32(0.01))
        if len(self._cache) * LEAK > LEAK_LIMIT:
            raise MemoryError(f"the batch cache holds more than {LEAK_LIMIT} bytes")

    def _watch_loss(self, step: int, loss: float) -> None:
        self._not_finite = 0 if math.isfinite(loss) else self._not_finite + 1
        if self._not_finite > self._options.patience:
            raise FloatingPointError(
                f"loss is not finite since step {step - self._not_finite + 1}, giving up"
            )

    def _save(self, step: int) -> None:
        if self._not_finite:
            say(f"loss is not finite: no checkpoint at step {step}")
            return
        path = self._checkpoints / f"step-{step:06d}.npz"
        buffer = io.BytesIO()
        arrays: dict[str, Any] = {"step": np.int64(step), **self._weights}
        np.savez(buffer, **arrays)
        if self._tape.due(step, FaultKind.TRUNCATED_CHECKPOINT):
            write_and_be_killed(path, buffer.getvalue())
        else:
            draft = path.with_suffix(".draft")
            with draft.open("wb") as file:
                file.write(buffer.getvalue())
                file.flush()
                os.fsync(file.fileno())
            draft.replace(path)
        load(path)
        say(f"saved checkpoint {path.name} at step {step}")
        for old in sorted(self._checkpoints.glob("step-*.npz"))[:-KEPT_CHECKPOINTS]:
            old.unlink()

    def _meet_trouble(self, step: int) -> None:
        if self._tape.due(step, FaultKind.MEMORY_LEAK):
            self._leaks = True
        if self._tape.due(step, FaultKind.DIVERGENCE):
            self._diverges = True
        if self._tape.due(step, FaultKind.CODE_ERROR):
            self._cool_down = "cooldown"
        if self._tape.due(step, FaultKind.DEADLOCK):
            deadlock(say)


def load(path: Path) -> tuple[Weights, int]:
    """Read a checkpoint back. Raises what numpy raises where it is damaged."""
    with path.open("rb") as file, np.load(file) as archive:
        weights = {name: np.array(archive[name]) for name in archive.files if name != "step"}
        return weights, int(archive["step"])


def say(line: str) -> None:
    """Print one line of the log at once."""
    print(line, flush=True)


def parse(arguments: list[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="trainguard.demo.trainer", description="Train a small model for real."
    )
    parser.add_argument("--work", type=Path, required=True, help="folder of checkpoints and incident tape")
    resume = os.environ.get("RESUME_FROM")
    parser.add_argument(
        "--resume", type=Path, default=Path(resume) if resume else None, help="checkpoint to begin from"
    )
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--batch", type=int, default=1024)
    parser.add_argument("--step-seconds", type=float, default=0.04, help="a step takes at least this long")
    parser.add_argument("--save-every", type=int, default=20, help="steps between checkpoints")
    parser.add_argument(
        "--patience", type=int, default=50, help="steps without a finite loss before giving up"
    )
    parser.add_argument("--fault", type=Fault.parse, action="append", default=[], metavar="KIND@STEP")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    Trainer(parse(sys.argv[1:])).run()
