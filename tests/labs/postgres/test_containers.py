"""Workers in containers that share their host's name: nobody's process is taken for dead because it can't be seen."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.labs.postgres.composed import ROOT
from trainguard.tasks.context import holder_is_dead, lease_holder

pytestmark = pytest.mark.lab("postgres")
NAME_YOURSELF = (
    "from trainguard.tasks.context import lease_holder; import sys; print(lease_holder('run'), flush=True); "
    "sys.stdin.read()"
)


def named(*within: str) -> tuple[subprocess.Popen[str], str]:
    """Start a process that says under which name it holds a lease."""
    process = subprocess.Popen(
        [*within, sys.executable, "-c", NAME_YOURSELF],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    return process, process.stdout.readline().strip()


@pytest.mark.parametrize(
    ("within", "known_dead"), [((), True), (("unshare", "--pid", "--fork", "--mount-proc"), False)]
)
def test_only_a_process_that_can_be_seen_is_ever_seen_dead(within: tuple[str, ...], known_dead: bool) -> None:
    process, holder = named(*within)
    assert holder.endswith(":run")
    assert not holder_is_dead(holder), "it lives"
    process.communicate("")
    assert holder_is_dead(holder) is known_dead
    assert not holder_is_dead(lease_holder("other"))
