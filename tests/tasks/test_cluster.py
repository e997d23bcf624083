"""A guard that begins while Prefect is away."""

from __future__ import annotations

import httpx
import pytest
from prefect.exceptions import PrefectHTTPStatusError

from trainguard.blocks.local_host import LocalHost
from trainguard.core.errors import ConfigError
from trainguard.tasks import cluster
from trainguard.tasks.cluster import load_cluster

REQUEST = httpx.Request("GET", "http://prefect")


def status(code: int) -> Exception:
    return PrefectHTTPStatusError("no", request=REQUEST, response=httpx.Response(code, request=REQUEST))


async def none_slept(_: float) -> None:
    return


@pytest.mark.parametrize("problem", [httpx.ConnectError("gone"), status(503), status(429), TimeoutError()])
async def test_it_waits_for_prefect(problem: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    troubles, block = [problem, problem], LocalHost()

    async def loading(_: object) -> LocalHost:
        if troubles:
            raise troubles.pop()
        return block

    monkeypatch.setattr(cluster, "as_block", loading)
    monkeypatch.setattr("tenacity.asyncio._portable_async_sleep", none_slept)
    assert await load_cluster("local-host/x") is block
    assert not troubles


@pytest.mark.parametrize("problem", [ConfigError("cluster", "is none"), status(401)])
async def test_what_will_not_pass_is_said_at_once(
    problem: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def loading(_: object) -> LocalHost:
        raise problem

    monkeypatch.setattr(cluster, "as_block", loading)
    with pytest.raises(type(problem)):
        await load_cluster("local-host/x")
