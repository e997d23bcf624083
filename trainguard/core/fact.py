"""The base of every value that is stored, sent or compared."""

from __future__ import annotations

import math
from typing import Annotated

from pydantic import BaseModel, ConfigDict, PlainSerializer


class Fact(BaseModel):
    """Frozen, closed and JSON-serialisable. Times are seconds since the epoch (UTC), durations seconds."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


def _stored(number: float) -> float | str:
    return number if math.isfinite(number) else str(number)


# JSON has no word for NaN and infinity, and Postgres refuses them: they are stored as strings, read as numbers.
AnyFloat = Annotated[float, PlainSerializer(_stored, return_type=float | str, when_used="json")]
"""A number that may be NaN or infinite, such as a loss."""
