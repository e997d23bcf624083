"""Recovery scripts run as the owner wrote them: no data becomes a command, nothing is left behind."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import psutil
import pytest

import trainguard.rules
from trainguard.core.errors import ConfigError
from trainguard.core.handlers import match_handler
from trainguard.tasks.handler import OUTPUT_BYTES, ScriptResult, load_handlers, run_recovery_script

pytestmark = pytest.mark.filterwarnings("error")


def script(folder: Path, body: str, name: str = "recover.sh") -> Path:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return path


async def run(
    path: Path, *, timeout: float = 30.0, job_key: str = "local/here/job", checkpoint: str = ""
) -> ScriptResult:
    return await run_recovery_script(
        str(path),
        job_key=job_key,
        incident="abcd1234",
        exit_code=11,
        attempt=2,
        checkpoint=checkpoint,
        timeout=timeout,
    )


async def test_a_script_learns_what_it_needs_and_its_output_is_kept(tmp_path: Path) -> None:
    path = script(tmp_path, 'env | grep ^TRAINGUARD_ | sort; echo "to stderr" >&2; pwd')
    result = await run(path, checkpoint="/ckpt/step 100")
    assert result.succeeded
    for line in (
        "TRAINGUARD_ATTEMPT=2",
        "TRAINGUARD_CHECKPOINT=/ckpt/step 100",
        "TRAINGUARD_EXIT_CODE=11",
        "TRAINGUARD_INCIDENT=abcd1234",
        "TRAINGUARD_JOB=local/here/job",
        "to stderr",
        str(tmp_path),
    ):
        assert line in result.output.split("\n")


async def test_no_name_of_a_job_or_script_becomes_a_command(tmp_path: Path) -> None:
    bait = "$(touch pwned) `touch pwned`; touch pwned & \"'\n touch pwned"
    path = script(tmp_path, 'printf "%s" "$TRAINGUARD_JOB"', name="re cover; touch pwned $(touch pwned).sh")
    result = await run(path, job_key=bait)
    assert result.succeeded
    assert bait in result.output
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


async def test_a_failing_script_tells_its_exit_code(tmp_path: Path) -> None:
    result = await run(script(tmp_path, "echo broken; exit 7"))
    assert (result.exit_code, result.succeeded, result.output) == (7, False, "broken")


async def test_a_script_that_went_away_is_a_failure_and_no_accident(tmp_path: Path) -> None:
    path = script(tmp_path, "true")
    path.unlink()
    assert (await run(path)).exit_code == 127


async def test_output_is_masked_and_its_end_is_kept(tmp_path: Path) -> None:
    path = script(tmp_path, "yes 0123456789 | head -c 3000000; echo; echo password=hunter2secret; echo last")
    result = await run(path)
    assert result.succeeded
    assert "hunter2secret" not in result.output
    assert result.output.endswith("password=[masked]\nlast")
    assert len(result.output) <= OUTPUT_BYTES
    assert set(result.output.splitlines()[1:-3]) == {"0123456789"}


async def test_a_secret_that_is_printed_in_two_pieces_is_masked(tmp_path: Path) -> None:
    path = script(tmp_path, "printf password=hunter2; sleep 0.3; echo secret")
    assert (await run(path)).output == "password=[masked]"


async def test_a_script_gets_no_input_to_wait_for(tmp_path: Path) -> None:
    assert (await run(script(tmp_path, "cat; echo done"))).output == "done"


def alive(marker: str) -> list[int]:
    found = []
    for process in psutil.process_iter(["cmdline", "status"]):
        if marker in (process.info["cmdline"] or []) and process.info["status"] != psutil.STATUS_ZOMBIE:
            found.append(process.pid)
    return found


async def test_a_script_that_hangs_and_ignores_requests_is_ended_with_its_children(tmp_path: Path) -> None:
    marker = f"86{os.getpid()}"
    path = script(tmp_path, f"trap '' TERM INT; sleep {marker} & sleep {marker}")
    result = await asyncio.wait_for(run(path, timeout=0.5), 60)
    assert (result.timed_out, result.exit_code, result.succeeded) == (True, None, False)
    assert alive(marker) == []


async def test_a_cancelled_guard_ends_its_script(tmp_path: Path) -> None:
    marker = f"87{os.getpid()}"
    running = asyncio.create_task(run(script(tmp_path, f"trap '' TERM; sleep {marker} & sleep {marker}")))
    while not alive(marker):
        await asyncio.sleep(0.05)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    async with asyncio.timeout(30):  # a killed process takes a moment to go
        while alive(marker):
            await asyncio.sleep(0.05)


def test_the_shipped_example_can_be_used() -> None:
    handlers = load_handlers(Path(trainguard.rules.__file__).parent / "examples" / "failure_handlers.yaml")
    match = match_handler(handlers, 11, {})
    assert match is not None
    assert Path(match.rule.recovery_script).is_absolute()


@pytest.mark.parametrize(
    ("body", "mode", "problem"),
    [
        (None, 0o755, "can't be read"),
        ("a: [", 0o755, "no valid YAML"),
        ("- a", 0o755, "must be a mapping"),
        (
            "failure_handlers: [{name: a, rules: [{exit_codes: [1], recovery_script: gone.sh}]}]",
            0o755,
            "is no file",
        ),
        (
            "failure_handlers: [{name: a, rules: [{exit_codes: [1], recovery_script: run.sh}]}]",
            0o644,
            "executed",
        ),
    ],
)
def test_a_file_that_cannot_be_used_is_named(
    tmp_path: Path, body: str | None, mode: int, problem: str
) -> None:
    path = tmp_path / "own.yaml"
    if body is not None:
        path.write_text(body)
    script(tmp_path, "true", name="run.sh").chmod(mode)
    with pytest.raises(ConfigError, match=problem):
        load_handlers(path)


def test_an_empty_file_has_no_handlers(tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text("")
    assert load_handlers(tmp_path / "own.yaml") == ()
