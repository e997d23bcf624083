"""How fast the whole catalogue reads 1 GB of training log, beside ripgrep and `re` line by line.

python -m benchmarks.scan [megabytes]
"""

from __future__ import annotations

import json
import random
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from trainguard.core.diagnosis import Catalogue
from trainguard.rules import load_catalogue

MEGABYTE = 1 << 20
_PIECE = 64
"""Megabytes that are drawn; the log repeats them."""
_SAMPLE = 4
"""Megabytes that `re` reads line by line: it is slow."""

_CHATTER = (
    "INFO - trainer - saving checkpoint to /ckpt/step-{step} (async), {n} shards",
    "INFO - trainer - checkpoint saved in {f:.2f} s, 0 errors",
    "WARNING - dataloader - prefetch queue is empty, waited {f:.3f} s for the next batch",
    "INFO - dataloader - epoch 0 shard {n}/4096 opened, 0 corrupt records, 0 skipped",
    "UserWarning: Error handling is deferred for this op, see the docs. (Triggered internally at ../aten/src/x.cpp:{n}.)",
    "INFO - monitor - gpu {g} util {n}% mem 71.2/79.1 GiB temp 63 C ecc errors: 0",
    "gpu-node-{n:03}:9001:9543 [{g}] NCCL INFO Channel {g:02}/16 : 0[0] -> 1[1] via P2P/CUMEM/read",
    "INFO - wandb - synced 3 files, 0 failed",
    "DEBUG - rpc - retrying call {n} after 0.1 s (attempt 1)",
)


def training_log(seed: int, size: int) -> Iterator[str]:
    """Lines of a long run with what such runs print between the steps, about `size` bytes."""
    rng = random.Random(seed)
    step, written = 0, 0
    while written < size:
        step += 1
        stamp = (
            f"2025-03-04 {step // 3600 % 24:02}:{step // 60 % 60:02}:{step % 60:02},{rng.randrange(1000):03}"
        )
        line = (
            f"{stamp} - INFO - trainer - [rank{step % 8}] step {step}/2000000 | loss: {2 + rng.random():.4f} | "
            f"grad_norm: {rng.random():.3f} | lr: 3.0e-04 | tokens/s: {rng.randint(9000, 11000)} | mfu: 0.41"
        )
        if rng.random() < 0.1:
            text = rng.choice(_CHATTER).format(
                step=step, n=rng.randrange(1000), g=rng.randrange(8), f=rng.random() * 9
            )
            line = f"{stamp} - {text}"
        written += len(line) + 1
        yield line


def write_log(path: Path, seed: int, megabytes: int) -> None:
    """Write a log whose last lines hold a failure."""
    piece = "\n".join(training_log(seed, min(megabytes, _PIECE) * MEGABYTE)).encode() + b"\n"
    with path.open("wb") as log:
        while log.tell() < megabytes * MEGABYTE:
            log.write(piece)
        log.write(b"[rank3]: torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 4.35 GiB.\n")


def alternation(catalogue: Catalogue) -> str:
    """All patterns of the catalogue as one."""
    parts = []
    for rule in catalogue.rules:
        for pattern in rule.any_of:
            flagged = pattern.startswith("(?i)")
            parts.append(f"(?i:{pattern[4:]})" if flagged else f"(?:{pattern})")
    return "|".join(parts)


def _ours(log: Path) -> dict[str, float | str]:
    """The command line in a process of its own: start-up, catalogue and verdict included."""
    started = time.perf_counter()
    command = [sys.executable, "-m", "trainguard.cli.diagnose", "--json", str(log)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    return {"seconds": seconds, "peak_mb": peak, "fault": json.loads(done.stdout)["fault"]}


def _ripgrep(log: Path, pattern: str) -> float | None:
    program = shutil.which("rg")
    if program is None:
        return None
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as patterns:
        patterns.write(pattern + "\n")
        patterns.flush()
        started = time.perf_counter()
        limits = ["--regex-size-limit", "1G", "--dfa-size-limit", "1G"]
        subprocess.run(
            [program, "-a", "-j1", "-c", *limits, "-f", patterns.name, str(log)],
            capture_output=True,
            check=True,
        )
        return time.perf_counter() - started


def _line_by_line(log: Path, pattern: str) -> float:
    """Megabytes a second of `re.search` on each line."""
    expression = re.compile(re.sub(r"\(\?P<\w+>", "(", pattern))
    with log.open("rb") as file:
        lines = file.read(_SAMPLE * MEGABYTE // 16).decode().splitlines()
    started = time.perf_counter()
    for line in lines:
        expression.search(line)
    return sum(map(len, lines)) / 1e6 / (time.perf_counter() - started)


def run(megabytes: int = 1024, seed: int = 7) -> dict[str, float | str | None]:
    """Measure, on one core. Megabytes are 10^6 bytes in rates; memory is in MiB."""
    catalogue = load_catalogue()
    pattern = alternation(catalogue)
    with tempfile.TemporaryDirectory() as folder:
        log, small = Path(folder, "train.log"), Path(folder, "small.log")
        write_log(log, seed, megabytes)
        write_log(small, seed, 10)
        size = log.stat().st_size / 1e6
        quick = min(_ours(small)["seconds"] for _ in range(3))
        ours = _ours(log)
        theirs = _ripgrep(log, re.sub(r"\(\?P<\w+>", "(", pattern))
        slow = _line_by_line(log, pattern)
    seconds = float(ours["seconds"])
    return {
        "rules": len(catalogue),
        "megabytes": round(size),
        "fault_found": ours["fault"],
        "trainguard_mb_per_s": round(size / seconds, 1),
        "ripgrep_mb_per_s": None if theirs is None else round(size / theirs, 1),
        "share_of_ripgrep": None if theirs is None else round(theirs / seconds, 2),
        "re_line_by_line_mb_per_s": round(slow, 2),
        "peak_memory_mb": round(float(ours["peak_mb"]), 1),
        "ten_megabytes_seconds": round(float(quick), 2),
    }


if __name__ == "__main__":
    print(json.dumps(run(int(sys.argv[1]) if len(sys.argv) > 1 else 1024), indent=2))
