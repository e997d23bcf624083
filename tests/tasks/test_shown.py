"""What is shown in Prefect holds no secret, whoever said it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast
from uuid import UUID, uuid4

import pytest
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterId
from prefect.states import Running

from trainguard.core.errors import UnreachableError
from trainguard.flows.guard import _with_remedy
from trainguard.tasks.context import GuardContext
from trainguard.tasks.prefect_view import show_page, show_status

SECRET = "ghp_x7Qabcdefghijklmnopqrstuvwxyz0123456789"
pytestmark = pytest.mark.usefixtures("prefect_api")


@flow
def shown() -> None:
    """A run to show things on."""


async def test_the_message_of_a_status_is_masked() -> None:
    async with get_client() as client:
        run = await client.create_flow_run(cast(Any, shown), state=Running())
        context = cast(GuardContext, SimpleNamespace(flow_run_id=str(run.id), shown_status=""))
        await show_status(context, "AwaitingApproval", f"the server said {SECRET}")
        state = (await client.read_flow_run(run.id)).state
    assert state is not None
    assert (state.name, state.message) == ("AwaitingApproval", "the server said [masked]")


async def test_a_page_is_masked_when_it_is_made_and_when_it_is_changed() -> None:
    key = f"page-{uuid4().hex[:8]}"

    @flow
    async def showing() -> str | None:
        return await show_page(key, f"```text\ntoken {SECRET}\n```", "", f"guard of {SECRET}")

    page = await showing()
    assert page is not None
    async with get_client() as client:
        only = ArtifactFilter(id=ArtifactFilterId(any_=[UUID(page)]))
        (made,) = await client.read_artifacts(artifact_filter=only)
        assert made.key == key
        assert made.data == "```text\ntoken [masked]\n```" and made.description == "guard of [masked]"
        await show_page(key, f"now <https://h/?key={SECRET}>", page, "")
        (changed,) = await client.read_artifacts(artifact_filter=only)
    assert changed.data == "now <https://h/?key=[masked]>"


def test_why_a_guard_could_not_begin_is_masked() -> None:
    told = _with_remedy(UnreachableError(f"https://h/api?token={SECRET} does not answer"))
    assert told == "https://h/api?token=[masked] does not answer"
