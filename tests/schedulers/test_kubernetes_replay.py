"""Every recorded sequence of Kubernetes 1.36.2 and 1.20.2 is read as it was meant."""

from __future__ import annotations

import os
import random

import pytest

from tests.schedulers.kubernetes_replay import (
    FIXTURES,
    VERSIONS,
    Row,
    recorded,
    replay,
    top_kind,
    transitions,
    usable,
)
from trainguard.core.observation import Liveness

SCENARIOS = [(version, name) for version in VERSIONS for name in sorted(recorded(version))]
NO_OBJECTS = {"http-403-401-rbac", "http-409-422-404-400-429"}


def expected(version: str) -> dict[str, list[str]]:
    sections: dict[str, list[str]] = {}
    current = ""
    for line in (FIXTURES / f"transitions-{version}.txt").read_text("utf-8").splitlines():
        if line.startswith("  "):
            sections[current].append(line.strip())
        elif line:
            current = line
            sections[current] = []
    return sections


@pytest.mark.skipif("TG_REWRITE" not in os.environ, reason="set TG_REWRITE=1 to write the expectations anew")
@pytest.mark.parametrize("version", VERSIONS)
def test_write_the_expectations_anew(version: str) -> None:
    parts = [
        "\n".join([name, *(f"  {line}" for line in transitions(rows))])
        for name, rows in sorted(recorded(version).items())
    ]
    (FIXTURES / f"transitions-{version}.txt").write_text("\n\n".join(parts) + "\n", "utf-8")


@pytest.mark.parametrize(("version", "name"), SCENARIOS)
def test_a_recorded_sequence_is_read_step_by_step(version: str, name: str) -> None:
    assert transitions(recorded(version)[name]) == expected(version)[name]


ENDS = {
    "job-success": (Liveness.SUCCEEDED, "Complete"),
    "job-success-parallel3": (Liveness.SUCCEEDED, "Complete"),
    "job-successpolicy": (Liveness.SUCCEEDED, "Complete"),
    "job-fail-then-success-backofflimit-2": (Liveness.SUCCEEDED, "Complete"),
    "job-podfailurepolicy-ignore-disruption": (Liveness.SUCCEEDED, "Complete"),
    "job-fail-backofflimit-0": (Liveness.FAILED, "BackoffLimitExceeded"),
    "job-fail-backofflimit-2": (Liveness.FAILED, "BackoffLimitExceeded"),
    "job-deadline-exceeded": (Liveness.FAILED, "DeadlineExceeded"),
    "job-podfailurepolicy-failjob-42": (Liveness.FAILED, "PodFailurePolicy"),
    "job-indexed-backofflimitperindex-one-failed": (Liveness.FAILED, "FailedIndexes"),
    "job-drain-backofflimit-0": (Liveness.FAILED, "BackoffLimitExceeded"),
    "job-drain-backofflimit-1": (Liveness.RUNNING, "Running"),
    "job-preempted-podfailurepolicy-ignore": (Liveness.RUNNING, "Running"),
    "job-imagepull-backoff": (Liveness.PENDING, "ImagePullBackOff"),
    "pod-crashloop-oom": (Liveness.FAILED, "CrashLoopBackOff"),
    "pod-evicted-by-kubelet": (Liveness.FAILED, "Evicted"),
    "pod-unschedulable": (Liveness.PENDING, "Unschedulable"),
    "deployment-created-with-0": (Liveness.PENDING, "ScaledToZero"),
    "deployment-progressdeadline-from-start": (Liveness.FAILED, "ProgressDeadlineExceeded"),
    "deployment-rollout-stuck": (Liveness.RUNNING, "Available"),
    "statefulset-imagepull": (Liveness.FAILED, "ImagePullBackOff"),
    "pytorchjob-succeed": (Liveness.SUCCEEDED, "PyTorchJobSucceeded"),
    "pytorchjob-restart-then-fail": (Liveness.FAILED, "PyTorchJobFailed"),
    "mpijob-fail": (Liveness.FAILED, "MPIJobFailed"),
    "tfjob-fail": (Liveness.FAILED, "TFJobFailed"),
    "jobset-restart-then-failed": (Liveness.FAILED, "ReachedMaxRestarts"),
    "trainjob-complete": (Liveness.SUCCEEDED, "AllJobsCompleted"),
    "trainjob-failed": (Liveness.FAILED, "FailedJobs"),
}


@pytest.mark.parametrize("name", sorted(ENDS))
def test_a_recorded_sequence_ends_as_it_did(name: str) -> None:
    """Written by hand from what the driver did, not from what the reader says."""
    last = list(replay(recorded("1.36.2")[name]))[-1]
    assert (last.told.liveness, last.told.native) == ENDS[name]


NEVER_FAILED = [
    "job-success",
    "job-success-parallel3",
    "job-successpolicy",
    "job-suspended-resume",
    "job-fail-then-success-backofflimit-2",
    "job-podfailurepolicy-ignore-disruption",
    "job-preempted-podfailurepolicy-ignore",
    "job-drain-backofflimit-1",
    "deployment-created-with-0",
    "deployment-scale-0",
    "deployment-rollout-stuck",
    "jobset-completed",
    "jobset-suspended-resume",
    "mpijob-succeed",
    "pytorchjob-succeed",
    "pytorchjob-suspend-resume-delete-recreate",
    "tfjob-succeed",
    "trainjob-complete",
    "trainjob-suspended-resume",
    "pod-unknown",
]


def mixed(rows: list[Row], seed: int) -> list[Row]:
    """The same events as another watcher may get them: order is exact within a kind only."""
    dice = random.Random(seed)
    lanes: dict[str, list[Row]] = {}
    for row in usable(rows):
        lanes.setdefault(row["kind"], []).append(row)
    lag = {kind: dice.uniform(0, 1.5) for kind in lanes}
    late = [{**row, "t": row["t"] + lag[kind]} for kind, lane in lanes.items() for row in lane]
    return sorted(late, key=lambda row: float(row["t"]))


@pytest.mark.parametrize("name", NEVER_FAILED)
def test_what_never_failed_is_never_read_as_failed_however_the_watches_lag(name: str) -> None:
    for seed in range(12):
        for step in replay(mixed(recorded("1.36.2")[name], seed)):
            assert step.told.liveness is not Liveness.FAILED, (seed, step)


@pytest.mark.parametrize(("version", "name"), SCENARIOS)
def test_the_end_does_not_depend_on_which_watch_was_first(version: str, name: str) -> None:
    rows = recorded(version)[name]
    if name in NO_OBJECTS or not top_kind(usable(rows)):
        return
    ends = {step.uid: step.told for step in replay(rows)}
    for seed in range(4):
        for step in replay(mixed(rows, seed)):
            last = step
        same = ends[last.uid]
        assert (last.told.liveness, last.told.exit_code) == (same.liveness, same.exit_code)


def test_a_job_with_retries_left_is_kubernetes_own_business() -> None:
    steps = list(replay(recorded("1.36.2")["job-fail-backofflimit-2"]))
    retrying = [step for step in steps if "1 of 2 retries" in step.told.warning]
    assert any(step.told.restart_underway for step in retrying)
    assert all(step.told.liveness is not Liveness.FAILED for step in retrying)


def test_a_job_on_a_dead_node_is_failed_and_says_which_node_stands_in_the_way() -> None:
    steps = list(replay(recorded("1.36.2")["job-node-dead-out-of-service"]))
    stuck = [step.told for step in steps if step.told.stuck]
    assert stuck
    assert all(told.native == "FailureTarget" and told.bad_nodes == ("node-dead-1",) for told in stuck)


def test_a_recreated_name_is_another_object() -> None:
    for name in (
        "job-delete-background-recreate",
        "job-delete-foreground-recreate",
        "job-delete-orphan-recreate",
    ):
        assert len({step.uid for step in replay(recorded("1.36.2")[name])}) == 2
