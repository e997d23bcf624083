"""The simulated cluster holds the contract too: what is measured on it is worth as much as that."""

from __future__ import annotations

import pytest

from tests.schedulers.simulated_lab import SimulatedLab
from trainguard.testing.scheduler_contract import SchedulerContract


class TestSimulated(SchedulerContract):
    @pytest.fixture
    def lab(self) -> SimulatedLab:
        return SimulatedLab()
