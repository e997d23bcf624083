"""A Kubernetes job, however its owner names it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from trainguard.blocks.kubernetes_cluster import KubernetesCluster
from trainguard.core.errors import ConfigError
from trainguard.core.job import Job, JobRef

MANIFEST = """apiVersion: batch/v1
kind: Job
metadata: {name: llama}
spec: {template: {spec: {containers: [{name: train, image: registry/train:1}]}}}
"""
AS_JSON = json.dumps({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "llama", "namespace": "ml"}})


def placed(given: str, name: str = "") -> Job:
    block = KubernetesCluster(cluster="lab", namespace="training")
    return block.place(Job(ref=JobRef(id=given), name=name))


@pytest.mark.parametrize(
    ("given", "name", "found", "called"),
    [
        (MANIFEST, "", "training/Job/llama", "llama"),
        (MANIFEST, "big run", "training/Job/llama", "big run"),
        (AS_JSON, "", "ml/Pod/llama", "llama"),
        ("job/llama", "", "training/Job/llama", "llama"),
        ("ml/deploy/llama", "", "ml/Deployment/llama", "llama"),
        ("ml/Job/llama", "", "ml/Job/llama", "llama"),
        ("ml/Job/llama.json", "", "ml/Job/llama.json", "llama.json"),
    ],
)
def test_a_job_is_named_by_its_place_or_its_manifest(given: str, name: str, found: str, called: str) -> None:
    job = placed(given, name)
    assert (job.ref.scheduler, job.ref.cluster, job.ref.id, job.name) == ("kubernetes", "lab", found, called)


def test_a_manifest_can_be_given_as_a_path(tmp_path: Path) -> None:
    path = tmp_path / "train.yaml"
    path.write_text(MANIFEST)
    assert placed(str(path)).ref.id == "training/Job/llama"


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ("llama", "neither kind/name nor namespace/kind/name"),
        ("nowhere/train.yaml", "can't be read"),
        (MANIFEST.replace("name: llama", "generateName: llama-"), "generateName"),
        (MANIFEST + "---\n" + MANIFEST, "2 documents"),
        (MANIFEST.replace("kind: Job", "kind: Jub"), "Jub"),
    ],
)
def test_a_manifest_that_names_no_job_is_refused_with_the_reason(given: str, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        placed(given)


def test_a_pasted_manifest_leaves_a_run_with_a_name_of_one_line() -> None:
    assert "\n" not in Job(ref=JobRef(id=MANIFEST)).name
