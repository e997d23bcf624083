"""Loading blocks by their slugs, `type/name`."""

from __future__ import annotations

from prefect.blocks.core import Block
from prefect.exceptions import ObjectNotFound

from trainguard.core.errors import ConfigError

WHERE = "in Prefect's UI under Blocks"


async def find_block(field: str, slug: str) -> Block | None:
    """Load a block; None where there is none. Raises ConfigError, naming the field, where it can't be used."""
    if "/" not in slug:
        return None
    try:
        return await Block.aload(slug)
    except (
        ValueError,
        RuntimeError,
        KeyError,
    ) as problem:  # Prefect's words for none, outdated, and unknown type
        if isinstance(problem.__cause__, ObjectNotFound):
            return None
        why = f"the block {slug!r} can't be loaded: {problem}"
        raise ConfigError(field, why, f"mend it {WHERE}, or install what it needs") from problem


async def load_block(field: str, slug: str) -> Block:
    """Load a block. Raises ConfigError where there is none, or it can't be used."""
    block = await find_block(field, slug)
    if block is None:
        raise ConfigError(field, f"there is no block {slug!r}", f"make it {WHERE}")
    return block
