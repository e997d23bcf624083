"""The databases' own errors, made ours.

SQLite's result codes: https://www.sqlite.org/rescode.html
Postgres' SQLSTATE codes: https://www.postgresql.org/docs/current/errcodes-appendix.html
"""

from __future__ import annotations

import sqlite3

from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from trainguard.core.errors import LedgerDamagedError, LedgerError, LedgerUnavailableError


class LedgerBusyError(LedgerUnavailableError):
    """Locked by another for now: worth trying again."""


_SQLITE: dict[int, type[LedgerError]] = {
    sqlite3.SQLITE_BUSY: LedgerBusyError,
    sqlite3.SQLITE_LOCKED: LedgerBusyError,
    sqlite3.SQLITE_CORRUPT: LedgerDamagedError,
    sqlite3.SQLITE_NOTADB: LedgerDamagedError,
    sqlite3.SQLITE_FULL: LedgerUnavailableError,
    sqlite3.SQLITE_IOERR: LedgerUnavailableError,
    sqlite3.SQLITE_CANTOPEN: LedgerUnavailableError,
    sqlite3.SQLITE_READONLY: LedgerUnavailableError,
    sqlite3.SQLITE_PERM: LedgerUnavailableError,
    sqlite3.SQLITE_AUTH: LedgerUnavailableError,
    sqlite3.SQLITE_NOMEM: LedgerUnavailableError,
    sqlite3.SQLITE_PROTOCOL: LedgerBusyError,
}
_POSTGRES: dict[str, type[LedgerError]] = {
    "40001": LedgerBusyError,  # serialization_failure
    "40P01": LedgerBusyError,  # deadlock_detected
    "55P03": LedgerBusyError,  # lock_not_available
    "53300": LedgerBusyError,  # too_many_connections
    "XX001": LedgerDamagedError,  # data_corrupted
    "XX002": LedgerDamagedError,  # index_corrupted
}
_POSTGRES_CLASSES = frozenset({"08", "28", "3D", "53", "57", "58"})
"""Connection, authorisation, unknown database, resources, operator intervention, system error."""


def translate(error: Exception, where: str) -> LedgerError:
    """Name what a database's error means for the guard. Retried are LedgerBusyErrors alone."""
    origin = error.orig if isinstance(error, DBAPIError) else error
    said = f"{where}: {origin}"
    if isinstance(error, IntegrityError):
        return LedgerError(f"{said} (a row that this one needs is missing, or it exists already)")
    if isinstance(error, PoolTimeoutError):
        return LedgerUnavailableError(f"{where}: all connections are busy")
    if isinstance(error, OSError):
        return LedgerUnavailableError(said)
    if isinstance(error, DBAPIError) and error.connection_invalidated:
        return LedgerUnavailableError(said)
    return _kind(origin)(said)


def _kind(origin: object) -> type[LedgerError]:
    code = getattr(origin, "sqlite_errorcode", None)
    if isinstance(code, int):
        return _SQLITE.get(code & 0xFF, LedgerError)
    state = getattr(origin, "sqlstate", None) or getattr(origin, "pgcode", None)
    if isinstance(state, str):
        named = LedgerUnavailableError if state[:2] in _POSTGRES_CLASSES else LedgerError
        return _POSTGRES.get(state, named)
    # The driver lost the server in the middle of a word, or sqlite3 raised without a code.
    return LedgerUnavailableError
