"""Workers that look often, so that tests are short."""

from __future__ import annotations

import pytest

from tests.worker.pool import Pool


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "STARTS_A_SECOND": "50",
        "WATCH_SECONDS": "0.3",
        "ADOPT_SECONDS": "0.5",
        "SILENT_SECONDS": "2",
        "DRAIN_SECONDS": "20",
    }.items():
        monkeypatch.setenv(f"TRAINGUARD_WORKER_{name}", value)


@pytest.fixture
async def pool(prefect_api: str, ledger_url: str) -> Pool:
    del prefect_api, ledger_url
    return await Pool().create()
