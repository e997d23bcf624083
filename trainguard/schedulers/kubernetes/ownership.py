"""Which pods are a job's, which job a pod is part of. Pure.

Controllers mark what they make by ownerReferences; operators that make Jobs or clusters in between mark
their pods by label too, which spares reading what lies between.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from trainguard.schedulers.kubernetes import reading
from trainguard.schedulers.kubernetes.kinds import KINDS
from trainguard.transports.kube import Object

LABELS = {
    "jobset.sigs.k8s.io/jobset-name": ("JobSet", "TrainJob"),
    "training.kubeflow.org/job-name": ("MPIJob",),
    "ray.io/cluster": ("RayCluster",),
    "ray.io/originated-from-cr-name": ("RayJob",),
}
"""Pod label: the kinds whose object it names."""


def controller(obj: Object) -> dict[str, str] | None:
    """Give the ownerReference of an object's controller."""
    for owner in reading.meta(obj).get("ownerReferences") or []:
        if owner.get("controller"):
            return dict(owner)
    return None


def _deployment(pod: Object, owner: Mapping[str, str]) -> str:
    """Name the Deployment of a pod's ReplicaSet; empty for one that no Deployment made."""
    name, _, suffix = str(owner.get("name")).rpartition("-")
    made = (reading.meta(pod).get("labels") or {}).get("pod-template-hash") == suffix
    return name if owner.get("kind") == "ReplicaSet" and made else ""


def index_words(obj: Object) -> list[str]:
    """Give the words under which the jobs look for this pod or Job."""
    words = []
    owner = controller(obj)
    namespace = reading.meta(obj).get("namespace") or ""
    if owner is not None:
        words.append(str(owner.get("uid")))
        deployment = _deployment(obj, owner)
        if deployment:
            words.append(f"Deployment:{namespace}/{deployment}")
    labels = reading.meta(obj).get("labels") or {}
    for label, kinds in LABELS.items():
        if labels.get(label):
            words += [f"{kind}:{namespace}/{labels[label]}" for kind in kinds]
    return words


def job_words(obj: Object) -> list[str]:
    """Give the words that lead from a job to its pods."""
    kind, namespace = str(obj.get("kind")), reading.meta(obj).get("namespace") or ""
    words = [reading.uid(obj), f"{kind}:{namespace}/{reading.name(obj)}"]
    cluster = reading.status(obj).get("rayClusterName")
    if kind == "RayJob" and cluster:
        words.append(f"RayCluster:{namespace}/{cluster}")
    return words


def own_pods(obj: Object, candidates: Iterable[Object]) -> tuple[Object, ...]:
    """Keep the pods of this object; labels alone would also fit those of a deleted namesake."""
    if obj.get("kind") == "Pod":
        return (obj,)
    uid, words, born = reading.uid(obj), set(job_words(obj)), reading.created(obj)
    return tuple(
        pod
        for pod in candidates
        if (controller(pod) or {}).get("uid") == uid  # also one that it adopted, which is older
        or (words & set(index_words(pod)) and reading.created(pod) >= born)
    )


def labels_of(obj: Object) -> str:
    """Give a label selector that narrows a list of pods to those that can be the job's; empty for none."""
    kind, name = obj.get("kind"), reading.name(obj)
    if kind == "Job" and not reading.spec(obj).get("manualSelector"):
        return f"job-name={name}"
    if kind in ("JobSet", "TrainJob"):
        return f"jobset.sigs.k8s.io/jobset-name={name}"
    wanted = (reading.spec(obj).get("selector") or {}).get("matchLabels") or {}
    return ",".join(f"{key}={value}" for key, value in sorted(wanted.items()))


def top_owner(obj: Object, parents: Mapping[str, Object]) -> tuple[str, str] | None:
    """Climb from an object to the job that people know it by: (kind, name); None for somebody else's pod.

    `parents` holds what is in between by uid. The climb ends where a controller is no kind of ours; a
    ReplicaSet stands for the Deployment that its name tells, a RayCluster for its RayJob.
    """
    kind, name = str(obj.get("kind")), reading.name(obj)
    for _ in range(8):
        owner = controller(obj)
        if owner is None:
            break
        found = _job_of(obj, owner, parents)
        if found is None:
            return None if kind == "Pod" else (kind, name)
        kind, name = found
        parent = parents.get(str(owner["uid"]))
        if parent is None:
            break
        obj = parent
    return kind, name


def _job_of(obj: Object, owner: Mapping[str, str], parents: Mapping[str, Object]) -> tuple[str, str] | None:
    """Give the job that a controller is, or stands for; None where it is no kind of ours."""
    kind, name = owner["kind"], str(owner["name"])
    if kind == "ReplicaSet":
        deployment = _deployment(obj, owner)
        return ("Deployment", deployment) if deployment else None
    if kind == "RayCluster":
        namespace = reading.meta(obj).get("namespace")
        jobs = (one for one in parents.values() if one.get("kind") == "RayJob")
        named = (one for one in jobs if reading.status(one).get("rayClusterName") == name)
        mine = (reading.name(one) for one in named if reading.meta(one).get("namespace") == namespace)
        return next((("RayJob", one) for one in mine), None)
    group = str(owner.get("apiVersion") or "").rpartition("/")[0]
    return (kind, name) if kind in KINDS and KINDS[kind].group == group else None
