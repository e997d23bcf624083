"""The local scheduler holds the contract, on real supervisors and real processes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.schedulers.local_lab import LocalLab
from trainguard.testing.scheduler_contract import SchedulerContract


class TestLocal(SchedulerContract):
    @pytest.fixture
    async def lab(self, tmp_path: Path) -> AsyncIterator[LocalLab]:
        lab = LocalLab(tmp_path)
        yield lab
        await lab.close()
