"""Trains a small network for real and prints what such a training prints: the healthy logs come from it.

    python tests/healthy/train_numpy.py STYLE STEPS SEED > tests/healthy/STYLE.log

STYLE is plain, tqdm, dict or megatron. Only numpy and the standard library.
"""

from __future__ import annotations

import logging
import sys
import time
import warnings

import numpy as np


def batches(rng: np.random.Generator, steps: int):  # type: ignore[no-untyped-def]
    """Noisy spirals, one batch a step."""
    for _ in range(steps):
        t = rng.uniform(0.2, 3.0, 64)
        label = rng.integers(0, 2, 64)
        angle = t * 3 + label * np.pi
        points = np.stack([t * np.cos(angle), t * np.sin(angle)], 1) + rng.normal(0, 0.05, (64, 2))
        yield points, label


class Network:
    """Two layers by hand."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.weights = [rng.normal(0, 0.7, (2, 48)), rng.normal(0, 0.2, (48, 2))]
        self.moments = [np.zeros_like(w) for w in self.weights]

    def step(self, x: np.ndarray, y: np.ndarray, rate: float) -> tuple[float, float]:
        """One update. Gives loss and gradient norm."""
        hidden = np.tanh(x @ self.weights[0])
        scores = hidden @ self.weights[1]
        scores -= scores.max(1, keepdims=True)
        chances = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
        loss = -np.log(chances[np.arange(len(y)), y] + 1e-12).mean()
        error = chances.copy()
        error[np.arange(len(y)), y] -= 1
        error /= len(y)
        gradients = [x.T @ ((error @ self.weights[1].T) * (1 - hidden**2)), hidden.T @ error]
        norm = float(np.sqrt(sum((g**2).sum() for g in gradients)))
        for weight, moment, gradient in zip(self.weights, self.moments, gradients, strict=True):
            moment *= 0.9
            moment += gradient
            weight -= rate * moment
        return float(loss), norm


def show(style: str, step: int, steps: int, loss: float, norm: float, seconds: float) -> None:
    """One line in the way of a well-known trainer."""
    if style == "plain":
        logging.info(
            "step %d/%d | loss: %.4f | grad_norm: %.3f | %.1f ms/step", step, steps, loss, norm, seconds * 1e3
        )
    elif style == "tqdm":
        share = 100 * step // steps
        sys.stdout.write(
            f"\rtraining: {share:3}%|{'█' * (share // 10):10}| {step}/{steps} "
            f"[00:{step // 60:02}<00:{(steps - step) // 60:02}, {1 / max(seconds, 1e-6):.2f}it/s, loss={loss:.3f}]"
        )
        if step == steps:
            sys.stdout.write("\n")
    elif style == "dict":
        print(
            {
                "loss": round(loss, 4),
                "grad_norm": round(norm, 4),
                "learning_rate": 0.05,
                "epoch": round(step / steps, 2),
            }
        )
    else:
        print(
            f" iteration {step:8}/{steps:8} | consumed samples: {step * 64:12} | elapsed time per iteration (ms): "
            f"{seconds * 1e3:.1f} | learning rate: 5.000E-02 | global batch size:    64 | lm loss: {loss:E} | loss scale: 1.0 | "
            f"grad norm: {norm:.3f} | number of skipped iterations:   0 | number of nan iterations:   0 |"
        )


def main(style: str, steps: int, seed: int) -> None:
    """Train and print."""
    logging.basicConfig(
        level=logging.INFO, stream=sys.stdout, format="%(asctime)s - %(levelname)s - %(message)s"
    )
    rng = np.random.default_rng(seed)
    network = Network(rng)
    logging.info("config: %s", {"retry_on": ["CUDA out of memory", "NCCL timeout"], "max_restarts": 3})
    skipped = 0
    for step, (x, y) in enumerate(batches(rng, steps), start=1):
        began = time.perf_counter()
        if step % 97 == 0:
            x = x * 1e6  # a broken batch: the guard below skips it, as trainers do
        if np.abs(x).max() > 1e3:
            skipped += 1
            logging.warning(
                "batch of step %d has outliers, skipped (%d so far), training goes on", step, skipped
            )
            continue
        loss, norm = network.step(x, y, 0.05)
        if step % 10 == 0 or style == "tqdm":
            show(style, step, steps, loss, norm, time.perf_counter() - began)
        if step % 200 == 0:
            logging.info("saving checkpoint step-%d: done, 0 errors, 0 failed shards", step)
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                np.log(np.zeros(1))
            for warning in caught:
                logging.warning("RuntimeWarning: %s", warning.message)
    logging.info("Training completed. final loss %.4f, %d batches skipped", loss, skipped)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
