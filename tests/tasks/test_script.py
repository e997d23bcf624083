"""A recovery script is run once: what a guard before this one started is looked up, never repeated."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, cast

import pytest

from trainguard.core.action import Action, ActionKind, Fence, OutcomeStatus
from trainguard.core.decision import Intent
from trainguard.core.handlers import FailureHandler, HandlerRule
from trainguard.core.job import Incarnation, Job, JobRef
from trainguard.tasks.context import GuardContext
from trainguard.tasks.script import perform_script, what_became

REF = JobRef(scheduler="local", cluster="here", id="j")
FENCE = Fence(token="tg-abcd1234-0-0", incident="abcd1234", lease=1)


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    path = tmp_path / "recover.sh"
    path.write_text("#!/bin/sh\necho ran >>runs\nexit $TRAINGUARD_EXIT_CODE\n")
    path.chmod(0o755)
    return path


def context(script: Path, timeout: float = 20.0) -> GuardContext:
    rule = HandlerRule(exit_codes=(42,), recovery_script=str(script), timeout=timeout)
    nothing = cast(Any, None)
    return GuardContext(
        job=Job(ref=REF, name="j"),
        policy=nothing,
        watch=nothing,
        ledger=nothing,
        lease=nothing,
        catalogue=nothing,
        handlers=(FailureHandler(name="known", rules=(rule,)),),
    )


def action(script: Path, **changes: Any) -> Action:
    fields = {"script": str(script), "handler": "known#1", "exit_code": 42, **changes}
    return Action(
        kind=ActionKind.RUN_RECOVERY_SCRIPT, incarnation=Incarnation(job=REF, token="j.1"), **fields
    )


def intent(script: Path, at: float) -> Intent:
    return Intent(fence=FENCE, job_key=REF.key, action=action(script), at=at)


@pytest.mark.parametrize(
    ("exit_code", "status", "words"),
    [(0, OutcomeStatus.DONE, ""), (3, OutcomeStatus.REFUSED, "it exited with 3")],
)
async def test_how_a_script_ended_is_known_to_the_next_guard(
    script: Path, exit_code: int, status: OutcomeStatus, words: str
) -> None:
    guard = context(script)
    done = await perform_script(guard, action(script, exit_code=exit_code), FENCE)
    assert done.status is status
    found = await what_became(guard, intent(script, time.time()))
    assert found.status is status
    assert words in found.detail
    assert (script.parent / "runs").read_text() == "ran\n"


async def test_a_script_of_which_nothing_is_known_counts_as_not_done_once_its_time_is_over(
    script: Path,
) -> None:
    found = await what_became(context(script), intent(script, time.time() - 60))
    assert found.status is OutcomeStatus.REFUSED
    assert "whether it did its work is not known" in found.detail
    assert not (script.parent / "runs").exists()


async def test_a_mark_that_can_not_be_read_leaves_it_unknown_what_became_of_the_script(
    script: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "no-folder").touch()
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "no-folder"))
    found = await what_became(context(script), intent(script, time.time() - 60))
    assert found.status is OutcomeStatus.REFUSED
    assert "whether it did its work is not known" in found.detail


async def test_a_script_that_was_stopped_says_so(script: Path) -> None:
    script.write_text("#!/bin/sh\nsleep 30\n")
    guard = context(script, timeout=0.3)
    assert "did not end within" in (await perform_script(guard, action(script), FENCE)).detail
    assert "stopped in the middle" in (await what_became(guard, intent(script, time.time()))).detail


@pytest.mark.parametrize("changes", [{"handler": "gone#1"}, {"exit_code": None}])
async def test_a_script_that_the_rules_file_no_longer_names_is_not_run(
    script: Path, changes: dict[str, Any]
) -> None:
    outcome = await perform_script(context(script), action(script, **changes), FENCE)
    assert outcome.status is OutcomeStatus.REFUSED
    assert not (script.parent / "runs").exists()


async def test_a_script_that_was_exchanged_since_the_decision_is_not_run(
    script: Path, tmp_path: Path
) -> None:
    outcome = await perform_script(context(tmp_path / "other.sh"), action(script), FENCE)
    assert outcome.status is OutcomeStatus.REFUSED
    assert not (script.parent / "runs").exists()
