"""`trainguard diagnose` and `trainguard rules`, as a person runs them."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Protocol

import pytest
import typer
from typer.testing import CliRunner, Result

from trainguard.cli.diagnose import diagnose
from trainguard.cli.rules import rules_app

OOM = "[rank3]: torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 4.35 GiB.\n"
RULES = """\
family: OWN
rules:
- id: OWN-001
  name: flux-capacitor-empty
  fault: config_permission
  rank: 30
  scope: job
  transient: false
  any_of: ['flux capacitor is empty']
  explain: The flux capacitor needs plutonium.
  actions: [fix_code_or_config]
  hits: ['flux capacitor is empty']
  misses: ['flux capacitor is full']
"""


class Run(Protocol):
    def __call__(self, command: str, *arguments: str | Path, text: str = "") -> Result: ...


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "120")
    app = typer.Typer()
    app.command("diagnose")(diagnose)
    app.add_typer(rules_app, name="rules")

    def go(command: str, *arguments: str | Path, text: str = "") -> Result:
        return CliRunner().invoke(app, [command, *map(str, arguments)], input=text)

    return go


def test_it_runs_as_a_module(tmp_path: Path) -> None:
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    command = [sys.executable, "-m", "trainguard.cli.diagnose", "-", "--json"]
    done = subprocess.run(command, input=OOM, capture_output=True, text=True, env=environment, check=True)
    assert json.loads(done.stdout)["fault"] == "gpu_oom"
    assert (tmp_path / "cache" / "trainguard" / "catalogue.json").exists()


def test_a_spoiled_memory_of_the_catalogue_is_no_harm(run: Run, tmp_path: Path) -> None:
    memory = tmp_path / "cache" / "trainguard" / "catalogue.json"
    memory.parent.mkdir(parents=True)
    for spoiled in ("{", "[]", '{"algorithm": 0, "patterns": {}}'):
        memory.write_text(spoiled)
        assert json.loads(run("diagnose", "-", "--json", text=OOM).stdout)["fault"] == "gpu_oom"


def test_a_file_gives_verdict_line_and_number(run: Run, tmp_path: Path) -> None:
    log = tmp_path / "job.log"
    log.write_text("one\n" + OOM)
    done = run("diagnose", log)
    assert done.exit_code == 0, done.stderr
    assert "gpu_oom" in done.stdout and "job.log:2" in done.stdout.replace("\n", "")


def test_markup_in_a_log_is_text(run: Run, tmp_path: Path) -> None:
    log = tmp_path / "job.log"
    log.write_text("[red]CUDA out of memory[/red] [link=http://evil]x[/link]\x1b[2J\n")
    done = run("diagnose", log)
    assert "[red]" in done.stdout and "\x1b[2J" not in done.stdout


def test_many_files_a_folder_and_packed_ones_are_read(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "logs"
    folder.mkdir()
    (folder / "rank-0.log").write_text("Connection closed by peer\n")
    with gzip.open(folder / "rank-3.log.gz", "wt") as packed:
        packed.write(OOM)
    told = json.loads(run("diagnose", folder, "--json").stdout)
    assert (told["fault"], told["suspects"][0]["rank"]) == ("gpu_oom", 3)


def test_standard_input_is_a_file(run: Run) -> None:
    assert json.loads(run("diagnose", "-", "--json", text=OOM).stdout)["fault"] == "gpu_oom"


def test_scheduler_facts_can_be_given(run: Run) -> None:
    told = json.loads(run("diagnose", "-", "--json", "--oom-killed", text="hello\n").stdout)
    assert told["fault"] == "host_oom"


def test_cases_are_answered_one_a_line(run: Run) -> None:
    cases = [{"id": n, "scheduler": "slurm", "kind": "log", "text": OOM * n} for n in (1, 2)]
    done = run("diagnose", "--jsonl", text="".join(json.dumps(case) + "\n" for case in cases))
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert [answer["id"] for answer in answers] == [1, 2]
    assert set(answers[0]) == {"id", "label", "evidence", "transient", "action"}


@pytest.mark.parametrize(
    ("arguments", "text", "said"),
    [
        ((), "", "no log files"),
        (("/nowhere/at-all.log",), "", "does not exist"),
        (("--jsonl",), "{not json\n", "line 1"),
        (("-", "--rules", "/nowhere/rules.yaml"), "", "can't be read"),
    ],
)
def test_bad_input_is_told_in_words_and_exits_2(
    run: Run, arguments: tuple[str, ...], text: str, said: str
) -> None:
    done = run("diagnose", *arguments, text=text)
    assert done.exit_code == 2
    assert said in done.stderr and "Traceback" not in done.stderr


def test_a_binary_file_is_no_reason_to_fail(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "core.log"
    path.write_bytes(bytes(range(256)) * 4000)
    done = run("diagnose", path, "--json")
    assert json.loads(done.stdout)["fault"] == "unknown"


def test_own_rules_take_part(run: Run, tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    own.write_text(RULES)
    told = json.loads(run("diagnose", "-", "--json", "--rules", own, text="flux capacitor is empty\n").stdout)
    assert (told["rule"], told["fault"]) == ("OWN-001", "config_permission")
    assert "OWN-001" in run("rules", "list", "--rules", own).stdout
    assert "plutonium" in run("rules", "explain", "own-001", "--rules", own).stdout


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ("rank: 30", "rank: 300", "rank"),
        ("any_of: ['flux capacitor is empty']", "any_of: ['(a+)+b']", "nests"),
        ("id: OWN-001", "id: OTHER-001", "family"),
        ("fault: config_permission", "fault: bad_luck", "fault"),
        ("  explain: ", "  excuse: ", "e"),
    ],
)
def test_a_wrong_rule_is_refused_naming_file_rule_and_field(
    run: Run, tmp_path: Path, before: str, after: str, said: str
) -> None:
    own = tmp_path / "own.yaml"
    own.write_text(RULES.replace(before, after))
    done = run("rules", "list", "--rules", own)
    assert done.exit_code == 2
    assert "own.yaml" in done.stderr and said in done.stderr


def test_an_unknown_rule_is_no_traceback(run: Run) -> None:
    done = run("rules", "explain", "NOPE-999")
    assert done.exit_code == 2 and "rules list" in done.stderr


def test_rules_show_what_a_file_fits(run: Run, tmp_path: Path) -> None:
    log = tmp_path / "job.log"
    log.write_text(OOM)
    done = run("rules", "test", log)
    assert "job.log:1" in done.stdout and "verdict: gpu_oom" in done.stdout


def test_a_line_of_thirty_megabytes_stays_in_bounds(tmp_path: Path) -> None:
    code = (
        "import re, sys\n"
        "from trainguard.core.diagnosis import Stream, diagnose\n"
        "from trainguard.core.evidence import EvidenceKind\n"
        "from trainguard.core.observation import LogSource\n"
        "from pathlib import Path\n"
        "from trainguard.rules import load_catalogue\n"
        "from trainguard.rules.store import OwnFolder\n"
        "blocks = (b'nan error CUDA ' * 70000 for _ in range(30))\n"
        "catalogue = load_catalogue(store=OwnFolder(Path(sys.argv[1])))\n"
        "d = diagnose([Stream(LogSource(name='x'), EvidenceKind.LOG, blocks)], catalogue)\n"
        "print(int(re.search(r'VmHWM:\\s+(\\d+)', Path('/proc/self/status').read_text())[1]) // 1024)\n"
    )
    folder = tmp_path / "patterns"
    folder.mkdir(mode=0o700)
    # VmHWM, because ru_maxrss begins with the parent's. The first start has nothing kept, the second has.
    command = [sys.executable, "-c", code, str(folder)]
    for _ in range(2):
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=250)
        assert int(done.stdout) < 200
