"""Form and samples of every rule.

Aspects: ids and names, patterns, samples over the whole catalogue, echoes of samples, the generated page.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml

from trainguard.cli.rules_docs import render
from trainguard.core.diagnosis import Catalogue, Rule, Stream, diagnose
from trainguard.core.diagnosis.text import clean, head
from trainguard.core.errors import ConfigError
from trainguard.core.evidence import EvidenceKind
from trainguard.core.observation import LogSource
from trainguard.core.verdict import FaultClass
from trainguard.rules import load_catalogue, own_files

CATALOGUE = load_catalogue()
RULES = CATALOGUE.rules
FAULTS = tuple(rule for rule in RULES if not rule.healthy)
BLAME = re.compile(r"user|owner|mistake|wrong-|stupid|fault-of|blame")
RE2_LACKS = re.compile(r"\(\?[=!<>]|\\[1-9]|[*+?}]\+")
UNBOUNDED = re.compile(r"(?<!\\)(?:\.|\\S|\\w|\\s|\])[*+](?!\?)")


def verdict(text: str, kind: EvidenceKind, catalogue: Catalogue = CATALOGUE) -> tuple[FaultClass, str]:
    """What the whole catalogue finds in a text."""
    found = diagnose((Stream(LogSource(name="sample"), kind, (text,)),), catalogue)
    return found.fault, found.rule


def lines_of_one(rules: tuple[Rule, ...]) -> list[tuple[Rule, str]]:
    """The samples that are one sentence of one line; a progress bar is no sentence."""
    hits = [(rule, hit.strip()) for rule in rules for hit in rule.hits]
    return [(rule, hit) for rule, hit in hits if not re.search(r"\n|it/s|[.!?] [A-Z]", hit)]


def test_ids_are_sorted_within_their_file_and_names_are_used_once() -> None:
    for path in own_files():
        ids = [row["id"] for row in yaml.safe_load(path.read_text(encoding="utf-8"))["rules"]]
        assert ids == sorted(set(ids)), path.name
    names = [rule.name for rule in RULES]
    assert sorted(n for n in set(names) if names.count(n) > 1) == []


def test_names_say_what_was_observed_not_who_is_to_blame() -> None:
    assert [rule.id for rule in RULES if BLAME.search(rule.name)] == []


def test_every_class_of_fault_has_rules() -> None:
    covered = {rule.fault for rule in RULES}
    assert covered == set(FaultClass) - {FaultClass.UNKNOWN}


def test_no_pattern_is_unbounded() -> None:
    found = [(rule.id, p) for rule in RULES for p in (*rule.any_of, *rule.none_of) if UNBOUNDED.search(p)]
    assert found == []


def test_hyperscan_takes_every_pattern() -> None:
    """It shares RE2's subset: what it refuses is a lookaround, a backreference or worse.

    Bounded repeats are cut short first: they cost time to compile and nothing else depends on them.
    """
    hyperscan = pytest.importorskip("hyperscan")
    patterns = {p: rule.id for rule in RULES for p in (*rule.any_of, *rule.none_of)}
    short = [re.sub(r"\{\d+,\d+\}", "{1,2}", pattern).encode() for pattern in patterns]
    assert [p for p in patterns if RE2_LACKS.search(p)] == []
    flags = [hyperscan.HS_FLAG_PREFILTER | hyperscan.HS_FLAG_ALLOWEMPTY] * len(short)
    hyperscan.Database().compile(
        expressions=short, ids=list(range(len(short))), elements=len(short), flags=flags
    )


def test_every_rule_that_reads_lines_has_samples_of_both_kinds() -> None:
    reading = [rule for rule in RULES if rule.any_of or rule.detector]
    assert [rule.id for rule in reading if not rule.hits] == []
    assert [rule.id for rule in reading if not rule.misses] == []


def test_every_pattern_has_a_sample() -> None:
    """As logs print it, or without the prefix that says who and when."""
    without = []
    for rule in RULES:
        lines = [line for hit in rule.hits for line in hit.splitlines()]
        bodies = lines + [head(clean(line.encode())).body for line in lines]
        without += [(rule.id, p.pattern) for p in rule.patterns if not any(map(p.search, bodies))]
    assert without == []


def test_every_explanation_says_what_happened_and_every_fault_what_fits() -> None:
    assert [rule.id for rule in RULES if not rule.explain.strip().endswith(".")] == []
    assert [rule.id for rule in FAULTS if not rule.actions] == []


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.id)
def test_the_whole_catalogue_diagnoses_each_hit_as_its_rule_and_no_miss(rule: Rule) -> None:
    wrong_hits = [hit for hit in rule.hits if verdict(hit, rule.sources[0])[1] != rule.id]
    wrong_misses = [miss for miss in rule.misses if verdict(miss, rule.sources[0])[1] == rule.id]
    assert (wrong_hits, wrong_misses) == ([], [])


ECHOES = {
    "source": lambda line: f"    raise RuntimeError({line!r})",
    "print": lambda line: f"    logger.error({line!r})",
    "config": lambda line: json.dumps({"retry_patterns": [line]}),
    "help": lambda line: f"  --restart-on TEXT   for example {line!r}",
    "shell": lambda line: f"+ grep -F {line!r} train.log",
    "advice": lambda line: f"If you see {line!r}, read the manual.",
}


@pytest.mark.parametrize("echo", ECHOES)
def test_a_healthy_run_that_quotes_every_fault_stays_healthy(echo: str) -> None:
    """Injection: the words of every fault, printed by a job that runs on."""
    quoted = [ECHOES[echo](hit) for _, hit in lines_of_one(FAULTS)]
    log = ["step 10 loss 2.31", *quoted, *(f"step {n} loss 2.{n}" for n in range(20, 60, 10))]
    stream = Stream(LogSource(name="train.log"), EvidenceKind.LOG, ("\n".join(log),))
    found = diagnose((stream,), CATALOGUE)
    assert (found.fault, found.rule, [c.text for c in found.citations]) == (FaultClass.HEALTHY, "", [])


def test_the_generated_page_is_current() -> None:
    page = Path(__file__).parents[2] / "docs" / "rules.md"
    assert page.read_text(encoding="utf-8") == render(CATALOGUE), "run `trainguard rules docs`"


def test_a_file_of_own_rules_may_hold_handlers_too_or_alone(tmp_path: Path) -> None:
    alone = tmp_path / "handlers.yaml"
    alone.write_text("failure_handlers: []\n")
    assert len(load_catalogue([alone])) == len(load_catalogue())
    neither = tmp_path / "neither.yaml"
    neither.write_text("handlers: []\n")
    with pytest.raises(ConfigError, match="failure_handlers"):
        load_catalogue([neither])
