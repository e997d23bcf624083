"""How fast the whole catalogue reads 1 GB of training log, beside ripgrep and `re` line by line.

python -m benchmarks.scan [megabytes]
"""

from __future__ import annotations

import json
import os
import random
import re
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

_GROUP_NAME = re.compile(r"\(\?P<\w+>")

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


def _timed(command: list[str], output: Path, cache: Path | None = None) -> dict[str, float]:
    """Wall and processor seconds, and peak memory in MiB, of a command."""
    started = time.perf_counter()
    environment = os.environ | ({"XDG_CACHE_HOME": str(cache)} if cache else {})
    with output.open("wb") as out:
        child = subprocess.Popen(command, stdout=out, env=environment)
        _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise RuntimeError(f"{command[0]} exited {child.returncode}")
    wall = time.perf_counter() - started
    return {"wall": wall, "cpu": usage.ru_utime + usage.ru_stime, "peak": usage.ru_maxrss / 1024}


def _ours(log: Path) -> dict[str, float | str]:
    """The command line in a process of its own: start-up, catalogue and verdict included."""
    output = log.with_suffix(".json")
    command = [sys.executable, "-m", "trainguard.cli.diagnose", "--json", str(log)]
    used = _timed(command, output, log.parent / "cache")
    return {**used, "fault": json.loads(output.read_text())["fault"]}


def _ripgrep(log: Path, pattern: str) -> dict[str, float] | None:
    program = shutil.which("rg")
    if program is None:
        return None
    patterns = log.with_suffix(".patterns")
    patterns.write_text(pattern + "\n")
    limits = ["--regex-size-limit", "1G", "--dfa-size-limit", "1G"]
    return _timed(
        [program, "-a", "-j1", "-c", *limits, "-f", str(patterns), str(log)], log.with_suffix(".count")
    )


def _line_by_line(log: Path, pattern: str) -> float:
    """Megabytes a second of `re.search` on each line."""
    expression = re.compile(pattern)
    with log.open("rb") as file:
        lines = file.read(_SAMPLE * MEGABYTE // 16).decode().splitlines()
    started = time.perf_counter()
    for line in lines:
        expression.search(line)
    return sum(map(len, lines)) / 1e6 / (time.perf_counter() - started)


def run(megabytes: int = 1024, seed: int = 7) -> dict[str, float | str | None]:
    """Measure, on one core. Rates are 10^6 bytes a second of processor time; memory is in MiB.

    Processor time, because the machine may be shared; wall times are given beside it. Of the 10 MB log
    the first look of all compiles the catalogue and keeps it; the best of three later ones is what
    somebody waits for every day. The large log is read three times, and the best counts.
    """
    catalogue = load_catalogue()
    pattern = _GROUP_NAME.sub("(", alternation(catalogue))
    with tempfile.TemporaryDirectory() as folder:
        log, small = Path(folder, "train.log"), Path(folder, "small.log")
        for path, length in ((log, megabytes), (small, 10)):
            # in a process of its own: a child's peak begins with its parent's
            subprocess.run(
                [sys.executable, "-m", "benchmarks.scan", "--write", path, str(seed), str(length)], check=True
            )
        first = _ours(small)
        quick = min((_ours(small) for _ in range(3)), key=lambda used: float(used["cpu"]))
        ours = min((_ours(log) for _ in range(3)), key=lambda used: float(used["cpu"]))
        theirs = _ripgrep(log, pattern)
        slow = _line_by_line(log, pattern)
        size = log.stat().st_size / 1e6
    cpu = float(ours["cpu"])
    return {
        "rules": len(catalogue),
        "load_average": round(os.getloadavg()[0], 1),
        "megabytes": round(size),
        "fault_found": ours["fault"],
        "trainguard_mb_per_s": round(size / cpu, 1),
        "trainguard_wall_s": round(float(ours["wall"]), 2),
        "ripgrep_mb_per_s": None if theirs is None else round(size / theirs["cpu"], 1),
        "ripgrep_wall_s": None if theirs is None else round(theirs["wall"], 2),
        "share_of_ripgrep": None if theirs is None else round(theirs["cpu"] / cpu, 2),
        "re_line_by_line_mb_per_s": round(slow, 2),
        "peak_memory_mb": round(float(ours["peak"]), 1),
        "ten_megabytes_first_cpu_s": round(float(first["cpu"]), 2),
        "ten_megabytes_cpu_s": round(float(quick["cpu"]), 2),
        "ten_megabytes_wall_s": round(float(quick["wall"]), 2),
    }


def main(arguments: list[str]) -> None:
    """Write a log, or measure."""
    if arguments[:1] == ["--write"]:
        write_log(Path(arguments[1]), int(arguments[2]), int(arguments[3]))
    else:
        print(json.dumps(run(int(arguments[0]) if arguments else 1024), indent=2))


if __name__ == "__main__":
    main(sys.argv[1:])
