"""An action happens at most once, and doubt stops the next."""

from __future__ import annotations

import asyncio

import pytest

from tests.ledger import facts
from tests.ledger.facts import KEY, NOW
from trainguard.core.action import ActionKind, OutcomeStatus
from trainguard.core.decision import Lease
from trainguard.core.errors import IntentExistsError, IntentPendingError, LeaseLostError, LedgerError
from trainguard.core.history import IntentRecord, RecoveryRecord
from trainguard.core.incident import IncidentState
from trainguard.core.verdict import FaultClass
from trainguard.ledger.ledger import Ledger


@pytest.fixture
async def opened(ledger: Ledger, lease: Lease) -> Lease:
    await ledger.open_incident(lease, facts.incident())
    return lease


async def test_an_intent_is_pending_until_its_outcome_is_known(ledger: Ledger, opened: Lease) -> None:
    meant = facts.intent(opened)
    await ledger.write_intent(opened, meant)
    assert await ledger.pending_intents(KEY) == [meant]
    unknown = facts.outcome(status=OutcomeStatus.UNKNOWN)
    await ledger.write_outcome(opened, unknown)
    assert await ledger.pending_intents(KEY) == [meant]
    assert await ledger.intents("inc00001") == [IntentRecord(intent=meant, outcome=unknown)]
    await ledger.write_outcome(opened, facts.outcome())
    assert await ledger.pending_intents(KEY) == []
    assert await ledger.intents("inc00001") == [IntentRecord(intent=meant, outcome=facts.outcome())]


async def test_a_fence_is_used_once(ledger: Ledger, opened: Lease) -> None:
    await ledger.write_intent(opened, facts.intent(opened))
    await ledger.write_outcome(opened, facts.outcome())
    with pytest.raises(IntentExistsError, match="tg-inc00001-1"):
        await ledger.write_intent(opened, facts.intent(opened, at=NOW + 1))
    assert len(await ledger.intents("inc00001")) == 1


async def test_of_equal_intents_at_once_one_is_written(ledger: Ledger, opened: Lease) -> None:
    async def write() -> bool:
        try:
            await ledger.write_intent(opened, facts.intent(opened))
        except IntentExistsError:
            return False
        return True

    assert sum(await asyncio.gather(*(write() for _ in range(10)))) == 1


async def test_no_restart_is_begun_while_another_ones_outcome_is_in_doubt(
    ledger: Ledger, opened: Lease
) -> None:
    await ledger.write_intent(opened, facts.intent(opened, 1))
    await ledger.write_outcome(opened, facts.outcome(1, OutcomeStatus.UNKNOWN))
    with pytest.raises(IntentPendingError) as refused:
        await ledger.write_intent(opened, facts.intent(opened, 2))
    assert refused.value.token == "tg-inc00001-1"
    assert len(await ledger.intents("inc00001")) == 1
    await ledger.write_intent(opened, facts.intent(opened, 3, kind=ActionKind.SET_ASIDE_CHECKPOINT))
    await ledger.write_outcome(opened, facts.outcome(1, OutcomeStatus.REFUSED))
    await ledger.write_intent(opened, facts.intent(opened, 2))


async def test_a_final_outcome_stands(ledger: Ledger, opened: Lease) -> None:
    await ledger.write_intent(opened, facts.intent(opened))
    await ledger.write_outcome(opened, facts.outcome())
    await ledger.write_outcome(opened, facts.outcome(at=NOW + 9))
    with pytest.raises(LedgerError, match="is done"):
        await ledger.write_outcome(opened, facts.outcome(status=OutcomeStatus.REFUSED))
    assert (await ledger.intents("inc00001"))[0].outcome == facts.outcome()


async def test_an_outcome_without_its_intent_is_refused(ledger: Ledger, opened: Lease) -> None:
    with pytest.raises(LedgerError, match="no intent tg-inc00001-1"):
        await ledger.write_outcome(opened, facts.outcome())


async def test_an_intent_needs_its_incident(ledger: Ledger, opened: Lease) -> None:
    with pytest.raises(LedgerError, match="no incident inc00009"):
        await ledger.write_intent(opened, facts.intent(opened, name="inc00009"))


async def test_an_expired_lease_begins_nothing(ledger: Ledger, opened: Lease) -> None:
    late = facts.intent(opened, at=opened.expires_at)
    with pytest.raises(LeaseLostError, match="expired"):
        await ledger.write_intent(opened, late)
    renewed = await ledger.renew_lease(opened, late.at, 60)
    await ledger.write_intent(renewed, late)


async def test_a_fence_made_under_another_lease_is_refused(ledger: Ledger, opened: Lease) -> None:
    with pytest.raises(LedgerError, match="another lease"):
        await ledger.write_intent(opened, facts.intent(opened.model_copy(update={"number": 7})))


async def test_a_successor_writes_the_outcome_of_its_predecessors_intent(
    ledger: Ledger, opened: Lease
) -> None:
    await ledger.write_intent(opened, facts.intent(opened))
    second = await ledger.acquire_lease(KEY, "guard-2", NOW + 601, 60)
    assert [intent.fence.lease for intent in await ledger.pending_intents(KEY)] == [opened.number]
    await ledger.write_outcome(second, facts.outcome())
    assert await ledger.pending_intents(KEY) == []


async def test_history_tells_what_was_tried_and_how_far_the_job_came(ledger: Ledger, opened: Lease) -> None:
    await ledger.add_diagnosis(opened, "inc00001", facts.diagnosis("old"), NOW)
    await ledger.add_diagnosis(opened, "inc00001", facts.diagnosis("f1"), NOW)
    for number, kind in enumerate((ActionKind.SET_ASIDE_CHECKPOINT, ActionKind.RESTART), 1):
        await ledger.write_intent(opened, facts.intent(opened, number, at=NOW + number, kind=kind))
        await ledger.write_outcome(opened, facts.outcome(number))
    await ledger.write_intent(opened, facts.intent(opened, 3, at=NOW + 3, kind=ActionKind.DRAIN_NODE))
    await ledger.write_outcome(opened, facts.outcome(3, OutcomeStatus.REFUSED))
    await ledger.record_observation(opened, facts.observation(NOW - 5, step=4000), "before")
    await ledger.record_observation(opened, facts.observation(NOW + 5, step=90), "after")
    await ledger.record_observation(opened, facts.observation(NOW + 9, step=140), "after")
    recovered = facts.incident(state=IncidentState.RECOVERED, attempt=1)
    await ledger.update_incident(opened, recovered)
    second = facts.incident("inc00002", detected_at=NOW + 100, fingerprint="own", step=140)
    await ledger.open_incident(opened, second)

    first = RecoveryRecord(
        incident="inc00001",
        fingerprint="f1",
        fault=FaultClass.HOST_OOM,
        actions=(ActionKind.SET_ASIDE_CHECKPOINT, ActionKind.RESTART),
        acted_at=NOW + 2,
        step_before=100,
        step_reached=140,
        state=IncidentState.RECOVERED,
        detected_at=NOW,
        attempts=1,
    )
    untried = RecoveryRecord(
        incident="inc00002",
        fingerprint="own",
        fault=FaultClass.UNKNOWN,
        actions=(),
        acted_at=None,
        step_before=140,
        step_reached=None,
        state=IncidentState.OPEN,
        detected_at=NOW + 100,
    )
    assert await ledger.recovery_history(KEY) == [untried, first]
    assert await ledger.recovery_history(KEY, limit=1) == [untried]
