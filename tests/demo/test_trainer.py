"""The demo's job is a real one: it trains, it resumes, and what happens to it happens for real."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from trainguard.core.progress import Reading, read_progress
from trainguard.demo.faults import FaultKind
from trainguard.demo.scenario import MEBIBYTE, SCENARIO, TORCH_SCENARIO, PlannedIncident, Scenario
from trainguard.demo.trainer import LEAK, load, parse

DEADLINE = 60.0


class Work:
    """A work folder and the attempts made in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.running: list[subprocess.Popen[str]] = []

    @property
    def checkpoints(self) -> list[Path]:
        return sorted((self.folder / "checkpoints").glob("step-*.npz"))

    def start(self, *options: str, environment: dict[str, str] | None = None) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "trainguard.demo.trainer", "--work", str(self.folder), *options]
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, **(environment or {})},
        )
        self.running.append(process)
        return process

    def run(self, *options: str, environment: dict[str, str] | None = None) -> tuple[int, str]:
        process = self.start("--step-seconds", "0", *options, environment=environment)
        output, _ = process.communicate(timeout=DEADLINE)
        return process.returncode, output


@pytest.fixture
def work(tmp_path: Path) -> Iterator[Work]:
    work = Work(tmp_path)
    yield work
    for process in work.running:
        process.kill()
        process.communicate()


def losses(output: str) -> dict[int, str]:
    return {int(step): loss for step, loss in re.findall(r"^step (\d+)/\d+ loss (\S+)", output, re.MULTILINE)}


def lines_until(process: subprocess.Popen[str], wanted: str) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith(wanted):
            return
    raise AssertionError(f"it ended without {wanted!r}")


def test_it_learns_and_says_so_in_lines_that_are_understood(work: Work) -> None:
    code, output = work.run("--steps", "120")
    assert code == 0
    learned = losses(output)
    assert list(learned) == list(range(1, 121))
    assert float(learned[120]) < 0.9 * float(learned[1])
    reading = read_progress(output, Reading(), 1.0)
    assert str(reading.progress) == "~120/120"
    assert reading.checkpoint_steps == (20, 40, 60, 80, 100, 120)
    assert reading.pause is None


@pytest.mark.parametrize("told_by", ["option", "variable"])
def test_it_goes_on_from_a_checkpoint_as_if_nothing_had_been(
    work: Work, tmp_path: Path, told_by: str
) -> None:
    _, whole = work.run("--steps", "60")
    checkpoint = str(tmp_path / "checkpoints" / "step-000040.npz")
    if told_by == "option":
        code, second = work.run("--steps", "60", "--resume", checkpoint)
    else:
        code, second = work.run("--steps", "60", environment={"RESUME_FROM": checkpoint})
    assert code == 0
    assert f"resumed from {checkpoint} at step 40" in second
    assert losses(second) == {step: loss for step, loss in losses(whole).items() if step > 40}


def test_a_fault_happens_once_per_job_whatever_became_of_it(work: Work) -> None:
    code, output = work.run("--steps", "60", "--fault", "divergence@30", "--patience", "5")
    assert (code, "FloatingPointError: loss is not finite" in output) == (1, True)
    code, output = work.run(
        "--steps", "60", "--fault", "divergence@30", "--resume", str(work.checkpoints[-1])
    )
    assert code == 0
    assert "nan" not in output


def test_it_diverges_for_real_and_keeps_no_checkpoint_of_it(work: Work) -> None:
    _, output = work.run("--steps", "100", "--fault", "divergence@30", "--patience", "20")
    learned = losses(output)
    assert float(learned[31]) > 10
    assert learned[45] == "nan"
    assert [path.name for path in work.checkpoints] == ["step-000020.npz"]
    reading = read_progress(output, Reading(), 1.0)
    assert reading.nonfinite_losses > 10
    assert reading.nonfinite_grads > 10


def test_the_newest_checkpoint_is_a_stump_and_the_one_before_is_good(work: Work) -> None:
    code, output = work.run("--steps", "80", "--fault", "truncated-checkpoint@60")
    assert (code, "zipfile.BadZipFile" in output) == (1, True)
    good, stump = work.checkpoints[-2:]
    assert stump.name == "step-000060.npz"
    assert 0 < stump.stat().st_size < 0.6 * good.stat().st_size
    assert load(good)[1] == 40
    with pytest.raises(zipfile.BadZipFile):
        load(stump)
    assert work.run("--steps", "80", "--fault", "truncated-checkpoint@60", "--resume", str(good))[0] == 0
    assert load(stump)[1] == 60


def test_a_code_error_names_its_line_and_comes_back_with_every_attempt(work: Work) -> None:
    for options in ((), ("--resume", str(work.folder / "checkpoints" / "step-000040.npz"))):
        code, output = work.run("--steps", "60", "--fault", "code-error@50", *options)
        assert code == 1
        assert output.rstrip().endswith("KeyError: 'cooldown'")
        assert re.search(r'trainer\.py", line \d+, in _rate', output)


def test_a_deadlock_lives_and_does_nothing(work: Work) -> None:
    process = work.start("--steps", "60", "--step-seconds", "0", "--fault", "deadlock@30")
    lines_until(process, "step 29/")
    alive = psutil.Process(process.pid)
    end = time.monotonic() + DEADLINE
    while alive.num_threads() < 2 and time.monotonic() < end:
        time.sleep(0.05)
    before = sum(alive.cpu_times()[:2])
    time.sleep(1.5)
    assert process.poll() is None
    assert sum(alive.cpu_times()[:2]) - before < 0.1
    process.send_signal(signal.SIGTERM)
    assert process.wait(DEADLINE) == -signal.SIGTERM


def test_a_leak_takes_real_memory_at_the_planned_speed(work: Work) -> None:
    process = work.start("--steps", "100", "--step-seconds", "0.01", "--fault", "memory-leak@10")
    lines_until(process, "step 9/")
    alive = psutil.Process(process.pid)
    before = alive.memory_info().rss
    lines_until(process, "step 60/")
    assert alive.memory_info().rss - before > 45 * LEAK
    process.kill()


def test_a_damaged_checkpoint_is_not_resumed_from(work: Work) -> None:
    stump = work.folder / "stump.npz"
    stump.write_bytes(b"PK\x03\x04 nothing more")
    assert work.run("--steps", "20", "--resume", str(stump))[0] == 1


class TestScenario:
    @pytest.mark.parametrize("scenario", [SCENARIO, TORCH_SCENARIO], ids=["numpy", "torch"])
    def test_every_incident_comes_after_a_checkpoint_and_in_order(self, scenario: Scenario) -> None:
        steps = [incident.fault.step for incident in scenario.incidents]
        assert steps == sorted(steps)
        assert all(scenario.save_every < step < scenario.steps for step in steps)

    def test_its_options_are_those_of_the_trainer(self, tmp_path: Path) -> None:
        options = parse(["--work", str(tmp_path), *SCENARIO.arguments])
        assert tuple(options.fault) == tuple(incident.fault for incident in SCENARIO.incidents)
        assert (options.steps, options.save_every) == (SCENARIO.steps, SCENARIO.save_every)

    def test_the_stump_falls_on_a_step_with_a_checkpoint(self) -> None:
        assert self.planned(FaultKind.TRUNCATED_CHECKPOINT).fault.step % SCENARIO.save_every == 0

    def test_the_leak_meets_the_limit_within_three_seconds_and_before_the_next_fault(self) -> None:
        steps = (SCENARIO.memory_limit - 30 * MEBIBYTE) / LEAK
        assert steps * SCENARIO.step_seconds < 3
        leak, following = SCENARIO.incidents[:2]
        assert leak.fault.step + steps < following.fault.step

    def test_one_incident_asks_and_the_last_is_not_recovered(self) -> None:
        assert [incident.asks for incident in SCENARIO.incidents].count(True) == 1
        assert [incident.recovers for incident in SCENARIO.incidents] == [True, True, True, True, False]

    def planned(self, kind: FaultKind) -> PlannedIncident:
        return next(incident for incident in SCENARIO.incidents if incident.fault.kind is kind)


def test_nothing_but_the_command_line_knows_of_the_demo() -> None:
    root = Path(__file__).parents[2]
    sources = [
        path
        for folder in ("trainguard", "flows", "tasks", "blocks")
        for path in (root / folder).rglob("*.py")
        if not {"demo", "cli"} & set(path.relative_to(root).parts)
    ]
    assert len(sources) > 30
    assert [path.name for path in sources if "trainguard.demo" in path.read_text(encoding="utf-8")] == []


def test_two_ranks_under_torchrun_resume_after_one_was_killed(tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="needs PyTorch: pip install torch")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["-m", "trainguard.demo.torch_trainer", "--work", str(tmp_path), "--steps", "50"]
    command += ["--step-seconds", "0", "--fault", "rank-killed@30"]
    first = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert first.returncode == 1
    assert "Signal 9 (SIGKILL)" in first.stderr
    checkpoint = tmp_path / "checkpoints" / "step-000020.pt"
    second = subprocess.run(
        [*command, "--resume", str(checkpoint)], capture_output=True, text=True, timeout=120, check=True
    )
    assert "finished 50 steps" in second.stdout
