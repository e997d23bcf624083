"""What other processes do to the same ledger: `python -m tests.ledger.processes NAME URL ARGUMENT [COPIES]`."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import sys

from sqlalchemy import event

from tests.ledger import facts
from tests.ledger.facts import FIRST, KEY, NOW
from trainguard.core.action import ActionKind
from trainguard.core.errors import LeaseHeldError, LedgerUnavailableError
from trainguard.ledger.ledger import Ledger


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


async def answer(url: str, person: str) -> None:
    async with await Ledger.open(url) as ledger:
        say("ready")
        await asyncio.to_thread(os.read, 0, 1)
        result = await ledger.answer(facts.answer(f"person-{person}"), FIRST.token, NOW + 10)
        say(f"{'accepted' if result.accepted else 'refused'} {person}")


async def act(url: str, first: str) -> None:
    """Write intents and outcomes for ever; what is said was durable before."""
    async with await Ledger.open(url) as ledger:
        lease = await ledger.acquire_lease(KEY, "guard", NOW, 1e6)
        number = int(first)
        while True:
            await ledger.write_intent(lease, facts.intent(lease, number, kind=ActionKind.FREE_DISK))
            say(f"intent {number}")
            await ledger.write_outcome(lease, facts.outcome(number))
            say(f"outcome {number}")
            number += 1


async def die(url: str, where: str) -> None:
    """Die by SIGKILL just before an intent's commit, or just after it."""
    ledger = await Ledger.open(url)
    lease = await ledger.acquire_lease(KEY, "guard", NOW, 1e6)
    if where == "before":
        event.listen(ledger._engine.sync_engine, "commit", lambda _: os.kill(os.getpid(), signal.SIGKILL))
    await ledger.write_intent(lease, facts.intent(lease))
    os.kill(os.getpid(), signal.SIGKILL)


async def contend(url: str, holder: str) -> None:
    """Fight for the lease and count under it; every holder's counts must add up."""
    counted = 0
    async with await Ledger.open(url, patience=30) as ledger:
        while counted < 25:
            try:
                lease = await ledger.acquire_lease(KEY, holder, NOW, 60)
            except LeaseHeldError:
                await asyncio.sleep(0)
                continue
            seen = int(await ledger.health(KEY) or 0)
            await ledger.save_health(lease, KEY, str(seen + 1))
            counted += 1
            await ledger.release_lease(lease)
    say("done")


async def fill(url: str, limit: str) -> None:
    """Meet a full disk (a limit on file sizes acts alike), then see it end."""
    async with await Ledger.open(url, patience=1) as ledger:
        lease = await ledger.acquire_lease(KEY, "guard", NOW, 1e6)
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), hard))
        written = 0
        try:
            while True:
                await ledger.save_health(lease, KEY, str(written + 1) + " " * 20_000)
                written += 1
        except LedgerUnavailableError as error:
            say(str(error))
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        assert (await ledger.health(KEY)).split()[0] == str(written)
        await ledger.save_health(lease, KEY, "fine")
        await ledger.check_lease(lease)
    say("recovered")


async def open_it(url: str, number: str) -> None:
    """Open a ledger that may be new, and leave a mark."""
    async with await Ledger.open(url) as ledger:
        await ledger.acquire_lease(f"job-{number}", "guard", NOW, 60)
    say("opened")


PARTS = {part.__name__: part for part in (answer, act, die, contend, fill, open_it)}


def spread(part: str, url: str, count: int) -> None:
    """Be `count` processes, forked before there is a thread or a loop, each with its number."""
    children = []
    for number in range(count):
        child = os.fork()
        if not child:
            asyncio.run(PARTS[part](url, str(number)))
            return
        children.append(child)
    sys.exit(max(os.waitpid(child, 0)[1] for child in children))


if __name__ == "__main__":
    if len(sys.argv) > 4:
        spread(sys.argv[1], sys.argv[2], int(sys.argv[4]))
    else:
        asyncio.run(PARTS[sys.argv[1]](sys.argv[2], sys.argv[3]))
