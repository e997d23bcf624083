"""A tiny training for tests: python locked_training.py FOLDER STEPS FAIL_AT [--resume CHECKPOINT].

Exits with 42 at FAIL_AT for as long as there is a file FOLDER/lock.
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
    folder, steps, fail_at = Path(words[0]), int(words[1]), int(words[2])
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
        if step == fail_at and (folder / "lock").exists():
            sys.exit(42)


if __name__ == "__main__":
    main()
