"""Every test runs against a Prefect server of its own; nothing outside the temporary folders is touched."""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.register_assert_rewrite(
    "trainguard.testing.contract_actions",
    "trainguard.testing.contract_logs",
    "trainguard.testing.contract_observe",
)

from trainguard.cli.prefect_server import free_port, prefect_server, server_environment  # noqa: E402 - after the rewrite

# A shell ignores SIGINT for what it runs in the background, and Prefect's workers stop by nothing else.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Prefect reads its settings when it is first imported: before any fixture runs.
_HOME = Path(tempfile.mkdtemp(prefix="trainguard-tests-"))
_PORT = free_port()
os.environ.update(server_environment(_HOME / "prefect", _PORT))
os.environ["TRAINGUARD_LEDGER_URL"] = f"sqlite:///{_HOME / 'ledger.db'}"
os.environ["XDG_STATE_HOME"] = str(_HOME / "state")
os.environ["XDG_CACHE_HOME"] = str(_HOME / "cache")
os.environ["XDG_CONFIG_HOME"] = str(_HOME / "config")  # where chromium keeps what it tells of crashes


@pytest.fixture(scope="session")
def prefect_api() -> Iterator[str]:
    """A real Prefect server, started once for all tests that need one."""
    with prefect_server(_HOME / "prefect", _PORT) as environment:
        yield environment["PREFECT_API_URL"]


@pytest.fixture
def ledger_url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A ledger of this test alone."""
    url = f"sqlite:///{tmp_path / 'ledger.db'}"
    monkeypatch.setenv("TRAINGUARD_LEDGER_URL", url)
    return url
