"""Every command explains itself, prints facts as JSON with the same names always, and ends with the code it promises."""

from __future__ import annotations

import asyncio
import io
import json
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pytest
from typer.main import get_command

from tests.flows.simulation import SimulatedClusterBlock, Simulation
from tests.ledger import facts
from trainguard.cli import main as command_line
from trainguard.cli.rules import rules_app
from trainguard.core.errors import UnreachableError, UserError
from trainguard.core.verdict import FaultClass
from trainguard.ledger.ledger import Ledger

RULES = sorted(getattr(get_command(rules_app), "commands"))  # noqa: B009 - click's type does not say that it is a group
OOM = "[rank3]: torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 4.35 GiB.\n"
FACTS = (
    *("run", "watch", "patrol", "status", "incidents", "approve", "diagnose", "doctor", "demo"),
    *(f"rules {name}" for name in ("list", "explain", "test", "lint")),
)
"""The commands that print facts."""


class Done(NamedTuple):
    """How a command ended, and what it said."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Run = Callable[..., Done]


@pytest.fixture
def run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, ledger_url: str
) -> Run:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr("sys.stdin", io.StringIO())

    def go(*words: str) -> Done:
        monkeypatch.setattr(sys, "argv", ["trainguard", *words])
        code: int | str | None = 0
        try:
            command_line.main()
        except SystemExit as ended:
            code = ended.code
        return Done(int(code or 0), *capsys.readouterr())

    return go


@pytest.mark.parametrize("name", command_line.COMMANDS)
def test_each_command_says_what_it_does(name: str, run: Run) -> None:
    done = run(name, "--help")
    assert (done.code, done.err) == (0, "")
    assert f"trainguard {name} [OPTIONS]" in done.out or f"trainguard {name} COMMAND" in done.out
    assert "--help" in done.out


@pytest.mark.parametrize("name", RULES)
def test_each_command_on_rules_says_what_it_does(name: str, run: Run) -> None:
    done = run("rules", name, "--help")
    assert (done.code, done.err) == (0, "")
    assert f"rules {name}" in done.out


def test_the_list_of_commands_names_them_all_and_the_exit_codes(run: Run) -> None:
    done = run("--help")
    assert done.code == 0
    for name, (_, summary) in command_line.COMMANDS.items():
        assert name in done.out and summary in done.out
    assert "0 done" in done.out and "130 or 143 interrupted" in done.out


@pytest.mark.parametrize("words", FACTS)
def test_every_command_that_prints_facts_takes_json(words: str, run: Run) -> None:
    assert "--json" in run(*words.split(), "--help").out


def test_the_version_is_told(run: Run) -> None:
    done = run("--version")
    assert done.code == 0 and done.out.startswith("trainguard ")


@pytest.mark.parametrize(
    ("words", "code"),
    [
        ((), 2),
        (("nonsense",), 2),
        (("status",), 0),
        (("status", "--nonsense"), 2),
        (("incidents",), 0),
        (("incidents", "zzzzzzzz"), 2),
        (("approve",), 0),
        (("approve", "zzzzzzzz-0"), 2),
        (("run",), 2),
        (("run", "--minutes", "x", "--", "true"), 2),
        (("watch", "."), 2),
        (("watch",), 2),
        (("patrol", "--config", "nowhere.toml", "*"), 2),
        (("patrol", "--preset", "nonsense", "*"), 2),
        (("diagnose",), 2),
        (("diagnose", "nowhere.log"), 2),
        (("diagnose", "oom.log"), 0),
        (("rules",), 2),
        (("rules", "list"), 0),
        (("rules", "list", "--rules", "nowhere.yaml"), 2),
        (("rules", "explain", "XID-079"), 0),
        (("rules", "explain", "NOPE-000"), 2),
        (("rules", "test", "oom.log"), 0),
        (("rules", "test", "nowhere.log"), 2),
        (("rules", "docs", "--check", "--output", "nowhere.md"), 1),
    ],
)
def test_each_end_has_its_code(words: tuple[str, ...], code: int, run: Run, tmp_path: Path) -> None:
    (tmp_path / "oom.log").write_text(OOM)
    done = run(*words)
    assert done.code == code, done
    assert "Traceback" not in done.err
    if code:
        assert done.err or "Usage" in done.out


@pytest.mark.parametrize(
    ("problem", "code", "said"),
    [
        (UserError("the field is wrong", "mend it"), 2, "mend it"),
        (UnreachableError("the cluster is away"), 1, "the cluster is away"),
        (KeyboardInterrupt(), 130, ""),
    ],
)
def test_what_a_command_meets_is_told_by_its_code(
    problem: BaseException, code: int, said: str, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def meets() -> None:
        raise problem

    module = ModuleType("meeting")
    module.meets = meets  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "meeting", module)
    monkeypatch.setitem(command_line.COMMANDS, "meets", ("meeting:meets", "Meet something."))
    done = run("meets")
    assert done.code == code and said in done.err and "Traceback" not in done.err


def recorded(write: Callable[[Ledger], Awaitable[object]]) -> None:
    async def work() -> None:
        async with await Ledger.open() as ledger:
            await write(ledger)

    asyncio.run(work())


async def a_late_question(ledger: Ledger) -> None:
    await ledger.register_job(facts.JOB, "{}", facts.NOW)
    lease = await ledger.acquire_lease(facts.KEY, "guard", facts.NOW, 60)
    await ledger.open_incident(lease, facts.incident())
    await ledger.ask(lease, facts.request(asked_at=1.0, deadline=2.0))


def test_an_answer_that_does_not_count_fails_and_says_why(run: Run) -> None:
    recorded(a_late_question)
    done = run("approve", "inc00001-1", "--json")
    assert done.code == 1 and "too late" in done.err
    assert done.json["accepted"] is False


def test_open_questions_are_listed_by_job_with_what_would_be_done(run: Run) -> None:
    recorded(a_late_question)
    listed = run("approve").out
    assert "inc00001-1  llama  restart" in listed and "trainguard approve QUESTION" in listed
    assert "llama waits for your answer: trainguard approve inc00001-1" in run("status").out


@pytest.mark.parametrize("command", ["status", "incidents", "approve"])
def test_a_narrow_terminal_folds_what_it_shows_and_cuts_nothing(
    command: str, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded(a_late_question)
    monkeypatch.setenv("COLUMNS", "60")
    shown = run(command).out
    assert "…" not in shown
    assert max(len(line) for line in shown.splitlines() if not line.startswith("Answer with")) <= 60


async def three_incidents(ledger: Ledger) -> None:
    """Two jobs of one name's cluster accuse n2, one of them also n1, and one incident accuses nobody."""
    for name, job, nodes, at in [
        ("inc00001", facts.JOB, ("n1", "n2"), facts.NOW),
        ("inc00002", facts.JOB.model_copy(update={"ref": OTHER, "name": "bert"}), ("n2",), facts.NOW + 9),
        ("inc00003", facts.JOB, (), facts.NOW),
    ]:
        await ledger.register_job(job, "{}", facts.NOW)
        lease = await ledger.acquire_lease(job.key, "guard", facts.NOW, 60)
        await ledger.open_incident(lease, facts.incident(name, job_key=job.key))
        await ledger.add_node_events(lease, name, nodes, FaultClass.GPU_HARDWARE, at)


OTHER = facts.REF.model_copy(update={"id": "bert"})


@pytest.mark.parametrize(
    ("words", "found", "jobs"),
    [
        (("--node", "n2"), ["inc00002", "inc00001"], 2),
        (("--node", "n1"), ["inc00001"], 1),
        (("--node", "n2", "--job", "bert"), ["inc00002"], 1),
        (("--node", "n9"), [], 0),
    ],
)
def test_the_incidents_of_a_node_are_listed(
    words: tuple[str, ...], found: list[str], jobs: int, run: Run
) -> None:
    recorded(three_incidents)
    told = run("incidents", *words, "--json").json
    assert [row["incident"] for row in told["incidents"]] == found
    assert [(node["node"], node["jobs"], node["faults"]) for node in told["nodes"]] == [
        (words[1], jobs, ["gpu_hardware"]) for _ in found[:1]
    ]
    shown = run("incidents", *words).out
    assert all(one in shown for one in found) and "inc00003" not in shown
    assert (f"{words[1]}: gpu_hardware; incidents: {len(found)}, jobs: {jobs}" in shown) == bool(found)


def test_the_names_of_facts_stay(run: Run, tmp_path: Path) -> None:
    recorded(a_late_question)
    (job,) = run("status", "--json").json["jobs"]
    assert set(job) == {
        *("job", "name", "status", "outcome", "liveness", "native", "progress", "attempt", "incidents"),
        *("questions", "guard", "seen_at"),
    }
    (incident,) = run("incidents", "--json").json["incidents"]
    assert set(incident) == {
        *("incident", "job", "name", "state", "signals", "detected_at", "step", "steps_lost", "lasted"),
        "outcome",
    }
    one = run("incidents", "inc00001", "--json").json
    assert {"job", "incident", "diagnosis", "evidence", "plan", "answer", "intents", "node_events"} <= set(
        one
    )
    (question,) = run("approve", "--json").json["questions"]
    assert {"id", "incident", "job_key", "plan", "asked_at", "deadline"} <= set(question)


def test_rules_are_printed_as_facts(run: Run, tmp_path: Path) -> None:
    (tmp_path / "oom.log").write_text("fine\n" + OOM)
    rules = run("rules", "list", "--json").json["rules"]
    assert len(rules) > 100
    assert all(set(rule) == {"id", "fault", "rank", "name"} for rule in rules)
    fault = rules[0]["fault"]
    some = run("rules", "list", "--fault", fault, "--json").json["rules"]
    assert some == [rule for rule in rules if rule["fault"] == fault]
    rule = run("rules", "explain", rules[0]["id"], "--json").json
    assert {
        "id",
        "name",
        "fault",
        "rank",
        "scope",
        "transient",
        "explain",
        "any_of",
        "actions",
        "hits",
    } <= set(rule)
    tested = run("rules", "test", "oom.log", "--json").json
    assert tested["verdict"]["fault"] == "gpu_oom"
    hit = next(hit for hit in tested["hits"] if hit["rule"] == tested["verdict"]["rule"])
    assert hit == {"rule": hit["rule"], "source": "oom.log", "line": 2, "text": OOM.strip()}


def test_problems_of_own_rules_are_printed_as_facts(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainguard.cli.rules.problems", lambda catalogue: iter(["OWN-001: no samples"]))
    done = run("rules", "lint", "--json")
    assert done.code == 1
    assert done.json["problems"] == ["OWN-001: no samples"] and done.json["rules"] > 100
    monkeypatch.setattr("trainguard.cli.rules.problems", lambda catalogue: iter(()))
    assert run("rules", "lint", "--json").code == 0


def test_the_doctor_logs_in_to_a_cluster_without_being_told_a_job(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    simulation = Simulation()

    async def block(_slug: str) -> SimulatedClusterBlock:
        return SimulatedClusterBlock(cluster=simulation.cluster.name)

    monkeypatch.setattr("trainguard.blocks.clusters.as_block", block)
    found = run("doctor", "--cluster", "simulated-cluster/lab", "--json").json["findings"]
    (row,) = [one for one in found if one["what"] == "simulated-cluster/lab"]
    assert row["state"] == "ok" and row["detail"].startswith("1 job seen;")
    simulation.cluster.reachable = False
    found = run("doctor", "--cluster", "simulated-cluster/lab", "--json").json["findings"]
    assert [one["state"] for one in found if one["what"] == "simulated-cluster/lab"] == ["missing"]
