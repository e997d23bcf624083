"""The fault catalogue and the owner's exit-code handlers, read once for all guards of a process."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from trainguard.core.diagnosis import Catalogue
from trainguard.core.errors import ConfigError
from trainguard.core.handlers import SECTION, FailureHandler
from trainguard.rules import load_catalogue
from trainguard.rules.store import user_folder
from trainguard.tasks.handler import load_handlers


def read_rules(files: Sequence[Path]) -> tuple[Catalogue, tuple[FailureHandler, ...]]:
    """Give the catalogue with the owner's own rules, and the handlers. Raises ConfigError that names the file."""
    return _read(tuple((file.resolve(), _changed_at(file)) for file in files))


def _changed_at(file: Path) -> int:
    try:
        return file.stat().st_mtime_ns
    except OSError as problem:
        raise ConfigError(str(file), f"can't be read: {problem.strerror}", "check the path") from problem


@lru_cache(maxsize=8)
def _read(files: tuple[tuple[Path, int], ...]) -> tuple[Catalogue, tuple[FailureHandler, ...]]:
    paths = [path for path, _ in files]
    handlers: list[FailureHandler] = []
    for path in paths:
        for handler in load_handlers(path):
            if any(handler.name == known.name for known in handlers):
                raise ConfigError(f"{path}: {SECTION}", f"two handlers are named {handler.name!r}")
            handlers.append(handler)
    return load_catalogue(paths, user_folder()), tuple(handlers)
