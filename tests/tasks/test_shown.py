"""What is shown in Prefect holds no secret, whoever said it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from types import SimpleNamespace
from typing import Any, cast
from uuid import UUID, uuid4

import pytest
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterId
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import Running

from trainguard.core.errors import UnreachableError
from trainguard.flows.guard import _with_remedy
from trainguard.tasks.context import GuardContext
from trainguard.tasks.prefect_view import show_page, show_status, stop_if_cancelled

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


class Proxy(BaseHTTPRequestHandler):
    """What stands before Prefect and answers everything with a page of its own, code 200."""

    def page(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        self.wfile.write(b"<html>down for maintenance</html>")

    do_GET = do_POST = do_PATCH = page

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@pytest.fixture
def maintenance() -> Iterator[None]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Proxy)
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    with temporary_settings({PREFECT_API_URL: f"http://127.0.0.1:{server.server_port}/api"}):
        yield
    server.shutdown()
    server.server_close()


@pytest.mark.usefixtures("maintenance")
async def test_a_page_that_answers_in_prefects_place_is_prefect_away() -> None:
    run = str(uuid4())
    context = cast(GuardContext, SimpleNamespace(flow_run_id=run, shown_status="", clock=time.time))
    await show_status(context, "Enabled")
    assert context.shown_status == ""
    with pytest.warns(FutureWarning, match="outside of a flow"):
        assert await show_page("guard-x", "text", "", "a page") is None
    assert not await stop_if_cancelled(context, at_once=True)
