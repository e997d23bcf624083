"""Excerpts of real programs' logs, with their origin: what the catalogue says of lines it was not written from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from trainguard.cli.diagnose import answer
from trainguard.core.diagnosis import Examination, Stream
from trainguard.core.evidence import EvidenceKind
from trainguard.core.observation import LogSource
from trainguard.rules import load_catalogue

CATALOGUE = load_catalogue()
KINDS = {
    "log": EvidenceKind.LOG,
    "dmesg": EvidenceKind.KERNEL,
    "k8s_events": EvidenceKind.EVENTS,
    "status": EvidenceKind.STATUS,
    "slurm": EvidenceKind.ACCOUNTING,
}
CASES: list[dict[str, Any]] = [
    case
    for path in sorted((Path(__file__).parent / "cases").glob("*.yaml"))
    for case in yaml.safe_load(path.read_text(encoding="utf-8"))
]
HEALTHY = [case for case in CASES if case["label"] == "healthy"]
FAILED = [case for case in CASES if case["label"] != "healthy"]


def said(case: dict[str, Any]) -> dict[str, Any]:
    stream = Stream(LogSource(name=case["id"]), KINDS[case["kind"]], (case["text"],))
    return answer(Examination((stream,), CATALOGUE).diagnosis)


def share(cases: list[dict[str, Any]], right: list[bool]) -> float:
    return sum(right) / len(cases)


def test_every_case_names_its_origin_and_cites_its_own_text() -> None:
    assert [case["id"] for case in CASES if not case["origin"]] == []
    assert [case["id"] for case in FAILED if case["evidence"] not in case["text"]] == []
    assert len({case["id"] for case in CASES}) == len(CASES)


@pytest.mark.parametrize("case", HEALTHY, ids=lambda case: case["id"])
def test_a_healthy_log_raises_nothing(case: dict[str, Any]) -> None:
    assert said(case)["label"] in {"healthy", "unknown"}


def test_nearly_every_healthy_log_is_called_healthy() -> None:
    assert share(HEALTHY, [said(case)["label"] == "healthy" for case in HEALTHY]) >= 0.9


def test_no_failure_is_called_healthy() -> None:
    assert [case["id"] for case in FAILED if said(case)["label"] == "healthy"] == []


def test_classes_actions_and_restarts_are_right_for_nearly_all() -> None:
    answers = [(case, said(case)) for case in FAILED]
    timed = [(case, one) for case, one in answers if case["transient"] is not None]
    shares = {
        "class": share(FAILED, [one["label"] == case["label"] for case, one in answers]),
        "action": share(FAILED, [one["action"] == case["action"] for case, one in answers]),
        "restart": sum(one["transient"] is case["transient"] for case, one in timed) / len(timed),
    }
    assert shares["class"] >= 0.95
    assert shares["action"] >= 0.9
    assert shares["restart"] >= 0.95
