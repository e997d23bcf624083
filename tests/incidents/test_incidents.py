"""Every folder here is an incident; its expect.yaml says what must be found."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from trainguard.cli.diagnose import expand, stream_of
from trainguard.core.diagnosis import Catalogue, diagnose
from trainguard.rules import load_catalogue

FOLDERS = sorted(path.parent for path in Path(__file__).parent.glob("*/expect.yaml"))


@pytest.fixture(scope="module")
def catalogue() -> Catalogue:
    return load_catalogue()


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_an_incident_is_diagnosed_as_expected(folder: Path, catalogue: Catalogue) -> None:
    expected: dict[str, Any] = yaml.safe_load((folder / "expect.yaml").read_text())
    assert expected.pop("origin"), "say where the lines come from"
    diagnosis = diagnose([stream_of(path) for path in expand([str(folder)])], catalogue)
    faults = expected.pop("fault")
    assert diagnosis.fault in (faults if isinstance(faults, list) else [faults]), diagnosis
    first = diagnosis.suspects[0] if diagnosis.suspects else None
    found = {
        "rank": first.rank if first else None,
        "node": first.node if first else "",
        "transient": diagnosis.transient,
        "action": diagnosis.actions[0].value if diagnosis.actions else "none",
        "code_location": diagnosis.code_location,
    }
    for key, value in expected.items():
        if key in found:
            assert found[key] == value, (key, diagnosis)
    assert diagnosis.confidence <= expected.get("max_confidence", 1.0)
    assert not set(expected.get("forbidden_actions", ())) & {a.value for a in diagnosis.actions}
    assert set(expected.get("consequences", ())) <= {f.fault.value for f in diagnosis.consequences}
    assert all(citation.text for citation in diagnosis.citations)
