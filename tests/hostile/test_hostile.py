"""Text in a job's log names no target, widens no action and breaks nothing, whatever it says."""

from __future__ import annotations

import time
import tracemalloc
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.hostile.forger import FOREIGN_NODES, forge
from trainguard.core.action import Access, ActionKind, Scope
from trainguard.core.decision import Plan, Verdict
from trainguard.core.diagnosis import Catalogue, Stream, diagnose
from trainguard.core.evidence import EvidenceKind
from trainguard.core.grounding import CERTAIN
from trainguard.core.incident import Incident
from trainguard.core.job import Incarnation, Job, JobRef
from trainguard.core.message_formats import fence, markdown, plain, slack_payload
from trainguard.core.messages import incident_ended, incident_opened
from trainguard.core.observation import Liveness, LogSource, Observation
from trainguard.core.planning import Situation, plan
from trainguard.core.policy import Allow, Policy, Preset
from trainguard.core.signal import Signal, SignalKind
from trainguard.core.verdict import Diagnosis, FaultClass
from trainguard.rules import load_catalogue

CORPUS = sorted(Path(__file__).parent.glob("*.log"))
SEEDS = [range(start, start + 50) for start in range(0, 600, 50)]
NODES = ("n1", "n2")
REF = JobRef(scheduler="slurm", cluster="c", id="4242")
RUN = Incarnation(job=REF, token="4242+1", native_id="4242")
FAILED = Observation(
    job=REF,
    at=1000.0,
    source="sacct",
    liveness=Liveness.FAILED,
    native="FAILED",
    exit_code=1,
    oom_killed=False,
    incarnation=RUN,
    nodes=NODES,
)
TRUSTING = Policy(
    preset=Preset.AUTONOMOUS,
    allow=tuple(Allow(action=kind) for kind in ActionKind if kind.scope is not Scope.NODE),
)
"""The owner who allows everything but acts on nodes: what stops a forged action then is the guard alone."""
RECKLESS = Policy(preset=Preset.AUTONOMOUS, allow=tuple(Allow(action=kind) for kind in ActionKind))
"""The owner who allows everything."""


@pytest.fixture(scope="module")
def catalogue() -> Catalogue:
    return load_catalogue()


def judged(
    catalogue: Catalogue, *logs: bytes, node: str = "n1", kind: EvidenceKind = EvidenceKind.LOG
) -> Diagnosis:
    streams = [
        Stream(LogSource(name=f"rank{rank}.log", rank=rank, node=node), kind, (log,))
        for rank, log in enumerate(logs)
    ]
    return diagnose(streams, catalogue, FAILED, matcher=catalogue.matcher)


def planned(diagnosis: Diagnosis, policy: Policy) -> Plan:
    """What a guard would do with every right, a trusting owner and two signals."""
    signal = Signal(kind=SignalKind.CRASH, at=1000.0, detail="exit code 1", sources=("scheduler", "log"))
    incident = Incident(
        id="abcd1234", job_key=REF.key, incarnation=RUN, signals=(signal,), detected_at=1000.0, step=200
    )
    return plan(
        Situation(
            job=Job(ref=REF, name="exp-42"),
            incident=incident,
            diagnosis=diagnosis,
            observation=FAILED,
            policy=policy,
            access=Access(job_seen=True, logs_readable=True, possible=frozenset(ActionKind)),
            supported=frozenset(ActionKind),
            known_nodes=frozenset(NODES),
            now=1000.0,
        )
    )


def named_nodes(diagnosis: Diagnosis) -> set[str]:
    return {suspect.node for suspect in diagnosis.suspects} - {""}


def injected(diagnosis: Diagnosis, policy: Policy = TRUSTING) -> list[str]:
    """What would run on its own and reach further than the job, or carry something out of the log."""
    return [
        f"{step.action.kind} {step.action.nodes} {step.action.package}{step.action.script}"
        for step in planned(diagnosis, policy).steps
        if step.verdict is Verdict.RUN
        and (
            step.action.kind.scope in {Scope.NODE, Scope.CLUSTER, Scope.MONEY}
            or not set(step.action.nodes) <= set(NODES)
            or step.action.package
            or step.action.script
        )
    ]


def test_the_corpus_is_large_enough() -> None:
    assert len(CORPUS) >= 60
    assert sum(len(seeds) for seeds in SEEDS) >= 500


@pytest.mark.parametrize("log", CORPUS, ids=lambda log: log.stem)
@pytest.mark.parametrize("node", ["n1", ""])
def test_a_hostile_log_names_no_foreign_node_and_runs_nothing_beyond_the_job(
    catalogue: Catalogue, log: Path, node: str
) -> None:
    diagnosis = judged(catalogue, log.read_bytes(), node=node)
    assert named_nodes(diagnosis) <= ({node} if node else set(NODES))
    assert injected(diagnosis) == []


@pytest.mark.parametrize("seeds", SEEDS, ids=lambda seeds: f"{seeds[0]}-{seeds[-1]}")
def test_generated_forgeries_name_no_foreign_node_and_run_nothing_beyond_the_job(
    catalogue: Catalogue, seeds: Sequence[int]
) -> None:
    for seed in seeds:
        diagnosis = judged(catalogue, forge(seed).hostile)
        assert named_nodes(diagnosis) <= {"n1"}, seed
        assert injected(diagnosis) == [], seed


@pytest.mark.parametrize("seeds", SEEDS, ids=lambda seeds: f"{seeds[0]}-{seeds[-1]}")
def test_a_forged_line_is_never_certain(catalogue: Catalogue, seeds: Sequence[int]) -> None:
    for seed in seeds:
        forgery = forge(seed)
        told, plain_one = judged(catalogue, forgery.hostile), judged(catalogue, forgery.plain)
        assert told.confidence < CERTAIN or told.fault in {plain_one.fault, FaultClass.HEALTHY}, seed


def test_an_exception_without_its_traceback_yields_to_one_that_has_it(catalogue: Catalogue) -> None:
    forged = b"[rank0]: step 100/5000 loss 3.1\nModuleNotFoundError: No module named 'evil'\n"
    real = b'Traceback (most recent call last):\n  File "/w/train.py", line 41, in main\nValueError: got 2\n'
    diagnosis = judged(catalogue, forged + real)
    assert diagnosis.fault is FaultClass.CODE_BUG
    assert judged(catalogue, forged).confidence < CERTAIN


def test_no_job_log_gets_a_node_drained_even_where_the_owner_allows_it(catalogue: Catalogue) -> None:
    logs = {log.stem: log.read_bytes() for log in CORPUS} | {
        str(seed): forge(seed).hostile for seed in range(600)
    }
    drained = {
        name: found for name, log in logs.items() if (found := injected(judged(catalogue, log), RECKLESS))
    }
    assert drained == {}


@pytest.mark.parametrize("log", [log for log in CORPUS if "-xid" in log.stem], ids=lambda log: log.stem)
def test_a_kernels_words_in_a_job_log_are_never_certain(catalogue: Catalogue, log: Path) -> None:
    diagnosis = judged(catalogue, log.read_bytes())
    assert diagnosis.fault is not FaultClass.GPU_HARDWARE or diagnosis.confidence < CERTAIN


def test_the_same_words_from_the_kernel_itself_are(catalogue: Catalogue) -> None:
    words = (Path(__file__).parent / "forged-xid-79.log").read_bytes().split(b"\n")[3] + b"\n"
    diagnosis = judged(catalogue, words, kind=EvidenceKind.KERNEL)
    assert diagnosis.fault is FaultClass.GPU_HARDWARE
    assert diagnosis.confidence >= CERTAIN


@pytest.mark.parametrize(
    "log",
    [log for log in CORPUS if log.stem.startswith(("instruct", "markup", "lookalike-h"))],
    ids=lambda log: log.stem,
)
def test_words_that_only_instruct_give_no_certain_verdict(catalogue: Catalogue, log: Path) -> None:
    diagnosis = judged(catalogue, log.read_bytes())
    assert diagnosis.fault is FaultClass.CODE_BUG or diagnosis.confidence < CERTAIN


def test_a_hostile_rank_accuses_no_other_rank(catalogue: Catalogue) -> None:
    honest = b"[rank1]: step 100/5000 loss 3.1\n[rank1]: step 200/5000 loss 3.0\n"
    for log in CORPUS:
        diagnosis = judged(catalogue, log.read_bytes(), honest)
        assert named_nodes(diagnosis) <= {"n1"}, log.stem


def test_no_hostile_log_takes_long(catalogue: Catalogue) -> None:
    started = time.perf_counter()
    for log in CORPUS:
        judged(catalogue, log.read_bytes())
    # Some seconds at most; a backtracking pattern would take minutes.
    assert time.perf_counter() - started < 60


@pytest.mark.parametrize("log", CORPUS, ids=lambda log: log.stem)
def test_a_report_of_a_hostile_log_is_free_of_its_markup(catalogue: Catalogue, log: Path) -> None:
    diagnosis = judged(catalogue, log.read_bytes())
    incident = Incident(id="abcd1234", job_key=REF.key, incarnation=RUN, signals=(), detected_at=1000.0)
    job = Job(ref=REF, name=log.read_bytes()[100:180].decode("utf-8", "replace"))
    for message in (incident_opened(job, incident, diagnosis), incident_ended(job, incident, diagnosis)):
        slack, page = str(slack_payload(message)), markdown(message)
        assert not {"\x1b", "\u202e", "\x07", "\x00"} & set(slack + page + plain(message))
        assert "<!" not in slack
        assert "<http" not in slack
        prose = page.replace(fence(message.excerpt), "")
        assert "](" not in prose
        assert "<" not in prose


def test_the_forger_forges(catalogue: Catalogue) -> None:
    """Without forged text the same runs are judged as before; with it foreign nodes stand in nearly every log."""
    texts = [forge(seed).hostile.decode("utf-8", "replace") for seed in range(100)]
    assert sum(any(node in text for node in FOREIGN_NODES) for text in texts) > 80
    assert forge(3) == forge(3)
    assert len({forge(seed).hostile for seed in range(100)}) == 100


@pytest.mark.parametrize(
    ("piece", "blocks"),
    [
        (b"x", 128),
        (b"\x00", 128),
        (b"\r", 128),
        (b"Error: ", 64),
        (b"\x1b[31m", 16),
        (b"NVRM: Xid 79 drain_node gpu-7 ", 1),
    ],
)
def test_a_line_without_an_end_is_read_in_bounded_memory(
    catalogue: Catalogue, piece: bytes, blocks: int
) -> None:
    block = (piece * (1 << 18))[: 1 << 18]
    source = LogSource(name="rank0.log", rank=0, node="n1")
    stream = Stream(source, EvidenceKind.LOG, (block for _ in range(blocks)))
    catalogue.matcher  # noqa: B018 (built outside the measurement)
    tracemalloc.start()
    try:
        diagnosis = diagnose([stream], catalogue, FAILED, matcher=catalogue.matcher)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 16 << 20  # whatever the length, up to 32 MiB here
    assert injected(diagnosis, RECKLESS) == []
