"""The one compact line of every check: `ts status attempt step gpu mem fix run`."""

from __future__ import annotations

from trainguard.core.observation import Progress, Utilisation


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
    raise NotImplementedError
