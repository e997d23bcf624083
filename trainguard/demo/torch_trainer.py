"""Train a small model on several ranks for real, on gloo.

`python -m torch.distributed.run --nproc-per-node 2 -m trainguard.demo.torch_trainer --work FOLDER [--resume CHECKPOINT]`

Writes `FOLDER/checkpoints/step-000120.pt` atomically from rank 0, one line a step, and begins where
`--resume` or the variable RESUME_FROM says. `--fault rank-killed@STEP` kills the last rank with SIGKILL.
Needs PyTorch, which is imported nowhere else.
"""

from __future__ import annotations

import argparse
import math
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch  # type: ignore[import-not-found, unused-ignore]
import torch.distributed as dist  # type: ignore[import-not-found, unused-ignore]
from torch.nn.parallel import DistributedDataParallel  # type: ignore[import-not-found, unused-ignore]

from trainguard.demo.faults import Fault, FaultKind, Tape

INPUTS, HIDDEN, CLASSES = 32, 256, 8
RATE = 0.1
KEPT_CHECKPOINTS = 8


class Trainer:
    """One rank of one attempt."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self._rank, self._ranks = dist.get_rank(), dist.get_world_size()
        self._tape = Tape(options.work, tuple(options.fault))
        self._checkpoints: Path = options.work / "checkpoints"
        self._checkpoints.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(options.seed)
        self._teacher = torch.randn(INPUTS, CLASSES)
        self._network = torch.nn.Sequential(
            torch.nn.Linear(INPUTS, HIDDEN), torch.nn.ReLU(), torch.nn.Linear(HIDDEN, CLASSES)
        )
        self._done = self._resume(options.resume)
        self._model: Any = DistributedDataParallel(self._network)
        self._optimizer = torch.optim.SGD(self._model.parameters(), lr=RATE)

    def run(self) -> None:
        """Train to the last step."""
        for step in range(self._done + 1, self._options.steps + 1):
            began = time.monotonic()
            if self._rank == self._ranks - 1 and self._tape.due(step, FaultKind.RANK_KILLED):
                os.kill(os.getpid(), signal.SIGKILL)
            loss = self._step(step)
            left = self._options.step_seconds - (time.monotonic() - began)
            if left > 0:
                time.sleep(left)
            took = (time.monotonic() - began) * 1000
            self._say(f"step {step}/{self._options.steps} loss {loss:.4f} lr {RATE:g} time {took:.1f}ms")
            if not math.isfinite(loss):
                raise FloatingPointError(f"loss is not finite at step {step}")
            if step % self._options.save_every == 0:
                self._save(step)
        self._say(f"finished {self._options.steps} steps")

    def _step(self, step: int) -> float:
        generator = torch.Generator().manual_seed(step * self._ranks + self._rank)
        points = torch.randn(self._options.batch, INPUTS, generator=generator)
        classes = (points @ self._teacher).argmax(dim=1)
        self._optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(self._model(points), classes)
        loss.backward()
        self._optimizer.step()
        return float(loss.item())

    def _resume(self, path: Path | None) -> int:
        if path is None:
            self._say(f"starting from scratch with seed {self._options.seed} on {self._ranks} ranks")
            return 0
        state = torch.load(path, weights_only=True)
        self._network.load_state_dict(state["model"])
        self._say(f"resumed from {path} at step {state['step']}")
        return int(state["step"])

    def _save(self, step: int) -> None:
        if self._rank == 0:
            path = self._checkpoints / f"step-{step:06d}.pt"
            draft = path.with_suffix(".draft")
            with draft.open("wb") as file:
                torch.save({"step": step, "model": self._network.state_dict()}, file)
                file.flush()
                os.fsync(file.fileno())
            draft.replace(path)
            self._say(f"saved checkpoint {path.name} at step {step}")
            for old in sorted(self._checkpoints.glob("step-*.pt"))[:-KEPT_CHECKPOINTS]:
                old.unlink()
        dist.barrier()

    def _say(self, line: str) -> None:
        if self._rank == 0:
            print(line, flush=True)


def parse(arguments: list[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="trainguard.demo.torch_trainer", description="Train on ranks for real."
    )
    parser.add_argument("--work", type=Path, required=True, help="folder of checkpoints and incident tape")
    resume = os.environ.get("RESUME_FROM")
    parser.add_argument("--resume", type=Path, default=Path(resume) if resume else None)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--step-seconds", type=float, default=0.05, help="a step takes at least this long")
    parser.add_argument("--save-every", type=int, default=20, help="steps between checkpoints")
    parser.add_argument("--fault", type=Fault.parse, action="append", default=[], metavar="KIND@STEP")
    return parser.parse_args(arguments)


def main() -> None:
    """Join the other ranks and train."""
    torch.set_num_threads(1)
    options = parse(sys.argv[1:])
    dist.init_process_group("gloo")
    try:
        Trainer(options).run()
    finally:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
