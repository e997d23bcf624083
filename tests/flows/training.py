"""A tiny training for tests: python training.py FOLDER STEPS [FAIL_AT] [--resume CHECKPOINT].

Prints a step every 20 ms, writes a checkpoint every 10, counts its starts, and fails once at FAIL_AT with
the words of a broken connection between ranks.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path


def main() -> None:
    words = sys.argv[1:]
    step = 0
    if "--resume" in words:
        at = words.index("--resume")
        step = json.loads(Path(words[at + 1]).read_text())["step"]
        del words[at : at + 2]
    folder, steps = Path(words[0]), int(words[1])
    fail_at = int(words[2]) if len(words) > 2 else 0
    checkpoints = folder / "checkpoints"
    checkpoints.mkdir(parents=True, exist_ok=True)
    with (folder / "starts").open("a") as starts:
        starts.write(f"{step}\n")
    while step < steps:
        step += 1
        time.sleep(0.02)
        print(f"step {step}/{steps} loss {2 + 1 / step:.4f}", flush=True)
        if step % 10 == 0:
            (checkpoints / f"step-{step}.json").write_text(json.dumps({"step": step}))
        if step == fail_at and not (folder / "failed").exists():
            (folder / "failed").touch()
            print(
                "torch.distributed.DistBackendError: NCCL error in: ProcessGroupNCCL.cpp:1970, remote process exited or there was a network error",
                flush=True,
            )
            print(
                "ncclRemoteError: A call failed possibly due to a network error or a remote process exiting prematurely.",
                flush=True,
            )
            sys.exit(1)


if __name__ == "__main__":
    main()
