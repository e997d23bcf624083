"""What is shown beside the steps keeps its order, is not lost, and disturbs nobody."""

from __future__ import annotations

import asyncio

import pytest

from trainguard.tasks.beside import Beside


async def test_nobody_waits_for_what_is_shown_but_the_end_does() -> None:
    shown: list[int] = []

    async def show(number: int) -> None:
        await asyncio.sleep(0.02 / number)
        shown.append(number)

    async with Beside() as beside:
        for number in (1, 2, 3):
            beside.do(show(number))
        assert shown == []
    assert shown == [1, 2, 3]


async def test_what_can_not_be_shown_is_logged_and_the_rest_is_shown(
    caplog: pytest.LogCaptureFixture,
) -> None:
    shown = asyncio.Event()

    async def fail() -> None:
        raise ValueError("no page")

    async def show() -> None:
        shown.set()

    async with Beside() as beside:
        beside.do(fail())
        beside.do(show())
    assert shown.is_set() and "something could not be shown" in caplog.text


async def test_a_guard_that_is_stopped_waits_for_no_page() -> None:
    async def hang() -> None:
        await asyncio.Event().wait()

    async def guard() -> None:
        async with Beside() as beside:
            beside.do(hang())
            beside.do(hang())
            await asyncio.sleep(60)

    standing = asyncio.create_task(guard())
    await asyncio.sleep(0.01)
    standing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(standing, 1)
