from __future__ import annotations

from collections.abc import Callable

import pytest

from trainguard.core.diagnosis import Catalogue, Examination, Rule, Stream
from trainguard.core.evidence import EvidenceKind
from trainguard.core.observation import LogSource
from trainguard.rules import load_catalogue


@pytest.fixture(scope="session")
def catalogue() -> Catalogue:
    """The whole catalogue that ships."""
    return load_catalogue()


def rule(**fields: object) -> Rule:
    """A row with what every row needs."""
    base: dict[str, object] = {
        "id": "TEST-001",
        "name": "test-condition",
        "fault": "code_bug",
        "rank": 40,
        "scope": "job",
        "transient": False,
        "explain": "What the test wants to see.",
        "actions": ["fix_code_or_config"],
    }
    return Rule.model_validate(base | fields)


def log(text: str | bytes, name: str = "job.log", kind: str = "log", **source: object) -> Stream:
    """One stream of one block."""
    return Stream(LogSource.model_validate({"name": name, **source}), EvidenceKind(kind), (text,))


Small = Callable[..., Examination]

OOM = rule(id="TEST-010", name="oom", fault="gpu_oom", rank=25, scope="job", any_of=["CUDA out of memory"])
WATCHDOG = rule(
    id="TEST-080",
    name="watchdog",
    fault="nccl_comm",
    rank=82,
    cascade=True,
    any_of=["Watchdog caught collective operation timeout"],
)
XID = rule(
    id="TEST-020",
    name="xid",
    fault="gpu_hardware",
    rank=10,
    scope="node",
    any_of=[r"NVRM: Xid \([^)]{1,40}\): 79\b"],
    actions=["restart_excluding_node", "drain_node"],
)
ERRORS = rule(
    id="TEST-030",
    name="errors-counted",
    fault="data",
    rank=50,
    any_of=[r"corrupt records: (?P<n>\d+)"],
    value={"group": "n", "above": 0},
)
FINE = rule(id="TEST-090", name="said-fine", fault="healthy", rank=90, any_of=["not a failure"], actions=[])


def examine(*streams: Stream | str, rules: tuple[Rule, ...] = (), **kwargs: object) -> Examination:
    """Examine with a small catalogue, so that a test shows the engine and not the rules."""
    chosen = rules or (OOM, WATCHDOG, XID, ERRORS, FINE)
    ready = [log(s) if isinstance(s, str) else s for s in streams]
    return Examination(ready, Catalogue(chosen), **kwargs)  # type: ignore[arg-type]
