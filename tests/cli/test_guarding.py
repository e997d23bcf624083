"""What a guard on a terminal prints: its own news, not Prefect's on every run and task."""

from __future__ import annotations

import io
import logging

import pytest
from rich.console import Console

from trainguard.cli.guarding import _is_news, _listening, _OnTerminal

LINE = "2026-01-02T03:04:05Z  Enabled             1     ~32/600            -      10Mi     -                 [b]run"


def record(name: str, level: int, text: str) -> logging.LogRecord:
    return logging.LogRecord(name, level, "", 0, text, None, None)


@pytest.mark.parametrize(
    ("name", "level", "text", "shown"),
    [
        ("trainguard.tasks.tell", logging.INFO, "incident abcdefgh recovered", True),
        ("prefect.task_runs", logging.INFO, "Finished in state Completed()", False),
        ("prefect.flow_runs", logging.ERROR, "Finished in state Unrecoverable('for its owner')", False),
        ("prefect.flow_runs", logging.ERROR, "Encountered exception during execution", True),
        ("asyncio", logging.WARNING, "slow", True),
    ],
)
def test_of_prefects_own_lines_only_troubles_are_shown(
    name: str, level: int, text: str, *, shown: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PREFECT_LOGGING_LEVEL", raising=False)
    assert _is_news(record(name, level, text)) is shown


def test_who_asks_for_prefects_lines_gets_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_LOGGING_LEVEL", "debug")
    assert _is_news(record("prefect.task_runs", logging.INFO, "Finished in state Completed()"))


@pytest.mark.parametrize(("width", "line"), [(60, "  ".join(LINE.split())), (140, LINE)])
def test_the_status_line_is_kept_in_columns_where_they_fit(width: int, line: str) -> None:
    status = Console(file=io.StringIO(), width=width).status("")
    _OnTerminal(status).emit(record("trainguard.status", logging.INFO, LINE))
    assert status.status == line.replace("[b]", "\\[b]")


def test_logging_is_afterwards_as_it_was_before() -> None:
    before = logging.getLogger().handlers[:]
    handler = logging.NullHandler()
    with _listening(handler):
        assert handler in logging.getLogger().handlers
    assert logging.getLogger().handlers == before
