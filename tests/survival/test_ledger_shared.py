"""One ledger file opened often, in one process and in others: no opening may harm another."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from trainguard.ledger.ledger import Ledger

OPEN_AND_CLOSE = (
    "import asyncio, sys\n"
    "from trainguard.ledger.ledger import Ledger\n"
    "async def main():\n"
    "    async with await Ledger.open(sys.argv[1]) as ledger:\n"
    "        await ledger.jobs()\n"
    "asyncio.run(main())\n"
)


async def test_opening_a_ledger_again_does_not_expose_it_to_other_processes(tmp_path: Path) -> None:
    """POSIX drops all locks of a process on a file when it closes any handle on that file."""
    url = f"sqlite:///{tmp_path / 'ledger.db'}"
    async with await Ledger.open(url) as first:
        lease = await first.acquire_lease("job", "guard", 1.0, 60.0)
        async with await Ledger.open(url):
            subprocess.run([sys.executable, "-c", OPEN_AND_CLOSE, url], check=True)
            assert (tmp_path / "ledger.db-wal").exists(), "another process took our write-ahead log away"
            await first.save_health(lease, "job", "fine")
    async with await Ledger.open(url) as later:
        assert await later.health("job") == "fine"
