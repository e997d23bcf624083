"""Where the ledger is: from what the owner wrote to an address that can be opened."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

from trainguard.core.errors import ConfigError

VARIABLE = "TRAINGUARD_LEDGER_URL"
_DRIVERS = {
    "sqlite": "sqlite+aiosqlite",
    "sqlite+aiosqlite": "sqlite+aiosqlite",
    "postgres": "postgresql+asyncpg",
    "postgresql": "postgresql+asyncpg",
    "postgresql+asyncpg": "postgresql+asyncpg",
}


@dataclass(frozen=True)
class Location:
    """An address with its driver. `path` is the database file, None for a server."""

    url: URL
    path: Path | None

    def __str__(self) -> str:
        """Give what may be shown: the path, or the address without its password."""
        return str(self.path) if self.path else self.url.render_as_string(hide_password=True)


def locate(url: str | None, environ: Mapping[str, str] = os.environ) -> Location:
    """Resolve an address, the environment's or the default. Raises ConfigError, naming what is wrong."""
    text = url or environ.get(VARIABLE, "")
    if not text:
        return _file(str(_data_home(environ) / "trainguard" / "ledger.db"))
    try:
        parsed = make_url(text)
        driver = _DRIVERS[parsed.drivername]
    except (ArgumentError, KeyError, ValueError) as error:
        raise ConfigError(
            VARIABLE,
            "is not an address of a ledger",
            "write sqlite:////absolute/path/ledger.db or postgresql://user@host/database",
        ) from error
    if driver.startswith("sqlite"):
        return _file(parsed.database or "")
    return _server(parsed.set(drivername=driver))


def _data_home(environ: Mapping[str, str]) -> Path:
    """Base directory specification: a relative XDG_DATA_HOME is to be ignored."""
    declared = Path(environ.get("XDG_DATA_HOME", ""))
    if declared.is_absolute():
        return declared
    try:
        return Path.home() / ".local" / "share"
    except RuntimeError as error:
        raise ConfigError(VARIABLE, "is not set and there is no home directory", "set it") from error


def _file(database: str) -> Location:
    if database in {"", ":memory:"} or database.startswith("file:"):
        raise ConfigError(
            VARIABLE, "must name a file: a ledger in memory forgets", "write sqlite:////absolute/path"
        )
    path = Path(database).expanduser().absolute()
    return Location(URL.create("sqlite+aiosqlite", database=str(path)), path)


def _server(url: URL) -> Location:
    if importlib.util.find_spec("asyncpg") is None:
        raise ConfigError(
            VARIABLE, "names Postgres, and asyncpg is not installed", "pip install 'trainguard[postgres]'"
        )
    if not url.database:
        raise ConfigError(VARIABLE, "names no database", "write postgresql://user@host/database")
    query = dict(url.query)
    if "sslmode" in query:  # libpq's word; asyncpg takes the same values as `ssl`
        query["ssl"] = query.pop("sslmode")
    return Location(url.set(query=query), None)
