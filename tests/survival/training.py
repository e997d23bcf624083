"""A training that does what files tell it: python training.py FOLDER [--resume CHECKPOINT].

Prints a step every 20 ms, writes a checkpoint every 10 and notes each start in `starts`. A file `fail` makes
it fail once, with the words of a broken connection between ranks; a file `finish` makes it succeed.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

LAST_WORDS = (
    "torch.distributed.DistBackendError: NCCL error in: ProcessGroupNCCL.cpp:1970, remote process exited or "
    "there was a network error\n"
    "ncclRemoteError: A call failed possibly due to a network error or a remote process exiting prematurely."
)


def main() -> None:
    """Train until told otherwise."""
    folder, step = Path(sys.argv[1]), 0
    if "--resume" in sys.argv:
        step = json.loads(Path(sys.argv[sys.argv.index("--resume") + 1]).read_text())["step"]
    checkpoints = folder / "checkpoints"
    checkpoints.mkdir(parents=True, exist_ok=True)
    with (folder / "starts").open("a") as starts:
        starts.write(f"{step}\n")
    while not (folder / "finish").exists():
        step += 1
        time.sleep(0.02)
        print(f"step {step}/100000 loss {2 + 1 / step:.4f}", flush=True)
        if step % 10 == 0:
            (checkpoints / f"step-{step}.json").write_text(json.dumps({"step": step}))
        if (folder / "fail").exists() and step >= 30:
            (folder / "fail").rename(folder / "failed")
            print(LAST_WORDS, flush=True)
            sys.exit(1)


if __name__ == "__main__":
    main()
