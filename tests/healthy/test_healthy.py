"""A guard that kills a healthy job is worse than none: none of these may be called a failure."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import pytest

from trainguard.core.diagnosis import Catalogue, Stream, diagnose
from trainguard.core.evidence import EvidenceKind
from trainguard.core.observation import LogSource
from trainguard.core.verdict import Diagnosis, FaultClass
from trainguard.rules import load_catalogue

HERE = Path(__file__).parent
LOGS = sorted(HERE.glob("*.log"))
HARMLESS = (FaultClass.HEALTHY, FaultClass.UNKNOWN)

REAL_LINES = {
    "nccl, NCCL_DEBUG=INFO": "r10i4n8:38029:38029 [0] NCCL INFO NET/Plugin : No plugin found (libnccl-net.so), using internal implementation",
    "nccl-tests": "# Out of bounds values : 0 OK",
    "nvidia-smi -q": "        Remapping Failure Occurred        : No",
    "linux, perf": "perf: interrupt took too long (2509 > 2500), lowering kernel.perf_event_max_sample_rate to 79500",
    "transformers": "Token indices sequence length is longer than the specified maximum sequence length for this model (172677 > 131072). Running this sequence through the model will result in indexing errors",
    "lightning": "`Trainer.fit` stopped: `max_steps=40` reached.",
    "fairseq": "2020-08-01 12:39:16 | INFO | fairseq.trainer | NOTE: overflow detected, setting loss scale to: 1024.0",
    "xla, bfc_allocator": "2025-05-18 21:59:55.086788: W external/xla/xla/tsl/framework/bfc_allocator.cc:310] Allocator (GPU_0_bfc) ran out of memory trying to allocate 3.37GiB with freed_by_count=0. The caller indicates that this is not a failure, but this may mean that there could be performance gains if more memory were available.",
    "fabric manager": "[Feb 27 2025 07:09:52] [INFO] [tid 1808] multicast group 1 is freed.",
    "kubelet": "Normal  Started    4m28s  kubelet        Started container nginxreplica",
    "torch.distributed, elastic": "W1026 03:51:31.222000 2521679 site-packages/torch/distributed/run.py:792] Setting OMP_NUM_THREADS environment variable for each process to be 1 in default, to avoid your system being overloaded",
    "datasets": "Retrying in 1s [Retry 1/5].",
}


@pytest.fixture(scope="module")
def catalogue() -> Catalogue:
    return load_catalogue()


def read(text: bytes | str, catalogue: Catalogue) -> Diagnosis:
    return diagnose([Stream(LogSource(name="job.log"), EvidenceKind.LOG, (text,))], catalogue)


@pytest.mark.parametrize("path", LOGS, ids=lambda path: path.name)
def test_a_whole_healthy_log_is_healthy(path: Path, catalogue: Catalogue) -> None:
    diagnosis = read(path.read_bytes(), catalogue)
    assert diagnosis.fault is FaultClass.HEALTHY, diagnosis


@pytest.mark.parametrize("path", LOGS, ids=lambda path: path.name)
def test_any_piece_of_a_healthy_log_is_no_failure(path: Path, catalogue: Catalogue) -> None:
    data, rng = path.read_bytes(), random.Random(path.name)
    for _ in range(12):
        start = rng.randrange(len(data) - 1)
        piece = data[start : start + rng.choice((100, 1000, 8000))]
        diagnosis = read(piece, catalogue)
        assert diagnosis.fault in HARMLESS, (piece[:200], diagnosis.rule)


@pytest.mark.parametrize("origin", sorted(REAL_LINES))
def test_a_frightening_line_of_a_healthy_program_is_no_failure(origin: str, catalogue: Catalogue) -> None:
    steps = "".join(f"step {n}/900 | loss: 2.{n}\n" for n in range(100, 105))
    line = REAL_LINES[origin] + "\n"
    assert read(line, catalogue).fault in HARMLESS
    assert read(steps + line, catalogue).fault is FaultClass.HEALTHY
    assert read(steps + line + steps, catalogue).fault is FaultClass.HEALTHY


def test_a_training_of_now_is_healthy(catalogue: Catalogue) -> None:
    command = [sys.executable, str(HERE / "train_numpy.py"), "plain", "600", "11"]
    done = subprocess.run(command, capture_output=True, check=True)
    assert read(done.stdout, catalogue).fault is FaultClass.HEALTHY
