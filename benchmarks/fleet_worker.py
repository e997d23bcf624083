"""`prefect worker start` in a process that knows the simulated fleet, and says what the fleet was asked.

python -m benchmarks.fleet_worker COUNTS_FILE worker start --pool guards ...
"""

from __future__ import annotations

import json
import sys
import threading
import time
from pathlib import Path

from prefect.cli import app

from trainguard.testing.simulated import CLUSTERS
from trainguard.testing.simulated_fleet import SimulatedFleet
from trainguard.worker import GuardWorker

EVERY = 1.0


def _count(file: Path) -> None:
    while True:
        counts = {
            name: {"queries": cluster.queries, "log_reads": cluster.log_reads}
            for name, cluster in CLUSTERS.copy().items()
        }
        fresh = file.with_suffix(".new")
        fresh.write_text(json.dumps({"at": time.time(), "clusters": counts}))
        fresh.replace(file)
        time.sleep(EVERY)


def main() -> None:
    assert GuardWorker.type == "trainguard", "starting a worker needs its class"
    assert SimulatedFleet.get_block_type_slug() == "simulated-fleet", "loading a block needs its class"
    threading.Thread(target=_count, args=(Path(sys.argv.pop(1)),), daemon=True).start()
    app()


if __name__ == "__main__":
    main()
