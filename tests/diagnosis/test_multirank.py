"""One rank met a fault, the others show what followed: which fault, which rank, which node?"""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from tests.diagnosis.generator import FAULTS, Incident, generate
from trainguard.core.diagnosis import Catalogue, Stream, diagnose
from trainguard.core.verdict import Diagnosis

SEEDS = range(40)
"""Of 8 to 64 ranks; `python -m tests.diagnosis.measure` takes hundreds, of up to 512."""


def small(seed: int) -> Incident:
    return generate(seed, ranks=random.Random(seed).choice((8, 16, 32, 64)))


def right_rank(incident: Incident, diagnosis: Diagnosis) -> bool:
    return incident.rank is None or (bool(diagnosis.suspects) and diagnosis.suspects[0].rank == incident.rank)


def test_fault_and_rank_are_found(catalogue: Catalogue) -> None:
    told = [(incident, diagnose(incident.streams, catalogue)) for incident in map(small, SEEDS)]
    wrong = [(i.kind, d.fault, d.rule) for i, d in told if d.fault not in i.faults]
    astray = [(i.kind, i.rank, d.suspects[:1]) for i, d in told if not right_rank(i, d)]
    assert len(wrong) <= 0.02 * len(SEEDS), wrong
    assert len(astray) <= 0.05 * len(SEEDS), astray


@pytest.mark.parametrize("kind", sorted(FAULTS))
def test_each_kind_of_fault_is_told_from_what_follows_it(kind: str, catalogue: Catalogue) -> None:
    incident = generate(1000 + len(kind), kind=kind, ranks=16)
    diagnosis = diagnose(incident.streams, catalogue)
    assert diagnosis.fault in incident.faults, diagnosis
    assert right_rank(incident, diagnosis), (incident.rank, diagnosis.suspects)


def test_the_node_is_named_where_the_streams_say_whose_they_are(catalogue: Catalogue) -> None:
    incident = generate(7, kind="xid79", ranks=32)
    assert diagnose(incident.streams, catalogue).suspects[0].node == incident.node


def test_five_hundred_ranks_are_read_together(catalogue: Catalogue) -> None:
    incident = generate(3, kind="gpu_oom", ranks=512)
    diagnosis = diagnose(incident.streams, catalogue)
    assert diagnosis.fault in incident.faults and right_rank(incident, diagnosis)


def text_of(stream: Stream) -> str:
    [block] = stream.blocks
    assert isinstance(block, str)
    return block


def noisy(lines: list[str], rng: random.Random) -> list[str]:
    for _ in range(len(lines) // 4):
        lines.insert(rng.randrange(len(lines) + 1), rng.choice(NOISE))
    return lines


LINES: dict[str, Callable[[list[str], random.Random], list[str]]] = {
    "noise": noisy,
    "painted": lambda lines, rng: [f"\x1b[3{rng.randrange(8)}m{line[:-1]}\x1b[0m\n" for line in lines],
    "windows": lambda lines, rng: [line[:-1] + "\r\n" for line in lines],
    "beginning lost": lambda lines, rng: lines[len(lines) // 3 :] if len(lines) > 60 else lines,
    "bars": lambda lines, rng: [f" 3%|#   | 3/99 [00:01<00:09, 1.0it/s]\r{line}" for line in lines],
}
CHANGES = (*LINES, "reordered", "in pieces")


def changed(incident: Incident, change: str, seed: int) -> tuple[Stream, ...]:
    """The same incident, told worse."""
    rng = random.Random(seed)
    streams = list(incident.streams)
    if change == "reordered":
        rng.shuffle(streams)
        return tuple(streams)
    if change == "in pieces":
        return tuple(
            Stream(s.source, s.kind, [text_of(s)[at : at + 997] for at in range(0, len(text_of(s)), 997)])
            for s in streams
        )
    return tuple(
        Stream(s.source, s.kind, ("".join(LINES[change](text_of(s).splitlines(keepends=True), rng)),))
        for s in streams
    )


NOISE = (
    "INFO: gathered 0 errors from 8 workers\n",
    "wandb: Tracking run with wandb version 0.17.0\n",
    "# retry_on: 'CUDA out of memory'\n",
    "\n",
    "If you see an NCCL timeout, set NCCL_DEBUG=INFO and try again.\n",
)


@pytest.mark.parametrize("change", CHANGES)
def test_how_an_incident_is_told_does_not_change_its_root(change: str, catalogue: Catalogue) -> None:
    for seed in range(12):
        incident = generate(seed, ranks=16)
        plain = diagnose(incident.streams, catalogue)
        worse = diagnose(changed(incident, change, seed), catalogue)
        assert (worse.fault, worse.rule) == (plain.fault, plain.rule), (seed, incident.kind)


def test_more_ranks_that_only_follow_do_not_change_the_root(catalogue: Catalogue) -> None:
    for seed in range(6):
        few = generate(seed, kind="index_error", ranks=8)
        many = generate(seed, kind="index_error", ranks=128)
        assert diagnose(few.streams, catalogue).rule == diagnose(many.streams, catalogue).rule
