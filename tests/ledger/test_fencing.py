"""Whatever guards do in whatever order: at most one owner, numbers only grow, the fenced change nothing."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, multiple, rule

from tests.ledger import facts
from tests.ledger.facts import KEY
from trainguard.core.action import ActionKind
from trainguard.core.decision import Lease
from trainguard.core.errors import LeaseHeldError, LeaseLostError
from trainguard.ledger.ledger import Ledger


class Fencing(RuleBasedStateMachine):
    """Three guards with frozen pasts against a model of who owns the job."""

    leases: Bundle[Lease] = Bundle("leases")

    @initialize()
    def open(self) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.loop = asyncio.new_event_loop()
        path = Path(self.folder.name) / "ledger.db"
        self.ledger = self.loop.run_until_complete(Ledger.open(f"sqlite:///{path}"))
        self.now = 1000.0
        self.owner: Lease | None = None
        self.highest = 0
        self.issued: list[Lease] = []
        self.written = ""
        self.fences = 0

    def teardown(self) -> None:
        if hasattr(self, "ledger"):
            self.loop.run_until_complete(self.ledger.close())
            self.loop.close()
            self.folder.cleanup()

    def owns(self, lease: Lease) -> bool:
        return self.owner is not None and lease.number == self.owner.number

    @rule(target=leases, holder=st.sampled_from("ABC"), ttl=st.floats(1, 50), take_over=st.booleans())
    def acquire(self, holder: str, ttl: float, take_over: bool) -> Lease:
        other = self.owner is not None and self.owner.holder != holder
        held = other and self.owner is not None and self.owner.expires_at > self.now
        call = self.ledger.acquire_lease(KEY, holder, self.now, ttl, take_over)
        try:
            lease = self.loop.run_until_complete(call)
        except LeaseHeldError as refused:
            assert held
            assert not take_over
            assert self.owner is not None
            assert refused.holder == self.owner.holder
            return multiple()  # type: ignore[return-value]
        assert take_over or not held
        changed = self.owner is None or other
        assert lease.number == self.highest + (1 if changed else 0)
        self.owner, self.highest = lease, lease.number
        if self.highest == 1 and changed:
            incident = facts.incident()
            self.loop.run_until_complete(self.ledger.open_incident(lease, incident))
        self.issued.append(lease)
        return lease

    @rule(seconds=st.floats(0.1, 60))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule(lease=leases, ttl=st.floats(1, 50))
    def renew(self, lease: Lease, ttl: float) -> None:
        try:
            renewed = self.loop.run_until_complete(self.ledger.renew_lease(lease, self.now, ttl))
        except LeaseLostError:
            assert not self.owns(lease)
        else:
            assert self.owns(lease)
            self.owner = renewed

    @rule(lease=leases)
    def release(self, lease: Lease) -> None:
        self.loop.run_until_complete(self.ledger.release_lease(lease))
        if self.owns(lease):
            self.owner = None

    @rule(lease=leases, text=st.text(st.characters(categories=["L"]), min_size=1, max_size=3))
    def write(self, lease: Lease, text: str) -> None:
        try:
            self.loop.run_until_complete(self.ledger.save_health(lease, KEY, text))
        except LeaseLostError:
            assert not self.owns(lease)
        else:
            assert self.owns(lease)
            self.written = text

    @rule(lease=leases)
    def intend(self, lease: Lease) -> None:
        meant = facts.intent(lease, self.fences + 1, at=self.now, kind=ActionKind.FREE_DISK)
        try:
            self.loop.run_until_complete(self.ledger.write_intent(lease, meant))
        except LeaseLostError:
            assert not self.owns(lease) or (self.owner is not None and self.owner.expires_at <= self.now)
        else:
            assert self.owns(lease)
            assert self.owner is not None
            assert self.owner.expires_at > self.now
            self.fences += 1

    @invariant()
    def one_owner_and_only_its_writes(self) -> None:
        if not hasattr(self, "ledger"):
            return
        run = self.loop.run_until_complete
        held = run(self.ledger.lease(KEY))
        assert held == self.owner
        passing = set()
        for lease in self.issued:
            try:
                run(self.ledger.check_lease(lease))
            except LeaseLostError:
                continue
            passing.add((lease.holder, lease.number))
        assert len(passing) == (0 if self.owner is None else 1)
        assert run(self.ledger.health(KEY)) == self.written
        assert len(run(self.ledger.pending_intents(KEY))) == self.fences


TestFencing = Fencing.TestCase
TestFencing.settings = settings(
    max_examples=12, stateful_step_count=20, deadline=None, suppress_health_check=list(HealthCheck)
)
