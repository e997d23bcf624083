"""Takes a ledger away from its users: python vandal.py HOW FILE, until a line comes in on standard input."""

from __future__ import annotations

import sqlite3
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def locked(ledger: Path) -> Iterator[None]:
    """Hold the write lock, as a copy or a stopped process would."""
    with sqlite3.connect(ledger, isolation_level=None, timeout=30) as other:
        other.execute("BEGIN EXCLUSIVE")
        yield
        other.execute("ROLLBACK")
    other.close()


@contextmanager
def full(ledger: Path) -> Iterator[None]:
    """Leave no room on the file system that the ledger lies on."""
    ballast = ledger.with_name("ballast")
    with ballast.open("wb", buffering=0) as file:
        block = 65536
        while block:
            try:
                file.write(b"\0" * block)
            except OSError:
                block //= 2
    yield
    ballast.unlink()


@contextmanager
def gone(ledger: Path) -> Iterator[None]:
    """Move the ledger away, its side files with it."""
    away = ledger.with_name("away")
    away.mkdir()
    for part in ledger.parent.glob(f"{ledger.name}*"):
        if part.is_file():
            part.rename(away / part.name)
    yield
    for part in away.iterdir():
        part.rename(ledger.with_name(part.name))
    away.rmdir()


def main() -> None:
    """Take it away, say so, wait, give it back."""
    how = {"locked": locked, "full": full, "gone": gone}[sys.argv[1]]
    with how(Path(sys.argv[2])):
        print("taken", flush=True)
        sys.stdin.readline()


if __name__ == "__main__":
    main()
