"""The block that stands for this machine."""

from __future__ import annotations

import socket
from pathlib import Path

from trainguard.blocks.local_host import LocalHost
from trainguard.schedulers.local import LocalScheduler


async def test_it_names_the_machine_and_gives_its_scheduler() -> None:
    scheduler = LocalHost().make_scheduler()
    assert isinstance(scheduler, LocalScheduler)
    assert scheduler.cluster == LocalHost().cluster_name() == socket.gethostname()
    await scheduler.close()


async def test_its_settings_reach_the_scheduler(tmp_path: Path) -> None:
    (tmp_path / "job").mkdir()
    (tmp_path / "job" / "state.json").write_text("{}")
    block = LocalHost(name="box", roots=[tmp_path])
    scheduler = block.make_scheduler()
    found = await scheduler.discover("*")
    assert [(ref.cluster, ref.id) for ref in found] == [("box", str(tmp_path / "job"))]
    await scheduler.close()
