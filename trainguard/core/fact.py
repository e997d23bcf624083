"""The base of every value that is stored, sent or compared."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Fact(BaseModel):
    """Frozen, closed and JSON-serialisable. Times are seconds since the epoch (UTC), durations seconds."""

    # NaN losses must survive being stored: JSON has no number for them, so they travel as strings.
    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, ser_json_inf_nan="strings"
    )
