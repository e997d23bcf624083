"""Sizes as people write them."""

from __future__ import annotations

import re

from trainguard.core.errors import ConfigError

_UNITS = {"": 1, "k": 1024, "m": 1024**2, "g": 1024**3, "t": 1024**4}


def parse_size(text: str, field: str = "memory") -> int:
    """Read `512M`, `64G`, `64GiB` or plain bytes, in powers of 1,024. Raises ConfigError."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?)(?:i?b)?\s*", text, re.IGNORECASE)
    if match is None:
        raise ConfigError(field, f"{text!r} is no size", "write it like 512M or 64G")
    size = float(match[1]) * _UNITS[match[2].lower()]
    if size >= 2**63:
        raise ConfigError(field, f"{text[:40]!r} is more than any machine has", "write it like 512M or 64G")
    return int(size)


def format_size(size: int | None) -> str:
    """Write a size for people; `-` for an unknown one."""
    if size is None:
        return "-"
    value = float(size)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"
