"""Jobs, observations and incidents come back as they were given."""

from __future__ import annotations

import math

import pytest

from tests.ledger import facts
from tests.ledger.facts import JOB, KEY, NOW
from trainguard.core.decision import Lease
from trainguard.core.errors import LedgerError
from trainguard.core.history import JobStatus
from trainguard.core.incident import IncidentState
from trainguard.core.job import JobRef, Watching
from trainguard.core.observation import Liveness, Progress
from trainguard.core.verdict import FaultClass
from trainguard.ledger.ledger import Ledger
from trainguard.ledger.observations import KEEP_ONE_PER


async def test_a_job_is_known_by_its_key(ledger: Ledger, lease: Lease) -> None:
    other = JOB.model_copy(update={"ref": JobRef(scheduler="local", cluster="here", id="other")})
    await ledger.register_job(other, '{"preset":"observe"}', NOW + 1)
    assert await ledger.job(KEY) == JOB
    assert await ledger.job("no/such/job") is None
    assert await ledger.jobs() == [JOB, other]
    assert await ledger.policy(other.key) == '{"preset":"observe"}'


async def test_registering_again_changes_the_policy_and_keeps_the_status(
    ledger: Ledger, lease: Lease
) -> None:
    await ledger.set_job_status(KEY, "Enabled", "", NOW + 5)
    changed = JOB.model_copy(update={"watching": Watching(stall_after=90)})
    await ledger.register_job(changed, '{"allow":[]}', NOW + 9)
    assert await ledger.job(KEY) == changed
    assert await ledger.policy(KEY) == '{"allow":[]}'
    assert await ledger.job_status(KEY) == JobStatus(status="Enabled", outcome="", at=NOW + 5)


async def test_an_unknown_job_has_no_policy_and_no_status(ledger: Ledger) -> None:
    with pytest.raises(LedgerError, match="no job x/y/z"):
        await ledger.policy("x/y/z")
    with pytest.raises(LedgerError, match="no job x/y/z"):
        await ledger.set_job_status("x/y/z", "Enabled", "", NOW)
    assert await ledger.job_status("x/y/z") is None


async def test_a_successor_finds_cursor_and_health(ledger: Ledger, lease: Lease) -> None:
    assert (await ledger.cursor(KEY), await ledger.health(KEY)) == ("", "")
    await ledger.save_health(lease, KEY, '{"baseline":0.1}', "inode:99")
    await ledger.save_health(lease, KEY, '{"baseline":0.5}')
    assert (await ledger.cursor(KEY), await ledger.health(KEY)) == ("inode:99", '{"baseline":0.5}')


async def test_health_that_repeats_leaves_one_row_per_quarter_of_an_hour(
    ledger: Ledger, lease: Lease
) -> None:
    for minute in range(61):
        seen = facts.observation(NOW + 60 * minute, step=100 + minute)
        await ledger.record_observation(lease, seen, f"line {minute}")
    kept = await ledger.observations(KEY)
    assert kept[0] == facts.observation(NOW + 3600, step=160)
    assert kept[-1] == facts.observation(NOW, step=100)
    assert len(kept) <= 3600 / KEEP_ONE_PER + 2
    assert await ledger.latest_observation(KEY) == kept[0]
    assert (await ledger.status_lines(KEY, 1)) == ["line 60"]


@pytest.mark.parametrize(
    "change",
    [
        {"liveness": Liveness.UNKNOWN, "native": ""},
        {"native": "REQUEUED"},
        {"incarnation": facts.SECOND},
        {"bad_nodes": ("n1",)},
        {"warning": "a retry was used"},
        {"exit_code": 1},
        {"fix": "freed disk"},
        {"progress": Progress(step=101, loss=math.nan)},
    ],
    ids=lambda change: next(iter(change)),
)
async def test_every_change_is_kept(ledger: Ledger, lease: Lease, change: dict[str, object]) -> None:
    await ledger.record_observation(lease, facts.observation(NOW), "a")
    await ledger.record_observation(lease, facts.observation(NOW + 1), "b")
    await ledger.record_observation(lease, facts.observation(NOW + 2).model_copy(update=change), "c")
    await ledger.record_observation(lease, facts.observation(NOW + 3), "d")
    assert await ledger.status_lines(KEY) == ["d", "c", "b", "a"]


async def test_numbers_in_a_reason_are_no_news(ledger: Ledger, lease: Lease) -> None:
    for second in range(50):
        blind = facts.observation(
            NOW + second, step=None, liveness=Liveness.UNKNOWN, reason=f"no answer after {second}.5 s"
        )
        await ledger.record_observation(lease, blind, "blind")
    assert len(await ledger.observations(KEY)) <= 3


async def test_what_logs_contain_can_be_stored(ledger: Ledger, lease: Lease) -> None:
    hostile = facts.observation(
        NOW,
        reason="nul \x00 and half a pair \ud800",
        progress=Progress(step=10**40, loss=math.inf, total=-(10**30)),
    )
    await ledger.record_observation(lease, hostile, "line \x00 \ud800")
    assert await ledger.observations(KEY) == [hostile]
    assert await ledger.status_lines(KEY) == ["line \ufffd ?"]


async def test_a_clock_that_goes_backwards_loses_no_change(ledger: Ledger, lease: Lease) -> None:
    await ledger.record_observation(lease, facts.observation(NOW), "a")
    await ledger.record_observation(lease, facts.observation(NOW - 5000, native="COMPLETING"), "b")
    assert await ledger.status_lines(KEY) == ["b", "a"]


async def test_an_incident_comes_back_as_it_was_stored(ledger: Ledger, lease: Lease) -> None:
    await ledger.open_incident(lease, facts.incident())
    await ledger.open_incident(lease, facts.incident())
    later = facts.incident("inc00002", detected_at=NOW + 50)
    await ledger.open_incident(lease, later)
    ended = facts.incident(state=IncidentState.DISMISSED, closed_at=NOW + 20, outcome="passed")
    await ledger.update_incident(lease, ended)
    assert await ledger.incident("inc00001") == ended
    assert await ledger.incident("nothing") is None
    assert await ledger.incidents() == [later, ended]
    assert await ledger.incidents(KEY, limit=1) == [later]
    assert await ledger.incidents(KEY, open_only=True) == [later]
    assert await ledger.incidents("another/job/here") == []


async def test_an_ended_incident_is_never_reopened(ledger: Ledger, lease: Lease) -> None:
    await ledger.open_incident(lease, facts.incident())
    await ledger.update_incident(lease, facts.incident(state=IncidentState.RECOVERED))
    await ledger.update_incident(lease, facts.incident(state=IncidentState.RECOVERED, outcome="went on"))
    with pytest.raises(LedgerError, match="ended as recovered"):
        await ledger.update_incident(lease, facts.incident(state=IncidentState.ACTING))


async def test_an_incidents_name_is_used_once(ledger: Ledger, lease: Lease) -> None:
    await ledger.open_incident(lease, facts.incident())
    with pytest.raises(LedgerError, match="already called"):
        await ledger.open_incident(lease, facts.incident(detected_at=NOW + 1))


async def test_a_lease_is_good_for_its_own_job_alone(ledger: Ledger, lease: Lease) -> None:
    with pytest.raises(LedgerError, match="says nothing about"):
        await ledger.open_incident(lease, facts.incident(job_key="another/job/here"))


async def test_what_belongs_to_no_incident_is_refused(ledger: Ledger, lease: Lease) -> None:
    with pytest.raises(LedgerError, match="no incident inc00001"):
        await ledger.add_diagnosis(lease, "inc00001", facts.diagnosis(), NOW)
    with pytest.raises(LedgerError, match="no incident inc00001"):
        await ledger.update_incident(lease, facts.incident())
    with pytest.raises(LedgerError, match="no incident inc00001"):
        await ledger.add_evidence(lease, "inc00001", [facts.evidence("x")])


async def test_the_newest_diagnosis_and_plan_count_and_none_is_lost(ledger: Ledger, lease: Lease) -> None:
    await ledger.open_incident(lease, facts.incident())
    assert await ledger.diagnosis("inc00001") is None
    assert await ledger.plan("inc00001") is None
    first, second = facts.diagnosis("f1"), facts.diagnosis("f2")
    await ledger.add_diagnosis(lease, "inc00001", first, NOW)
    await ledger.add_diagnosis(lease, "inc00001", second, NOW + 1)
    assert await ledger.diagnosis("inc00001") == second
    assert await ledger.diagnoses("inc00001") == [first, second]
    await ledger.add_decisions(lease, "inc00001", facts.plan(at=NOW))
    await ledger.add_decisions(lease, "inc00001", facts.plan(at=NOW + 9))
    assert await ledger.plan("inc00001") == facts.plan(at=NOW + 9)


async def test_jobs_that_failed_alike_are_counted_once_each_by_their_newest_cause(ledger: Ledger) -> None:
    async def failed(job: str, incident_id: str, *causes: FaultClass, at: float = NOW) -> None:
        lease = await ledger.acquire_lease(job, "guard", NOW, 60)
        await ledger.open_incident(lease, facts.incident(incident_id, job_key=job, detected_at=at))
        for cause in causes:
            found = facts.diagnosis(fault=cause)
            await ledger.add_diagnosis(lease, incident_id, found, at)

    storage, comm = FaultClass.STORAGE_IO, FaultClass.NCCL_COMM
    await failed("slurm/a_b/1", "one", comm, storage)
    await failed("slurm/a_b/1", "one-again", storage)
    await failed("slurm/a_b/2", "two", storage)
    await failed("slurm/a_b/3", "three", comm)
    await failed("slurm/a_b/4", "four", storage, at=NOW - 100)
    await failed("slurm/axb/5", "other-cluster", storage)
    await failed("slurm/a_b/6", "undiagnosed")
    like = JobRef(scheduler="slurm", cluster="a_b", id="9")
    assert await ledger.jobs_failed_alike(like, storage, NOW - 50) == {"slurm/a_b/1", "slurm/a_b/2"}
