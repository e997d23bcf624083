"""Manifests: what is accepted, what is stripped, what a restart changes, and what is kept over a crash."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from trainguard.core.action import Action, ActionKind, Fence
from trainguard.core.errors import ConfigError, RefusedError
from trainguard.core.job import CheckpointSpec, Incarnation, Job, JobRef, Resume, ResumeBy
from trainguard.schedulers.kubernetes.kinds import KINDS, parse_job_id, parse_job_name
from trainguard.schedulers.kubernetes.manifest import (
    changed,
    cleaned,
    marked,
    read_manifest,
    removed_by_itself,
)
from trainguard.schedulers.kubernetes.resources import quantity
from trainguard.schedulers.kubernetes.store import ManifestStore, Saved

Object = dict[str, Any]
JOB = """
apiVersion: batch/v1
kind: Job
metadata: {name: train, namespace: ml}
spec: {template: {spec: {containers: [{name: main, image: i, command: [python, train.py]}]}}}
"""
REFUSED = [
    ("nothing", "", "is empty"),
    ("several documents", f"{JOB}---{JOB}", "2 documents"),
    ("generateName", JOB.replace("name: train", "generateName: train-"), "generateName"),
    ("no name", JOB.replace("name: train, ", ""), "no metadata.name"),
    ("no namespace", JOB.replace(", namespace: ml", ""), "names no namespace"),
    ("a kind that is no job", JOB.replace("kind: Job", "kind: ConfigMap"), "'ConfigMap' is none of"),
    ("a kind of another group", JOB.replace("batch/v1", "batch.volcano.sh/v1alpha1"), "is of group batch"),
    ("no object", "- 1\n- 2\n", "no Kubernetes object"),
    ("no YAML", "a: [", "neither YAML nor JSON"),
]


@pytest.mark.parametrize(("case", "text", "why"), REFUSED, ids=[row[0] for row in REFUSED])
def test_a_manifest_that_can_not_be_used_is_refused_by_name(case: str, text: str, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        read_manifest(text)


TTL = {"ttlSecondsAfterFinished": 0}
EVICTED = [{"type": "DisruptionTarget", "status": "True", "reason": "DeletionByTaintManager"}]


@pytest.mark.parametrize(
    ("obj", "removed"),
    [
        ({"kind": "Job", "spec": {}}, False),
        ({"kind": "Job", "spec": TTL}, True),
        ({"kind": "PyTorchJob", "spec": {"runPolicy": TTL}}, True),
        ({"kind": "PyTorchJob", "spec": {"runPolicy": None}}, False),
        ({"kind": "Pod", "spec": {}, "status": {"phase": "Failed"}}, False),
        ({"kind": "Pod", "spec": {}, "status": {"phase": "Failed", "conditions": EVICTED}}, True),
    ],
)
def test_what_kubernetes_removes_by_itself_is_told_from_what_somebody_deletes(
    obj: Object, removed: bool
) -> None:
    assert removed_by_itself(obj) is removed


def test_a_manifest_is_read_as_yaml_and_as_json() -> None:
    kind, manifest = read_manifest(JOB)
    assert (kind.name, manifest["metadata"]["name"]) == ("Job", "train")
    assert read_manifest(json.dumps(manifest))[1] == manifest


def test_a_manifest_without_namespace_takes_the_blocks() -> None:
    assert read_manifest(JOB.replace(", namespace: ml", ""), "other")[1]["metadata"]["namespace"] == "other"


@pytest.mark.parametrize(
    ("text", "namespace", "found"),
    [
        ("job/train", "ml", "ml/Job/train"),
        ("deploy/serve", "ml", "ml/Deployment/serve"),
        ("pytorchjobs.kubeflow.org/t", "ml", "ml/PyTorchJob/t"),
        ("ml/sts/serve", "", "ml/StatefulSet/serve"),
    ],
)
def test_a_job_can_be_named_as_kubectl_names_it(text: str, namespace: str, found: str) -> None:
    assert parse_job_name(text, namespace).id == found


@pytest.mark.parametrize(
    "text",
    ["train", "job/train", "ml/Job", "ml/Job/x/y", "ml/Job/X Y", "ml/Secret/x", "-h", "", "ml/Job/a\n"],
)
def test_an_id_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        parse_job_id(text)


def live_job() -> Object:
    labels = {
        "app": "train",
        "controller-uid": "u",
        "job-name": "train",
        "batch.kubernetes.io/job-name": "train",
    }
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {
            "name": "train",
            "namespace": "ml",
            "uid": "u",
            "resourceVersion": "9",
            "generation": 1,
            "creationTimestamp": "2026-01-01T00:00:00Z",
            "managedFields": [{}],
            "finalizers": ["x"],
            "labels": dict(labels),
            "annotations": {"kubectl.kubernetes.io/last-applied-configuration": "{}", "mine": "kept"},
        },
        "spec": {
            "backoffLimit": 0,
            "selector": {"matchLabels": {"controller-uid": "u"}},
            "template": {
                "metadata": {"labels": dict(labels), "creationTimestamp": None},
                "spec": {"containers": [{"name": "main", "image": "i", "command": ["python", "t.py"]}]},
            },
        },
        "status": {"failed": 1},
    }


def test_a_live_job_is_cleaned_to_what_its_owner_wrote() -> None:
    clean = cleaned(KINDS["Job"], live_job())
    assert clean["metadata"] == {
        "name": "train",
        "namespace": "ml",
        "labels": {"app": "train"},
        "annotations": {"mine": "kept"},
    }
    assert "selector" not in clean["spec"]
    assert "status" not in clean
    assert clean["spec"]["template"]["metadata"] == {"labels": {"app": "train"}}


def test_a_selector_that_its_owner_chose_stays() -> None:
    obj = live_job()
    obj["spec"]["manualSelector"] = True
    assert "selector" in cleaned(KINDS["Job"], obj)["spec"]


def test_a_live_pod_loses_what_admission_put_in() -> None:
    obj = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "p", "namespace": "ml", "uid": "u"},
        "spec": {
            "nodeName": "n1",
            "priority": 0,
            "tolerations": [{"key": "node.kubernetes.io/not-ready"}, {"key": "mine"}],
            "volumes": [{"name": "kube-api-access-x7"}, {"name": "data"}],
            "containers": [{"name": "m", "volumeMounts": [{"name": "kube-api-access-x7"}, {"name": "data"}]}],
        },
    }
    clean = cleaned(KINDS["Pod"], obj)["spec"]
    assert "nodeName" not in clean
    assert clean["volumes"] == [{"name": "data"}]
    assert clean["containers"][0]["volumeMounts"] == [{"name": "data"}]
    assert clean["tolerations"] == [{"key": "mine"}]


def job(resume: Resume = Resume()) -> Job:  # noqa: B008 - frozen
    ref = JobRef(scheduler="kubernetes", cluster="c", id="ml/Job/train")
    return Job(ref=ref, name="train", checkpoints=CheckpointSpec(directory="/ckpt", resume=resume))


def action(kind: ActionKind, **more: Any) -> Action:
    return Action(kind=kind, incarnation=Incarnation(job=job().ref, token="u"), **more)


def container(obj: Object) -> Object:
    found: Object = obj["spec"]["template"]["spec"]["containers"][0]
    return found


def test_a_checkpoint_is_told_by_argument_in_place_of_an_older_one() -> None:
    obj = live_job()
    container(obj)["command"] += ["--resume", "old", "--lr=1", "--resume=older"]
    resume = job(Resume(by=ResumeBy.ARGUMENT, name="--resume"))
    made = changed(KINDS["Job"], obj, action(ActionKind.RESTART, checkpoint="/ckpt/a b"), resume)
    assert container(made)["command"] == ["python", "t.py", "--lr=1", "--resume", "/ckpt/a b"]


def test_a_checkpoint_is_told_by_variable_and_not_expanded() -> None:
    resume = job(Resume(by=ResumeBy.ENVIRONMENT, name="FROM"))
    made = changed(KINDS["Job"], live_job(), action(ActionKind.RESTART, checkpoint="/c/$(HOME)"), resume)
    assert container(made)["env"] == [{"name": "FROM", "value": "/c/$$(HOME)"}]


def test_a_shell_script_takes_no_argument() -> None:
    obj = live_job()
    container(obj)["command"] = ["/bin/sh", "-c", "python t.py"]
    resume = job(Resume(by=ResumeBy.ARGUMENT, name="--resume"))
    with pytest.raises(RefusedError, match="shell script"):
        changed(KINDS["Job"], obj, action(ActionKind.RESTART, checkpoint="/c"), resume)


def test_a_link_can_not_be_set_from_outside() -> None:
    with pytest.raises(RefusedError, match="link"):
        changed(
            KINDS["Job"],
            live_job(),
            action(ActionKind.RESTART, checkpoint="/c"),
            job(Resume(by=ResumeBy.SYMLINK, name="x")),
        )


def test_nodes_are_avoided_in_every_alternative_that_the_owner_gave() -> None:
    obj = live_job()
    terms = [
        {"matchExpressions": [{"key": "a", "operator": "Exists"}]},
        {"matchExpressions": [{"key": "b", "operator": "Exists"}]},
    ]
    obj["spec"]["template"]["spec"]["affinity"] = {
        "nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}
    }
    made = changed(KINDS["Job"], obj, action(ActionKind.RESTART_EXCLUDING_NODE, nodes=("n2", "n1")), job())
    affinity = made["spec"]["template"]["spec"]["affinity"]["nodeAffinity"]
    for term in affinity["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]:
        assert term["matchExpressions"]
        assert [field["values"] for field in term["matchFields"]] == [["n1"], ["n2"]]


def test_more_memory_raises_limit_and_request() -> None:
    made = changed(
        KINDS["Job"], live_job(), action(ActionKind.RESTART_WITH_MORE_MEMORY, memory_bytes=2**30), job()
    )
    assert container(made)["resources"] == {
        "limits": {"memory": "1073741824"},
        "requests": {"memory": "1073741824"},
    }


@pytest.mark.parametrize(
    ("kind", "way"),
    [("Job", ["spec"]), ("PyTorchJob", ["spec", "runPolicy"]), ("Pod", ["spec"])],
)
def test_a_longer_time_limit_goes_where_the_kind_has_it(kind: str, way: list[str]) -> None:
    obj: Any = {"activeDeadlineSeconds": 3600}
    for key in reversed(way):
        obj = {key: obj}
    made: Any = changed(KINDS[kind], obj, action(ActionKind.EXTEND_TIME_LIMIT, time_limit=7200.5), job())
    for key in way:
        made = made[key]
    assert made["activeDeadlineSeconds"] == 7200


def test_a_longer_time_limit_bounds_no_role_that_was_not_and_shortens_none() -> None:
    specs: list[Object] = [{"activeDeadlineSeconds": 60}, {"activeDeadlineSeconds": 9000}, {}]
    obj = {"spec": {"replicatedJobs": [{"template": {"spec": spec}} for spec in specs]}}
    made = changed(KINDS["JobSet"], obj, action(ActionKind.EXTEND_TIME_LIMIT, time_limit=120), job())
    limits = [one["template"]["spec"] for one in made["spec"]["replicatedJobs"]]
    assert limits == [{"activeDeadlineSeconds": 120}, {"activeDeadlineSeconds": 9000}, {}]
    unbounded: Object = {"replicatedJobs": [{"template": {"spec": {}}}]}
    for refused in (unbounded, obj["spec"]):
        with pytest.raises(RefusedError, match=r"time limit|already"):
            changed(
                KINDS["JobSet"], {"spec": refused}, action(ActionKind.EXTEND_TIME_LIMIT, time_limit=60), job()
            )


def roles(**memory: str) -> Object:
    replicas = {
        role: {
            "template": {
                "spec": {"containers": [{"name": "main", "resources": {"limits": {"memory": size}}}]}
            }
        }
        for role, size in memory.items()
    }
    return {"spec": {"pytorchReplicaSpecs": replicas}}


def killed(memory: str) -> Object:
    status = {"name": "main", "state": {"terminated": {"reason": "OOMKilled", "exitCode": 137}}}
    return {
        "spec": {"containers": [{"name": "main", "resources": {"limits": {"memory": memory}}}]},
        "status": {"containerStatuses": [status]},
    }


@pytest.mark.parametrize(
    ("pods", "wanted", "master", "worker"),
    [
        ((), 6, 8, 6),  # which one was killed is not known: no role shrinks
        ((killed("4Gi"),), 6, 8, 6),
        ((killed("8Gi"),), 12, 12, 4),
        ((killed("8Gi"),), None, 12, 4),
        ((), None, 12, 6),
    ],
)
def test_more_memory_goes_to_the_role_that_was_killed_and_no_role_gets_less(
    pods: tuple[Object, ...], wanted: int | None, master: int, worker: int
) -> None:
    more = action(
        ActionKind.RESTART_WITH_MORE_MEMORY, memory_bytes=None if wanted is None else wanted * 2**30
    )
    made = changed(KINDS["PyTorchJob"], roles(Master="8Gi", Worker="4Gi"), more, job(), pods)
    found = made["spec"]["pytorchReplicaSpecs"]
    limits = [found[role]["template"]["spec"]["containers"][0] for role in ("Master", "Worker")]
    assert [quantity(one["resources"]["limits"]["memory"]) for one in limits] == [
        master * 2**30,
        worker * 2**30,
    ]


def test_more_memory_that_is_none_is_refused() -> None:
    more = action(ActionKind.RESTART_WITH_MORE_MEMORY, memory_bytes=4 * 2**30)
    with pytest.raises(RefusedError, match="already"):
        changed(KINDS["PyTorchJob"], roles(Master="8Gi", Worker="4Gi"), more, job())


@pytest.mark.parametrize(
    ("kind", "spec"),
    [
        ("PyTorchJob", {"pytorchReplicaSpecs": {"Master": {"template": {"spec": {"containers": [{}]}}}, "Worker": {"template": {"spec": {"containers": [{}]}}}}}),
        ("JobSet", {"replicatedJobs": [{"name": "w", "template": {"spec": {"template": {"spec": {"containers": [{}]}}}}}]}),
        ("RayJob", {"rayClusterSpec": {"headGroupSpec": {"template": {"spec": {"containers": [{}]}}}, "workerGroupSpecs": [{"template": {"spec": {"containers": [{}]}}}]}}),
        ("TrainJob", {"trainer": {"numNodes": 2}}),
    ],
)  # fmt: skip
def test_every_role_of_an_operators_job_is_told_where_to_resume(kind: str, spec: Object) -> None:
    resume = job(Resume(by=ResumeBy.ENVIRONMENT, name="FROM"))
    made = changed(KINDS[kind], {"spec": spec}, action(ActionKind.RESTART, checkpoint="/c/9"), resume)
    roles = json.dumps(spec).count("containers") or 1
    assert json.dumps(made).count('{"name": "FROM", "value": "/c/9"}') == roles


def test_fences_are_kept_oldest_first_and_not_for_ever() -> None:
    obj: Object = {"metadata": {}}
    for n in range(40):
        obj["metadata"]["annotations"] = marked(
            obj, Fence(token=f"tg-{n}", incident="i", lease=1), action(ActionKind.RESTART)
        )
    kept = obj["metadata"]["annotations"]["trainguard.dev/fence"].split(",")
    assert kept == [f"tg-{n}" for n in range(24, 40)]


def test_a_saved_manifest_survives_the_process_and_is_nobody_elses_to_read(tmp_path: Path) -> None:
    folder = tmp_path / "manifests"
    ManifestStore(folder).save(Saved("ml/Job/train", "u", "tg-1", live_job()))
    file = next(folder.iterdir())
    assert file.stat().st_mode & 0o077 == 0
    found = ManifestStore(folder).load("ml/Job/train")
    assert found is not None
    assert (found.uid, found.fence, found.manifest) == ("u", "tg-1", live_job())
    file.write_text("{")
    assert ManifestStore(folder).load("ml/Job/train") is None
    assert ManifestStore(folder).load("ml/Job/other") is None
