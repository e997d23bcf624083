"""One guard a job."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from tests.ledger import facts
from tests.ledger.facts import KEY, NOW
from trainguard.core.decision import Lease
from trainguard.core.errors import LeaseHeldError, LeaseLostError
from trainguard.core.incident import IncidentState
from trainguard.core.verdict import FaultClass
from trainguard.ledger.ledger import Ledger


async def test_a_second_guard_is_refused_and_told_the_owner(ledger: Ledger, lease: Lease) -> None:
    with pytest.raises(LeaseHeldError) as refused:
        await ledger.acquire_lease(KEY, "guard-2", NOW + 599, 60)
    assert refused.value.holder == "guard-1"
    assert await ledger.lease(KEY) == lease


async def test_an_expired_lease_goes_to_the_next_guard_with_a_greater_number(
    ledger: Ledger, lease: Lease
) -> None:
    second = await ledger.acquire_lease(KEY, "guard-2", NOW + 600, 60)
    assert second.number == lease.number + 1
    with pytest.raises(LeaseLostError, match="guard-2"):
        await ledger.check_lease(lease)
    with pytest.raises(LeaseLostError):
        await ledger.renew_lease(lease, NOW + 601, 60)
    await ledger.check_lease(second)


async def test_taking_over_needs_no_expiry(ledger: Ledger, lease: Lease) -> None:
    second = await ledger.acquire_lease(KEY, "guard-2", NOW + 1, 60, take_over=True)
    assert second.number == lease.number + 1


async def test_the_same_holder_keeps_its_number(ledger: Ledger, lease: Lease) -> None:
    again = await ledger.acquire_lease(KEY, "guard-1", NOW + 5, 600)
    assert (again.number, again.expires_at) == (lease.number, NOW + 605)
    renewed = await ledger.renew_lease(lease, NOW + 900, 60)
    assert (renewed.number, renewed.expires_at) == (lease.number, NOW + 960)


async def test_many_are_renewed_together_and_the_lost_ones_are_named(ledger: Ledger) -> None:
    mine = [await ledger.acquire_lease(f"job-{n}", "guard-1", NOW, 60) for n in range(300)]
    stolen = await ledger.acquire_lease("job-7", "guard-2", NOW, 60, take_over=True)
    await ledger.release_lease(mine[8])
    never = Lease(job_key="never", holder="guard-1", number=1, expires_at=NOW)
    renewed = [one.model_copy(update={"expires_at": NOW + 100 + n}) for n, one in enumerate(mine)]
    kept = await ledger.renew_leases([*renewed, never])
    assert kept == {one.job_key for one in mine} - {"job-7", "job-8"}
    assert [await ledger.lease(f"job-{n}") for n in (0, 299)] == [renewed[0], renewed[299]]
    assert await ledger.lease("job-7") == stolen
    assert await ledger.lease("job-8") is None and await ledger.lease("never") is None
    assert await ledger.renew_leases([]) == frozenset()


async def test_the_held_ones_are_found_by_a_word_in_their_holders_name(ledger: Ledger) -> None:
    first = await ledger.acquire_lease("one", "host:1:2:run-a", NOW, 60)
    second = await ledger.acquire_lease("two", "host:1:2:run_b", NOW, 60)
    await ledger.release_lease(await ledger.acquire_lease("three", "host:1:2:run-a", NOW, 60))
    assert sorted(await ledger.held_leases(), key=lambda lease: lease.job_key) == [first, second]
    assert await ledger.held_leases("run-a") == [first]
    assert await ledger.held_leases("run_") == [second], "no wildcard"


async def test_a_released_lease_is_free_and_its_number_is_never_used_again(
    ledger: Ledger, lease: Lease
) -> None:
    await ledger.release_lease(lease)
    assert await ledger.lease(KEY) is None
    with pytest.raises(LeaseLostError, match="nobody"):
        await ledger.check_lease(lease)
    again = await ledger.acquire_lease(KEY, "guard-1", NOW + 1, 60)
    assert again.number == lease.number + 1


async def test_releasing_a_lost_lease_leaves_the_new_owner_alone(ledger: Ledger, fenced: Lease) -> None:
    await ledger.release_lease(fenced)
    held = await ledger.lease(KEY)
    assert held is not None
    assert held.holder == "guard-2"


async def test_of_many_guards_at_once_one_gets_the_job(ledger: Ledger) -> None:
    async def grab(number: int) -> Lease | None:
        try:
            return await ledger.acquire_lease("new/job", f"guard-{number}", NOW, 60)
        except LeaseHeldError:
            return None

    got = [lease for lease in await asyncio.gather(*map(grab, range(12))) if lease]
    assert len(got) == 1
    assert got[0].number == 1


async def test_a_lease_needs_a_holder(ledger: Ledger) -> None:
    with pytest.raises(ValueError, match="holder"):
        await ledger.acquire_lease(KEY, "", NOW, 60)


WRITES: dict[str, Callable[[Ledger, Lease], Awaitable[object]]] = {
    "observation": lambda led, it: led.record_observation(it, facts.observation(), "line"),
    "health": lambda led, it: led.save_health(it, KEY, "{}"),
    "cursor": lambda led, it: led.save_health(it, KEY, "x", "y"),
    "status": lambda led, it: led.set_job_status(KEY, "Enabled", "", NOW, it),
    "open": lambda led, it: led.open_incident(it, facts.incident("inc00002")),
    "update": lambda led, it: led.update_incident(it, facts.incident(state=IncidentState.DIAGNOSED)),
    "evidence": lambda led, it: led.add_evidence(it, "inc00001", [facts.evidence("x")]),
    "diagnosis": lambda led, it: led.add_diagnosis(it, "inc00001", facts.diagnosis(), NOW),
    "nodes": lambda led, it: led.add_node_events(it, "inc00001", ("n1",), FaultClass.NODE_FAILURE, NOW),
    "decisions": lambda led, it: led.add_decisions(it, "inc00001", facts.plan()),
    "intent": lambda led, it: led.write_intent(it, facts.intent(it)),
    "outcome": lambda led, it: led.write_outcome(it, facts.outcome()),
    "ask": lambda led, it: led.ask(it, facts.request()),
}


async def state_of(ledger: Ledger) -> list[object]:
    return [
        await ledger.observations(KEY),
        await ledger.health(KEY),
        await ledger.cursor(KEY),
        await ledger.job_status(KEY),
        await ledger.incidents(),
        await ledger.evidence("inc00001"),
        await ledger.diagnoses("inc00001"),
        await ledger.node_events("n1"),
        await ledger.plan("inc00001"),
        await ledger.intents("inc00001"),
        await ledger.open_requests(),
        await ledger.lease(KEY),
    ]


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES.keys())
async def test_a_fenced_guard_changes_nothing(
    ledger: Ledger, fenced: Lease, write: Callable[[Ledger, Lease], Awaitable[object]]
) -> None:
    before = await state_of(ledger)
    if write is WRITES["outcome"]:
        owner = await ledger.lease(KEY)
        assert owner is not None
        await ledger.write_intent(owner, facts.intent(owner))
        before = await state_of(ledger)
    with pytest.raises(LeaseLostError):
        await write(ledger, fenced)
    assert await state_of(ledger) == before
