"""`make bench` runs every measurement, `make bench BENCH=name` one; results go to benchmarks/results.json."""

from __future__ import annotations

import json
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
NAMES = ("scan", "slurm_poll", "kubernetes_watch")
"""The last two need their labs running (tests/labs/<lab>/up.sh) and its facts in the environment."""


def main() -> int:
    """Run what is asked for, print it and write it down."""
    wanted = sys.argv[1:] or list(NAMES)
    unknown = [name for name in wanted if name not in NAMES]
    if unknown:
        print(f"no benchmark {unknown[0]!r}; there are: {', '.join(NAMES)}", file=sys.stderr)
        return 2
    results = HERE / "results.json"
    known: dict[str, Any] = json.loads(results.read_text()) if results.exists() else {}
    for name in wanted:
        known[name] = import_module(f"benchmarks.{name}").run()
        print(json.dumps({name: known[name]}, indent=2), flush=True)
    results.write_text(json.dumps(known, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
