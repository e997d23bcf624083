"""Where the texts of evidence lie: files beside a SQLite ledger, rows in a Postgres one."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

from trainguard.core.errors import LedgerUnavailableError


def encode(text: str) -> bytes:
    """Give the bytes whose hash is `Evidence.sha256`."""
    return text.encode("utf-8", "surrogatepass")


def decode(content: bytes, sha256: str) -> str | None:
    """Give the text back, or None where it is not what was stored."""
    if hashlib.sha256(content).hexdigest() != sha256:
        return None
    return content.decode("utf-8", "surrogatepass")


def folder(database: Path) -> Path:
    """Give the folder of a ledger's texts."""
    return database.with_name(f"{database.name}.evidence")


def write_files(database: Path, texts: Mapping[str, bytes]) -> None:
    """Write texts under their hashes, synced, each whole or not at all. Blocks; LedgerUnavailableError."""
    try:
        for sha256, content in texts.items():
            _write(_place(database, sha256), content)
    except OSError as error:
        raise LedgerUnavailableError(f"evidence can't be written beside {database}: {error}") from error


def read_files(database: Path, hashes: list[str]) -> dict[str, bytes]:
    """Read what is there. Blocks; a missing file is left out."""
    found = {}
    for sha256 in hashes:
        try:
            found[sha256] = _place(database, sha256).read_bytes()
        except FileNotFoundError:
            continue
        except OSError as error:
            raise LedgerUnavailableError(f"evidence can't be read beside {database}: {error}") from error
    return found


def _place(database: Path, sha256: str) -> Path:
    return folder(database) / sha256[:2] / f"{sha256}.txt"


def _write(place: Path, content: bytes) -> None:
    if place.exists() and place.stat().st_size == len(content):
        return
    place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=".writing-", dir=place.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(place)
    except OSError:
        Path(name).unlink(missing_ok=True)
        raise
    _sync_folder(place.parent)


def _sync_folder(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
