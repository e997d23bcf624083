"""A folder of the user's own that keeps what took long to work out, for the next start.

What lies there is only ever a copy of what could be worked out again. It is believed no further than
the folder can be: where somebody else owns it or may write into it, it counts as empty.
"""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path

_DIGEST = 32
_LARGEST = 64 << 20


class OwnFolder:
    """Files with a checksum in front, readable and writable by nobody but the user."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def get(self, name: str) -> bytes | None:
        """What was put last; None where it is missing, torn, or not the user's own."""
        try:
            if not _own(self._folder.stat()):
                return None
            with os.fdopen(os.open(self._folder / name, os.O_RDONLY | os.O_NOFOLLOW), "rb") as file:
                facts = os.fstat(file.fileno())
                if not (_own(facts) and stat.S_ISREG(facts.st_mode) and facts.st_size <= _LARGEST):
                    return None
                kept = file.read()
        except OSError:
            return None
        return kept[_DIGEST:] if kept[:_DIGEST] == _digest(kept[_DIGEST:]) else None

    def put(self, name: str, content: bytes) -> None:
        """Keep it, whole or not at all. Where that can't be done, the next start is as slow as this one."""
        half = self._folder / f"{name}.{os.getpid()}"
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            half.unlink(missing_ok=True)
            with os.fdopen(os.open(half, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                file.write(_digest(content) + content)
            half.replace(self._folder / name)
        except OSError:
            return


def user_folder() -> OwnFolder:
    """Where this user's processes keep what they found out about the catalogue."""
    root = os.environ.get("XDG_CACHE_HOME")
    return OwnFolder((Path(root) if root else Path.home() / ".cache") / "trainguard")


def _own(facts: os.stat_result) -> bool:
    others_write = stat.S_IWGRP | stat.S_IWOTH
    return facts.st_uid == os.getuid() and not facts.st_mode & others_write


def _digest(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=_DIGEST).digest()
