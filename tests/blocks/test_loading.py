"""Blocks by their slugs: those that are not there, and those that can't be used."""

from __future__ import annotations

from uuid import uuid4

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import BlockDocumentUpdate

from trainguard.blocks.clusters import THIS_MACHINE, as_block
from trainguard.blocks.loading import load_block
from trainguard.blocks.local_host import LocalHost
from trainguard.core.errors import ConfigError

pytestmark = pytest.mark.usefixtures("prefect_api")


async def _spoilt(name: str) -> str:
    """A block as an older or newer version may have left it."""
    saved = await LocalHost().save(name, overwrite=True)
    async with get_client() as client:
        await client.update_block_document(
            saved, BlockDocumentUpdate(data={"answer_seconds": "soon"}, merge_existing_data=True)
        )
    return f"{LocalHost.get_block_type_slug()}/{name}"


@pytest.mark.parametrize("slug", ["nope", "slurm-cluster/nope", "no-type/nope"])
async def test_a_block_that_is_not_there_is_named_with_where_to_make_it(slug: str) -> None:
    with pytest.raises(ConfigError, match=f"notifiers: there is no block '{slug}'") as raised:
        await load_block("notifiers", slug)
    assert "under Blocks" in raised.value.remedy


async def test_a_block_that_can_not_be_used_is_not_said_to_be_missing() -> None:
    slug = await _spoilt(f"spoilt-{uuid4().hex[:8]}")
    with pytest.raises(ConfigError, match="can't be loaded") as raised:
        await as_block(slug)
    assert slug in str(raised.value) and "mend it" in raised.value.remedy


async def test_this_machine_needs_no_block_but_one_that_is_there_counts() -> None:
    async with get_client() as client:
        for document in await client.read_block_documents_by_type(LocalHost.get_block_type_slug()):
            if document.name == "this-machine":
                await client.delete_block_document(document.id)
    assert await as_block(THIS_MACHINE) == LocalHost()
    await LocalHost(name="other").save("this-machine")
    found = await as_block(THIS_MACHINE)
    assert isinstance(found, LocalHost) and found.name == "other"
    await _spoilt("this-machine")
    with pytest.raises(ConfigError, match="can't be loaded"):
        await as_block(THIS_MACHINE)
    await LocalHost().save("this-machine", overwrite=True)
