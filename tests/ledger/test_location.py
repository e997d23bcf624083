"""What may be written as a ledger's address."""

from __future__ import annotations

from pathlib import Path

import pytest

from trainguard.core.errors import ConfigError
from trainguard.ledger.location import locate


def test_the_default_is_in_the_users_data_folder() -> None:
    assert locate(None, {"XDG_DATA_HOME": "/data"}).path == Path("/data/trainguard/ledger.db")


def test_a_relative_data_home_is_ignored() -> None:
    home = Path.home() / ".local/share/trainguard/ledger.db"
    assert locate(None, {"XDG_DATA_HOME": "data"}).path == home


def test_the_environment_names_the_ledger_and_an_argument_wins() -> None:
    environ = {"TRAINGUARD_LEDGER_URL": "sqlite:////a/one.db"}
    assert locate(None, environ).path == Path("/a/one.db")
    assert locate("sqlite:////a/two.db", environ).path == Path("/a/two.db")


@pytest.mark.parametrize(
    ("written", "opened"),
    [
        ("sqlite:////a/l.db", "sqlite+aiosqlite:////a/l.db"),
        ("sqlite+aiosqlite:////a/l.db", "sqlite+aiosqlite:////a/l.db"),
        ("postgresql://u:p@h/d", "postgresql+asyncpg://u:p@h/d"),
        ("postgres://u@h:5433/d", "postgresql+asyncpg://u@h:5433/d"),
        ("postgresql+asyncpg://u@h/d", "postgresql+asyncpg://u@h/d"),
        ("postgresql://u@h/d?sslmode=require", "postgresql+asyncpg://u@h/d?ssl=require"),
    ],
)
def test_the_driver_is_added(written: str, opened: str) -> None:
    assert locate(written, {}).url.render_as_string(hide_password=False) == opened


def test_home_is_understood() -> None:
    assert locate("sqlite:///~/l.db", {}).path == Path.home() / "l.db"


@pytest.mark.parametrize(
    "written",
    [
        "ledger.db",
        "mysql://u@h/d",
        "sqlite://",
        "sqlite:///:memory:",
        "postgresql://u@h",
        "sqlite:///file:x?mode=memory",
        "://",
    ],
)
def test_what_is_no_address_is_refused_with_a_remedy(written: str) -> None:
    with pytest.raises(ConfigError) as refused:
        locate(written, {})
    assert refused.value.field == "TRAINGUARD_LEDGER_URL"
    assert refused.value.remedy


def test_a_password_is_never_shown() -> None:
    assert "secret" not in str(locate("postgresql://u:secret@h/d", {}))
