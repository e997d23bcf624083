"""The suite that every scheduler adapter passes unchanged; its numbers are those of `schedulers/base.py`.

    class TestLocal(SchedulerContract):
        @pytest.fixture
        async def lab(self, tmp_path: Path) -> AsyncIterator[Lab]:
            ...

Write a `Lab` (see `scheduler_lab`), inherit, and every test here runs against the adapter. A lab on a real
server sets `patience`, `settle` and `tick` to what that server needs; what it can't do it names in `lacks`.
"""

from __future__ import annotations

from trainguard.testing.contract_actions import ActionContract
from trainguard.testing.contract_logs import LogContract
from trainguard.testing.contract_observe import ObserveContract


class SchedulerContract(ObserveContract, LogContract, ActionContract):
    """All of it. The subclass gives the fixture `lab`."""
