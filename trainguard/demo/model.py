"""A small classifier and its data: two layers, trained by gradient descent, in numpy."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]
Weights = dict[str, Array]

INPUTS, HIDDEN, CLASSES = 32, 256, 8


class Spirals:
    """Points on noisy, tangled curves, each with the class of its curve. Batches depend on seed and step alone."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        generator = np.random.default_rng(seed)
        self._mixing = generator.normal(size=(4, INPUTS)).astype(np.float32)

    def batch(self, step: int, size: int) -> tuple[Array, Labels]:
        """Give the points and classes of one step."""
        generator = np.random.default_rng((self._seed, step))
        classes = generator.integers(0, CLASSES, size=size)
        turn = generator.uniform(0.2, 2.0, size=size)
        angle = 2.5 * turn + 2 * np.pi * classes / CLASSES
        curve = np.stack([turn * np.cos(angle), turn * np.sin(angle), np.sin(3 * angle), turn], axis=1)
        points = curve @ self._mixing + generator.normal(scale=0.15, size=(size, INPUTS))
        return points.astype(np.float32), classes


def new_weights(seed: int) -> Weights:
    """Give the weights that training begins with."""
    generator = np.random.default_rng(seed)
    return {
        "hidden": (generator.normal(size=(INPUTS, HIDDEN)) / np.sqrt(INPUTS)).astype(np.float32),
        "hidden_bias": np.zeros(HIDDEN, dtype=np.float32),
        "output": (generator.normal(size=(HIDDEN, CLASSES)) / np.sqrt(HIDDEN)).astype(np.float32),
        "output_bias": np.zeros(CLASSES, dtype=np.float32),
    }


def gradients(weights: Weights, points: Array, classes: Labels) -> tuple[float, Weights]:
    """Give the mean cross-entropy of a batch and its gradient."""
    hidden = np.maximum(points @ weights["hidden"] + weights["hidden_bias"], 0)
    scores = hidden @ weights["output"] + weights["output_bias"]
    scores -= scores.max(axis=1, keepdims=True)
    likely = np.exp(scores)
    likely /= likely.sum(axis=1, keepdims=True)
    rows = np.arange(len(classes))
    loss = float(-np.log(likely[rows, classes] + 1e-30).mean())
    likely[rows, classes] -= 1
    error = likely / len(classes)
    back = (error @ weights["output"].T) * (hidden > 0)
    return loss, {
        "hidden": points.T @ back,
        "hidden_bias": back.sum(axis=0),
        "output": hidden.T @ error,
        "output_bias": error.sum(axis=0),
    }


def norm(slopes: Weights) -> float:
    """Give the length of a gradient."""
    return float(np.sqrt(sum(float((slope.astype(np.float64) ** 2).sum()) for slope in slopes.values())))
