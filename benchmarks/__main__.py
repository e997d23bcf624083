"""`make bench` runs every measurement, `make bench BENCH=name` one.

Prints a table, merges the results into benchmarks/results.json and writes docs/benchmarks.md from it.
With both databases on Postgres (see benchmarks/lab.py) the result stands beside the one on SQLite.
"""

from __future__ import annotations

import json
import sys
import time
from importlib import import_module
from pathlib import Path
from typing import Any

from benchmarks.lab import on_postgres
from benchmarks.machine import facts
from benchmarks.report import NAMES, ON_POSTGRES, page, table

HERE = Path(__file__).parent
RESULTS = HERE / "results.json"
PAGE = HERE.parent / "docs" / "benchmarks.md"


def main() -> int:
    """Run what is asked for, print it and write it down."""
    wanted = sys.argv[1:] or list(NAMES)
    unknown = [name for name in wanted if name not in NAMES]
    if unknown:
        print(f"no benchmark {unknown[0]!r}; there are: {', '.join(NAMES)}", file=sys.stderr)
        return 2
    for name in wanted:
        began = time.monotonic()
        before = facts()
        found = import_module(f"benchmarks.{name}").run()
        result = {**found, "on": {**before, "took_s": round(time.monotonic() - began)}}
        kept_as = f"{name}{ON_POSTGRES}" if on_postgres() else name
        known = _written(kept_as, result)
        print(table(kept_as, result), flush=True)
    if not wanted:
        return 0
    PAGE.write_text(page(known))
    return 0


def _written(name: str, result: dict[str, Any]) -> dict[str, Any]:
    """Merge one result in; a measurement that could not run here replaces none that could."""
    known: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    if "skipped" not in result or name not in known:
        known[name] = result
    RESULTS.write_text(json.dumps(known, indent=1) + "\n")
    return known


if __name__ == "__main__":
    sys.exit(main())
