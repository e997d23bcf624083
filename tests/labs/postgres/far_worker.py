"""`prefect worker start` as on a machine of its own: python -m tests.labs.postgres.far_worker HOST FOLDER worker start ...

Told by the ledger's record alone, nobody on another machine can see whether its process lives: that takes the
lease to run out, which is short here. `FOLDER/HOST.serving` says how many flow runs it serves; a file
`hold-collect` in a job's folder holds up the collecting of evidence.
"""

from __future__ import annotations

import sys
import threading
import time
from pathlib import Path
from typing import Any

from prefect.cli import app

from tests.survival.guards import hold_collecting, shorten
from trainguard.tasks import context

LEASE = {"lease_seconds": 8.0, "renew_seconds": 2.0}


def tell_how_many(place: Path) -> None:
    """Keep a file that holds the number of flow runs served."""
    from trainguard.worker.host import GuardHost

    opening = GuardHost.open

    async def telling(self: GuardHost) -> None:
        await opening(self)
        threading.Thread(target=_tell, args=(self, place), daemon=True).start()

    GuardHost.open = telling  # type: ignore[method-assign]


def _tell(host: Any, place: Path) -> None:
    while True:
        fresh = place.with_suffix(".new")
        fresh.write_text(str(len(host.ids())))
        fresh.replace(place)
        time.sleep(0.2)


def main() -> None:
    host, folder = sys.argv[1], Path(sys.argv[2])
    del sys.argv[1:3]
    context.gethostname = lambda: host  # type: ignore[attr-defined]
    shorten(LEASE)
    hold_collecting()
    tell_how_many(folder / f"{host}.serving")
    app()


if __name__ == "__main__":
    main()
