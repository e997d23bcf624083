"""Which signals a series of looks gives.

Tested: crash, gone, unknown; stalls with and without GPUs, and everything that looks like one; numerical
trouble, throughput, utilisation, waiting, early stops; that each fires once; that clocks may jump.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainguard.core.health import Health, assess, stall_threshold
from trainguard.core.job import Incarnation, JobRef, Watching
from trainguard.core.observation import Liveness, Observation, Utilisation
from trainguard.core.progress import Reading, read_progress, restarted
from trainguard.core.signal import Signal, SignalKind

JOB = JobRef(scheduler="local", cluster="here", id="job")
BUSY = Utilisation(gpu_percent=(95.0, 90.0), cpu_percent=100.0)
IDLE = Utilisation(gpu_percent=(0.0, 1.0), cpu_percent=1.0)
HUNG_IN_NCCL = Utilisation(gpu_percent=(100.0, 100.0), cpu_percent=200.0)
CPU_BUSY = Utilisation(cpu_percent=98.0)
CPU_IDLE = Utilisation(cpu_percent=0.4)


@dataclass
class Watched:
    """A job under watch: time passes, it prints, it is looked at."""

    watching: Watching = field(default_factory=Watching)
    health: Health = field(default_factory=Health)
    reading: Reading = field(default_factory=Reading)
    now: float = 1_000_000.0
    incarnation: Incarnation = field(default_factory=lambda: Incarnation(job=JOB, token="1"))
    printed_at: float = 1_000_000.0
    step: int = 0
    signals: list[Signal] = field(default_factory=list)

    def prints(self, text: str) -> None:
        self.printed_at = self.now
        self.reading = read_progress(text, self.reading, self.now, self.watching.progress_pattern)

    def look(self, liveness: Liveness = Liveness.RUNNING, after: float = 5.0, **facts: Any) -> list[Signal]:
        self.now += after
        observation = Observation(
            job=JOB, at=self.now, source="test", liveness=liveness, incarnation=self.incarnation, **facts
        )
        self.health, signals = assess(self.health, observation, self.reading, self.watching, self.now)
        self.signals.extend(signals)
        return list(signals)

    def trains(self, looks: int, *, after: float = 5.0, steps: int = 5, line: str = "", **facts: Any) -> None:
        """Train for some looks, some steps before each."""
        for _ in range(looks):
            for _ in range(steps):
                self.step += 1
                self.prints(line.format(self.step) or f"step {self.step}/9000 loss 2.0\n")
            self.look(after=after, **{"utilisation": BUSY, **facts})

    def silent(self, seconds: float, *, after: float = 5.0, aging: bool = True, **facts: Any) -> list[Signal]:
        """Look on for some time while nothing is printed."""
        before, began = len(self.signals), self.now
        while self.now - began < seconds:
            age = self.now + after - self.printed_at if aging else None
            self.look(after=after, **{"heartbeat_age": age, "log_age": age, **facts})
        return self.signals[before:]

    def restarts(self) -> None:
        self.incarnation = Incarnation(job=JOB, token=str(int(self.incarnation.token) + 1))
        self.reading = restarted(self.reading)


@pytest.fixture
def job() -> Watched:
    return Watched()


def kinds(signals: list[Signal]) -> list[SignalKind]:
    return [signal.kind for signal in signals]


def test_a_healthy_job_gives_no_signal(job: Watched) -> None:
    job.look(Liveness.PENDING)
    job.trains(500)
    job.look(Liveness.SUCCEEDED)
    assert job.signals == []
    assert not job.health.uncertain


def test_a_crash_is_told_once_with_its_sources(job: Watched) -> None:
    job.trains(5)
    (crash,) = job.look(Liveness.FAILED, native="failed", exit_signal=9)
    assert (crash.kind, crash.sources, crash.incarnation) == (
        SignalKind.CRASH,
        ("scheduler", "process"),
        job.incarnation,
    )
    assert crash.detail == "failed: signal 9"
    assert job.look(Liveness.FAILED, exit_signal=9) == []
    job.restarts()
    job.trains(3)
    assert not job.health.degraded
    assert kinds(job.look(Liveness.FAILED, native="NODE_FAIL")) == [SignalKind.CRASH]
    assert job.signals[-1].sources == ("scheduler",)


def test_a_failure_that_the_scheduler_mends_itself_is_no_crash(job: Watched) -> None:
    job.trains(5)
    assert job.look(Liveness.FAILED, restart_underway=True) == []
    assert kinds(job.look(Liveness.FAILED, restart_underway=False)) == [SignalKind.CRASH]


def test_a_job_stopped_by_its_owner_gives_no_signal(job: Watched) -> None:
    job.trains(5)
    for _ in range(50):
        assert job.look(Liveness.STOPPED) == []


def test_a_job_that_is_gone_is_degraded_after_some_looks_and_never_crashed(job: Watched) -> None:
    job.trains(5)
    assert [kinds(job.look(Liveness.GONE)) for _ in range(5)] == [[], [], [SignalKind.DEGRADED], [], []]
    assert job.signals[-1].sources == ("scheduler",)


def test_a_job_that_was_never_seen_running_and_is_gone_gives_no_signal(job: Watched) -> None:
    assert [kinds(job.look(Liveness.GONE)) for _ in range(5)] == [[]] * 5


class TestUnknown:
    def test_blindness_is_told_once_and_the_return_of_sight_too(self, job: Watched) -> None:
        job.trains(5)
        for _ in range(100):
            job.look(Liveness.UNKNOWN, reason="connection refused")
        assert kinds(job.signals) == [SignalKind.BLIND]
        assert job.signals[0].detail == "nothing could be seen for 60 s: connection refused"
        assert job.health.unknown_since is not None
        job.trains(2)
        assert kinds(job.signals) == [SignalKind.BLIND, SignalKind.WARNING]
        assert job.health.unknown_since is None
        assert not job.health.degraded

    def test_a_short_blink_is_not_told_but_makes_the_guard_look_sooner(self, job: Watched) -> None:
        job.trains(5)
        job.look(Liveness.UNKNOWN)
        assert job.health.uncertain
        assert job.look(Liveness.UNKNOWN) == []

    def test_unknown_is_never_a_crash_nor_a_stall(self, job: Watched) -> None:
        job.trains(5)
        for _ in range(500):
            job.look(Liveness.UNKNOWN, utilisation=IDLE)
        assert kinds(job.signals) == [SignalKind.BLIND]

    def test_what_was_known_before_is_not_forgotten_nor_told_again(self, job: Watched) -> None:
        job.trains(5)
        job.look(Liveness.FAILED)
        job.look(Liveness.UNKNOWN)
        assert job.look(Liveness.FAILED) == []


class TestStall:
    def test_silence_with_idle_gpus_is_a_stall_within_the_threshold_and_two_looks(self, job: Watched) -> None:
        job.trains(50)
        hung_at = job.printed_at
        (stall,) = job.silent(300, utilisation=IDLE)
        assert stall.kind is SignalKind.STALL
        assert 60 <= stall.at - hung_at <= 70
        assert stall.sources == ("heartbeat", "log", "gpu")

    def test_silence_with_an_idle_process_tree_is_a_stall_where_there_is_no_gpu(self, job: Watched) -> None:
        job.trains(50, utilisation=CPU_BUSY)
        (stall,) = job.silent(300, utilisation=CPU_IDLE)
        assert (stall.kind, stall.sources) == (SignalKind.STALL, ("heartbeat", "log", "process"))

    def test_without_a_heartbeat_the_log_speaks(self, job: Watched) -> None:
        job.trains(50)
        (stall,) = job.silent(300, utilisation=IDLE, heartbeat_age=None)
        assert stall.sources == ("log", "gpu")
        other = Watched()
        other.trains(50)
        (stall,) = other.silent(300, aging=False, utilisation=IDLE)
        assert stall.sources == ("log", "gpu")

    def test_busy_gpus_are_no_stall_however_long_but_degraded(self, job: Watched) -> None:
        """A hung collective spins at 100 %; so does a long evaluation."""
        job.trains(50)
        assert kinds(job.silent(7_200, utilisation=HUNG_IN_NCCL)) == [SignalKind.DEGRADED]

    def test_a_busy_process_tree_is_no_stall_where_there_is_no_gpu(self, job: Watched) -> None:
        job.trains(50)
        assert SignalKind.STALL not in kinds(job.silent(7_200, utilisation=CPU_BUSY))

    def test_a_fresh_heartbeat_is_no_stall(self, job: Watched) -> None:
        job.trains(50)
        assert job.silent(3_000, utilisation=IDLE, heartbeat_age=2.0) == []

    def test_a_log_that_goes_on_without_steps_is_no_stall_without_gpus(self, job: Watched) -> None:
        job.trains(50)
        signals = job.silent(3_000, heartbeat_age=None, log_age=1.0, utilisation=CPU_IDLE)
        assert kinds(signals) == [SignalKind.DEGRADED]

    def test_an_idle_gpu_alone_is_no_stall(self, job: Watched) -> None:
        job.trains(50)
        job.trains(100, utilisation=IDLE)
        assert job.signals == []

    def test_one_idle_sample_among_busy_ones_is_no_stall(self, job: Watched) -> None:
        job.trains(50)
        for number in range(200):
            age = 5.0 * number
            job.look(heartbeat_age=age, log_age=age, utilisation=IDLE if number % 2 else BUSY)
        assert SignalKind.STALL not in kinds(job.signals)

    def test_start_and_compilation_are_never_a_stall(self, job: Watched) -> None:
        job.prints("compiling train_step\n")
        assert job.silent(1_700, utilisation=IDLE) == []
        (signal,) = job.silent(7_200, utilisation=IDLE)
        assert (signal.kind, signal.detail) == (SignalKind.DEGRADED, "no step was seen in 1800 s")

    def test_the_start_of_the_next_attempt_is_never_a_stall_either(self, job: Watched) -> None:
        job.trains(50)
        job.look(Liveness.FAILED, exit_code=1)
        job.restarts()
        assert job.silent(1_000, utilisation=IDLE) == []
        job.trains(5)
        assert kinds(job.silent(1_000, utilisation=IDLE)) == [SignalKind.STALL]

    def test_the_last_step_of_the_attempt_before_is_not_the_first_of_this(self, job: Watched) -> None:
        """A source may go on telling the old step until the new attempt has one."""
        job.trains(50)
        job.incarnation = Incarnation(job=JOB, token="2")
        job.reading = restarted(job.reading)
        progress = read_progress("step 250/9000\n", Reading(), job.now).progress
        assert job.silent(1_000, utilisation=IDLE, progress=progress) == []

    def test_a_long_pause_that_came_back_by_itself_is_allowed_for(self, job: Watched) -> None:
        for _ in range(6):
            job.trains(20)
            job.silent(55, utilisation=BUSY)
        job.trains(1)
        assert 75 <= stall_threshold(job.health, job.reading, job.watching) <= 90
        assert job.silent(70, utilisation=IDLE) == []
        assert kinds(job.silent(30, utilisation=IDLE)) == [SignalKind.STALL]

    @pytest.mark.parametrize("line", ["Saving checkpoint at step 250", "***** Running Evaluation *****"])
    def test_an_announced_pause_is_given_ten_minutes(self, job: Watched, line: str) -> None:
        job.trains(50)
        job.prints(line + "\n")
        assert job.silent(580, utilisation=IDLE) == []
        assert kinds(job.silent(60, utilisation=IDLE)) == [SignalKind.STALL]

    def test_slow_steps_have_three_step_times(self, job: Watched) -> None:
        line = "completed step: {}, seconds: 100.0, TFLOP/s/device: 1.0, loss: 2.0\n"
        job.trains(20, steps=1, after=100.0, line=line)
        assert stall_threshold(job.health, job.reading, job.watching) == 300
        hung_at = job.printed_at
        (stall,) = job.silent(1_000, utilisation=IDLE)
        assert 300 <= stall.at - hung_at <= 310

    def test_the_owner_may_set_the_threshold(self) -> None:
        job = Watched(Watching(stall_after=5))
        job.trains(50, after=2.0, heartbeat_age=0.1, log_age=0.1)
        hung_at = job.printed_at
        (stall,) = job.silent(60, after=2.0, utilisation=CPU_IDLE)
        assert 5 <= stall.at - hung_at <= 9

    def test_a_log_that_is_read_more_rarely_than_the_threshold_makes_no_stall(self) -> None:
        """Heartbeat and age of the log are looked at often, the log itself is read now and then."""
        job = Watched(Watching(stall_after=4))
        for _ in range(20):
            job.trains(1, after=2.0, heartbeat_age=0.5, log_age=0.5, utilisation=CPU_IDLE)
            for _ in range(5):
                job.look(after=2.0, heartbeat_age=0.5, log_age=0.5, utilisation=CPU_IDLE)
        assert job.signals == []

    def test_without_any_utilisation_it_takes_half_an_hour_and_has_one_source(self, job: Watched) -> None:
        """What nobody can confirm must not be acted on: the guard asks."""
        job.trains(50, utilisation=Utilisation())
        assert SignalKind.STALL not in kinds(job.silent(1_700, aging=False))
        stalls = [signal for signal in job.silent(600, aging=False) if signal.kind is SignalKind.STALL]
        assert [stall.sources for stall in stalls] == [("log",)]
        other = Watched()
        other.trains(50, utilisation=Utilisation())
        other.silent(2_400)
        assert [(signal.kind, signal.sources) for signal in other.signals] == [
            (SignalKind.DEGRADED, ("log",)),
            (SignalKind.STALL, ("heartbeat",)),
        ]

    def test_steps_that_were_made_before_the_silence_and_read_after_it_began_do_not_end_it(self) -> None:
        job = Watched(watching=Watching(stall_after=30))
        job.trains(20)
        assert kinds(job.silent(90, utilisation=IDLE)) == [SignalKind.STALL]
        printed = job.printed_at
        job.prints("step 101/9000 loss 2.0\nstep 102/9000 loss 2.0\n")
        job.printed_at = printed
        assert job.silent(5, utilisation=IDLE) == []
        assert (job.health.open, job.reading.best_step) == ((SignalKind.STALL,), 102)
        job.step = 102
        job.trains(1)
        assert job.health.open == ()

    def test_a_stall_is_told_once_and_again_after_it_has_passed(self, job: Watched) -> None:
        job.trains(50)
        assert kinds(job.silent(3_000, utilisation=IDLE)).count(SignalKind.STALL) == 1
        job.trains(50)
        assert not job.health.degraded
        assert kinds(job.silent(7_200, utilisation=IDLE)).count(SignalKind.STALL) == 1

    def test_looks_as_rare_as_checks_need_two_to_be_sure(self, job: Watched) -> None:
        job.trains(50)
        job.look(after=570, utilisation=IDLE)
        assert job.signals == []
        job.look(after=570, utilisation=IDLE)
        job.look(after=570, utilisation=IDLE)
        assert kinds(job.signals) == [SignalKind.STALL]

    @pytest.mark.parametrize("jump", [-7_200.0, 7_200.0, -1e9, 1e9])
    def test_a_clock_that_jumps_makes_no_stall(self, job: Watched, jump: float) -> None:
        job.trains(50)
        job.now += jump
        job.look(utilisation=IDLE)
        job.look(utilisation=IDLE)
        job.trains(20)
        assert job.signals == []

    def test_while_the_scheduler_brings_it_back_nothing_is_stalled(self, job: Watched) -> None:
        job.trains(50)
        assert job.silent(3_000, utilisation=IDLE, restart_underway=True) == []

    def test_a_guard_that_comes_back_starts_its_clock_anew(self, job: Watched) -> None:
        job.trains(50)
        stored = job.health.model_dump_json()
        job.health = Health.model_validate_json(stored)
        job.look(after=40_000, utilisation=IDLE)
        assert job.signals == []


class TestDegraded:
    def test_no_progress_with_lost_workers_in_the_log(self, job: Watched) -> None:
        job.trains(50)
        job.prints("(raylet) ray.exceptions.OwnerDiedError: ...\n")
        signals = job.silent(120, utilisation=BUSY)
        assert kinds(signals) == [SignalKind.DEGRADED]
        assert signals[0].detail == "no progress, and the log says that the owner of an object died"

    def test_progress_after_such_a_line_takes_it_back(self, job: Watched) -> None:
        job.trains(50)
        job.prints("(raylet) ray.exceptions.OwnerDiedError: ...\n")
        job.trains(50)
        assert job.silent(120, utilisation=BUSY) == []

    def test_bad_nodes_under_a_running_job(self, job: Watched) -> None:
        job.trains(5)
        job.trains(5, bad_nodes=("node\x1b[31m7",))
        assert [signal.detail for signal in job.signals] == ["runs on bad nodes: node [31m7"]


class TestNumerical:
    @pytest.mark.parametrize(
        ("text", "told"),
        [
            ("step 251 loss nan\nstep 252 loss nan\n", True),
            ("step 251 loss inf\nstep 252 loss nan\n", True),
            ("step 251 loss nan grad_norm nan\n", True),
            ("step 251 loss inf\n", False),
            ("step 251 loss nan\nstep 252 loss 2.0\n", False),
            ("step 251 loss 9.0 grad_norm inf\nstep 252 loss 9.0 grad_norm inf\nstep 253 loss 9.0 grad_norm inf\n", False),
            ("step 251 loss 0.0 grad_norm nan\nstep 252 loss 0.0 grad_norm nan\nstep 253 loss 0.0 grad_norm nan\n", True),
        ],
    )  # fmt: skip
    def test_losses_that_are_no_numbers(self, job: Watched, text: str, told: bool) -> None:
        job.trains(50)
        job.prints(text)
        assert kinds(job.look(utilisation=BUSY)) == [SignalKind.NUMERICAL] * told
        job.prints(text)
        assert job.look(utilisation=BUSY) == []

    def test_a_loss_that_became_a_number_again_ends_it(self, job: Watched) -> None:
        job.trains(5)
        job.prints("step 26 loss nan\nstep 27 loss nan\n")
        job.look(utilisation=BUSY)
        assert job.health.degraded
        job.prints("step 28 loss 2.0\n")
        job.look(utilisation=BUSY)
        assert not job.health.degraded


class TestThroughput:
    LINE = "iter {{}}: loss 2.0, time {ms}ms, mfu 6%\n"

    def test_a_collapse_against_the_jobs_own_baseline(self, job: Watched) -> None:
        job.trains(40, steps=1, line=self.LINE.format(ms=100))
        job.trains(20, steps=1, line=self.LINE.format(ms=900))
        (collapse,) = job.signals
        assert (collapse.kind, collapse.detail) == (
            SignalKind.THROUGHPUT_COLLAPSE,
            "9.0 times slower than usual",
        )
        job.trains(20, steps=1, line=self.LINE.format(ms=110))
        assert not job.health.degraded

    def test_slow_steps_do_not_become_the_new_normal(self, job: Watched) -> None:
        job.trains(40, steps=1, line=self.LINE.format(ms=100))
        job.trains(500, steps=1, line=self.LINE.format(ms=900))
        assert SignalKind.THROUGHPUT_COLLAPSE in job.health.open

    def test_a_slower_step_now_and_then_and_a_slow_start_are_none(self, job: Watched) -> None:
        job.trains(5, steps=1, line=self.LINE.format(ms=30_000))
        for _ in range(30):
            job.trains(4, steps=1, line=self.LINE.format(ms=100))
            job.trains(1, steps=1, line=self.LINE.format(ms=3_000))
        assert job.signals == []

    def test_the_baseline_outlives_a_restart(self, job: Watched) -> None:
        job.trains(40, steps=1, line=self.LINE.format(ms=100))
        job.restarts()
        job.trains(10, steps=1, line=self.LINE.format(ms=900))
        assert kinds(job.signals) == [SignalKind.THROUGHPUT_COLLAPSE]


class TestUtilisation:
    def test_low_use_for_five_minutes_is_told_once(self) -> None:
        job = Watched(Watching(low_gpu_percent=30))
        job.trains(20)
        job.trains(200, utilisation=Utilisation(gpu_percent=(20.0, 30.0)))
        assert kinds(job.signals) == [SignalKind.LOW_UTILISATION]
        assert job.signals[0].sources == ("gpu",)

    def test_it_is_off_by_default_and_unknown_is_not_low(self, job: Watched) -> None:
        job.trains(200, utilisation=IDLE)
        other = Watched(Watching(low_gpu_percent=30))
        other.trains(200, utilisation=Utilisation())
        assert job.signals == other.signals == []


class TestWaiting:
    def test_what_will_not_move_by_itself_is_stuck(self, job: Watched) -> None:
        (stuck,) = job.look(Liveness.PENDING, stuck="held by an administrator")
        assert (stuck.kind, stuck.detail) == (
            SignalKind.STUCK,
            "will not move by itself: held by an administrator",
        )
        assert job.look(Liveness.PENDING, stuck="held by an administrator") == []

    def test_waiting_for_ever_is_allowed_unless_the_owner_sets_a_deadline(self) -> None:
        patient, hasty = Watched(), Watched(Watching(pending_deadline=600))
        for _ in range(200):
            patient.look(Liveness.PENDING)
            hasty.look(Liveness.PENDING, reason="(Resources)")
        assert patient.signals == []
        assert kinds(hasty.signals) == [SignalKind.STUCK]


class TestEarlyStop:
    @pytest.mark.parametrize(("floor", "told"), [(0, []), (25, []), (26, [SignalKind.EARLY_STOP])])
    def test_a_clean_exit_below_the_floor_is_questioned(self, floor: int, told: list[SignalKind]) -> None:
        job = Watched(Watching(auto_stop_min_steps=floor))
        job.trains(5)
        assert kinds(job.look(Liveness.SUCCEEDED)) == told
        assert job.look(Liveness.SUCCEEDED) == []

    def test_a_clean_exit_at_an_unknown_step_is_told_and_not_judged(self) -> None:
        job = Watched(Watching(auto_stop_min_steps=26))
        assert kinds(job.look(Liveness.SUCCEEDED)) == [SignalKind.WARNING]
        assert job.look(Liveness.SUCCEEDED) == []


def test_a_warning_is_passed_on_once_for_each_text(job: Watched) -> None:
    for text in ("retry 1 of 3", "retry 1 of 3", "retry 2 of 3", "", "retry 1 of 3"):
        job.trains(1, warning=text)
    assert [signal.detail for signal in job.signals] == ["retry 1 of 3", "retry 2 of 3"]
    assert not job.health.degraded


FACTS = st.fixed_dictionaries(
    {
        "liveness": st.sampled_from(Liveness),
        "after": st.floats(-1e4, 1e4),
        "heartbeat_age": st.none() | st.floats(0, 1e4),
        "log_age": st.none() | st.floats(0, 1e4),
        "utilisation": st.sampled_from([BUSY, IDLE, CPU_BUSY, CPU_IDLE, Utilisation()]),
        "restart_underway": st.booleans(),
        "stuck": st.sampled_from(["", "held"]),
        "exit_code": st.none() | st.integers(0, 255),
    }
)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(FACTS, st.booleans()), max_size=40))
def test_no_series_of_looks_breaks_it_or_repeats_a_signal_of_one_incarnation(
    looks: list[tuple[dict[str, Any], bool]],
) -> None:
    job = Watched()
    for facts, steps in looks:
        if steps:
            job.step += 1
            job.prints(f"step {job.step}/900 loss 2\n")
        open_before = set(job.health.open)
        told = job.look(**facts)
        assert not {signal.kind for signal in told} & (open_before - {SignalKind.WARNING})
        if facts["liveness"] is Liveness.UNKNOWN:
            assert set(kinds(told)) <= {SignalKind.BLIND}
        if SignalKind.CRASH in kinds(told):
            assert facts["liveness"] is Liveness.FAILED
        job.health = Health.model_validate_json(job.health.model_dump_json())
