"""The one compact line of every check: `ts status attempt step gpu mem fix run`."""

from __future__ import annotations

from datetime import UTC, datetime

from trainguard.core.observation import Progress, Utilisation

UNKNOWN = "-"
_WIDTHS = (20, 18, 4, 17, 5, 7, 16)
_KEPT = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,:;+=%/_-~@#?& ")
_FIX = 40
_RUN = 120

HEADER = "  ".join(
    word.ljust(width)
    for word, width in zip(
        ("ts", "status", "att", "step", "gpu", "mem", "fix", "run"), (*_WIDTHS, 0), strict=True
    )
)
"""Names over the columns, for a terminal."""


def status_line(
    *,
    at: float,
    status: str,
    attempt: int | None = None,
    progress: Progress | None = None,
    utilisation: Utilisation | None = None,
    fix: str = "",
    run: str = "",
) -> str:
    """Give the line for a check at `at`: aligned values, `-` for what is unknown.

    Text that comes from a job (`fix`, `run`) is reduced to plain characters: no control codes, no markup.
    """
    values = (
        datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        _plain(status, _FIX),
        UNKNOWN if attempt is None else str(attempt),
        UNKNOWN if progress is None else str(progress),
        _gpu(utilisation),
        _memory(utilisation),
        _plain(fix, _FIX),
    )
    columns = [value.ljust(width) for value, width in zip(values, _WIDTHS, strict=True)]
    return "  ".join((*columns, _plain(run, _RUN)))


def _gpu(utilisation: Utilisation | None) -> str:
    """Mean use of the job's GPUs."""
    return _percent(utilisation.gpu_percent if utilisation else None)


def _memory(utilisation: Utilisation | None) -> str:
    """Mean GPU memory where it can be read, else what the processes hold."""
    if utilisation is None or (not utilisation.gpu_memory_percent and utilisation.memory_bytes is None):
        return UNKNOWN
    if utilisation.gpu_memory_percent or utilisation.memory_bytes is None:
        return _percent(utilisation.gpu_memory_percent)
    mebibytes = utilisation.memory_bytes / 2**20
    return f"{mebibytes:.0f}Mi" if mebibytes < 1024 else f"{mebibytes / 1024:.1f}Gi"


def _percent(values: tuple[float, ...] | None) -> str:
    return f"{sum(values) / len(values):.0f}%" if values else UNKNOWN


def _plain(text: str, limit: int) -> str:
    kept = "".join(character if character in _KEPT else " " for character in text[:limit])
    return "_".join(kept.split()) or UNKNOWN
