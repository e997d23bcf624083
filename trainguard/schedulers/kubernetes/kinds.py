"""The kinds of object that can be a guarded job: where the API has them and where their pods are described."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from trainguard.core.errors import ConfigError
from trainguard.transports.kube import Object


@dataclass(frozen=True)
class Kind:
    """One kind. `versions` are tried in order; the first that the server has is used."""

    name: str
    group: str
    versions: tuple[str, ...]
    plural: str
    templates: tuple[str, ...] = ()
    """Dotted ways to its pod templates; `*` stands for every key or item."""
    suspend: str = ""
    """Dotted way to the field that suspends it."""
    deadline: str = ""
    """Dotted way to its time limit in seconds."""
    rolls: bool = False
    """A restart is a rollout that keeps the object, not a new object."""

    def path(self, version: str, namespace: str = "", name: str = "") -> str:
        """Give the URL path of the collection, or of one object. An empty namespace is all of them."""
        root = f"/apis/{self.group}/{version}" if self.group else f"/api/{version}"
        parts = [root]
        if namespace:
            parts += ["namespaces", quote(namespace, safe="")]
        parts.append(self.plural)
        if name:
            parts.append(quote(name, safe=""))
        return "/".join(parts)

    @property
    def resource(self) -> str:
        """The name that RBAC and kubectl use: `jobs.batch`, `pods`."""
        return f"{self.plural}.{self.group}" if self.group else self.plural


_TEMPLATE = ("spec.template",)
KINDS: dict[str, Kind] = {
    kind.name: kind
    for kind in (
        Kind("Pod", "", ("v1",), "pods", deadline="spec.activeDeadlineSeconds"),
        Kind(
            "Job", "batch", ("v1",), "jobs", _TEMPLATE, "spec.suspend", deadline="spec.activeDeadlineSeconds"
        ),
        Kind("CronJob", "batch", ("v1", "v1beta1"), "cronjobs", suspend="spec.suspend"),
        Kind("Deployment", "apps", ("v1",), "deployments", _TEMPLATE, rolls=True),
        Kind("StatefulSet", "apps", ("v1",), "statefulsets", _TEMPLATE, rolls=True),
        Kind("DaemonSet", "apps", ("v1",), "daemonsets", _TEMPLATE, rolls=True),
        Kind(
            "PyTorchJob",
            "kubeflow.org",
            ("v1",),
            "pytorchjobs",
            ("spec.pytorchReplicaSpecs.*.template",),
            "spec.runPolicy.suspend",
            "spec.runPolicy.activeDeadlineSeconds",
        ),
        Kind(
            "TFJob",
            "kubeflow.org",
            ("v1",),
            "tfjobs",
            ("spec.tfReplicaSpecs.*.template",),
            "spec.runPolicy.suspend",
            "spec.runPolicy.activeDeadlineSeconds",
        ),
        Kind(
            "MPIJob",
            "kubeflow.org",
            ("v1", "v2beta1"),
            "mpijobs",
            ("spec.mpiReplicaSpecs.*.template",),
            "spec.runPolicy.suspend",
            "spec.runPolicy.activeDeadlineSeconds",
        ),
        Kind(
            "JobSet",
            "jobset.x-k8s.io",
            ("v1", "v1alpha2"),
            "jobsets",
            ("spec.replicatedJobs.*.template.spec.template",),
            "spec.suspend",
        ),
        Kind("TrainJob", "trainer.kubeflow.org", ("v1", "v1alpha1"), "trainjobs", (), "spec.suspend"),
        Kind(
            "RayJob",
            "ray.io",
            ("v1", "v1alpha1"),
            "rayjobs",
            (
                "spec.rayClusterSpec.headGroupSpec.template",
                "spec.rayClusterSpec.workerGroupSpecs.*.template",
            ),
            "spec.suspend",
            "spec.activeDeadlineSeconds",
        ),
    )
}
NODE = Kind("Node", "", ("v1",), "nodes")
OPERATORS = ("PyTorchJob", "TFJob", "MPIJob", "JobSet", "TrainJob", "RayJob")

# https://kubernetes.io/docs/concepts/overview/working-with-objects/names/
_NAME = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?\Z")
_ALIASES = {
    alias: kind.name
    for kind in KINDS.values()
    for alias in (
        kind.name.lower(),
        kind.plural,
        kind.resource,
        f"{kind.name.lower()}.{kind.group}" if kind.group else kind.name.lower(),
    )
} | {
    "po": "Pod",
    "deploy": "Deployment",
    "sts": "StatefulSet",
    "ds": "DaemonSet",
    "cj": "CronJob",
    "pytorch": "PyTorchJob",
}


@dataclass(frozen=True)
class JobName:
    """A job as `JobRef.id` names it."""

    namespace: str
    kind: Kind
    name: str

    @property
    def id(self) -> str:
        """`namespace/Kind/name`."""
        return f"{self.namespace}/{self.kind.name}/{self.name}"


def parse_job_id(text: str) -> JobName:
    """Read `JobRef.id`. Raises ConfigError for anything but `namespace/Kind/name` of a known kind."""
    parts = text.split("/")
    if len(parts) != 3 or not all(_NAME.match(part) for part in (parts[0], parts[2])):
        raise ConfigError("job", f"{text[:100]!r} is not namespace/Kind/name")
    return JobName(parts[0], known_kind(parts[1]), parts[2])


def parse_job_name(text: str, namespace: str = "") -> JobName:
    """Read what a person types: `job/train` with a namespace beside it, or `namespace/kind/name`."""
    parts = text.strip().split("/")
    if len(parts) == 3:
        namespace, parts = parts[0], parts[1:]
    if len(parts) != 2:
        raise ConfigError("job", f"{text[:100]!r} is neither kind/name nor namespace/kind/name")
    if not namespace:
        raise ConfigError(
            "namespace", f"{text!r} names no namespace", "write namespace/kind/name, or set one"
        )
    return parse_job_id(f"{namespace}/{known_kind(parts[0]).name}/{parts[1]}")


def known_kind(word: str) -> Kind:
    """Find a kind by its name, plural or short name. Raises ConfigError with those there are."""
    if word in KINDS:
        return KINDS[word]
    name = _ALIASES.get(word.lower())
    if name is None:
        raise ConfigError("kind", f"{word[:60]!r} is none of {', '.join(KINDS)}")
    return KINDS[name]


def at(obj: Any, way: str) -> Any:
    """Look up a dotted way without `*`; None where it ends early."""
    for key in way.split("."):
        if not isinstance(obj, dict):
            return None
        obj = obj.get(key)
    return obj


def put(obj: Object, way: str, value: object) -> None:
    """Set a dotted way without `*`, making the maps on it."""
    *path, last = way.split(".")
    for key in path:
        obj = obj.setdefault(key, {})
    obj[last] = value


def found(obj: Any, way: str) -> Iterator[Object]:
    """Give every map at a dotted way; `*` goes through every key or item."""
    head, _, rest = way.partition(".")
    if head == "*":
        children = list(obj.values()) if isinstance(obj, dict) else obj if isinstance(obj, list) else []
    else:
        children = [obj.get(head)] if isinstance(obj, dict) else []
    for child in children:
        if rest:
            yield from found(child, rest)
        elif isinstance(child, dict):
            yield child


def pod_templates(kind: Kind, obj: Object) -> list[Object]:
    """Give the pod templates of an object, the object itself where it is a pod. Not copies."""
    if kind.name == "Pod":
        return [obj]
    return [template for way in kind.templates for template in found(obj, way)]
