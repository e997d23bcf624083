"""The one line of every check."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainguard.core.observation import Progress, Utilisation
from trainguard.core.status_line import HEADER, status_line

AT = 1_767_312_245.0


def test_the_line_holds_time_status_attempt_step_gpu_memory_fix_and_run() -> None:
    line = status_line(
        at=AT,
        status="Enabled",
        attempt=2,
        progress=Progress(step=4600, total=5155),
        utilisation=Utilisation(gpu_percent=(96.0, 98.0), gpu_memory_percent=(81.0,), memory_bytes=2**31),
        fix="installed einops",
        run="https://wandb.ai/t/p/runs/a",
    )
    assert line.split() == [
        "2026-01-02T00:04:05Z",
        "Enabled",
        "2",
        "~4600/5155",
        "97%",
        "81%",
        "installed_einops",
        "https://wandb.ai/t/p/runs/a",
    ]


def test_what_is_unknown_is_a_dash() -> None:
    assert status_line(at=AT, status="Degraded").split()[2:] == ["-"] * 6
    assert "~4600/unknown" in status_line(at=AT, status="Enabled", progress=Progress(step=4600))


@pytest.mark.parametrize(("held", "shown"), [(300 * 2**20, "300Mi"), (3 * 2**30, "3.0Gi"), (0, "0Mi")])
def test_without_gpu_memory_the_memory_of_the_processes_is_shown(held: int, shown: str) -> None:
    assert (
        status_line(at=AT, status="Enabled", utilisation=Utilisation(memory_bytes=held)).split()[5] == shown
    )


def test_values_of_two_lines_stand_under_each_other() -> None:
    short = status_line(at=AT, status="Enabled", progress=Progress(step=1), run="run")
    long = status_line(
        at=AT, status="AwaitingApproval", attempt=12, progress=Progress(step=45_000, total=51_550), run="run"
    )
    assert short.rindex("run") == long.rindex("run") == HEADER.index("run")


@given(st.text(max_size=300), st.text(max_size=300))
def test_text_from_a_job_is_reduced_to_plain_characters_on_one_line(fix: str, run: str) -> None:
    line = status_line(at=AT, status="Enabled", fix=fix, run=run)
    assert line.isascii()
    assert line.isprintable()
    assert not set(line) & set("[]<>()`*|!\\'\"{}$^")
    assert len(line.split()) == 8
    assert len(line) < 300
