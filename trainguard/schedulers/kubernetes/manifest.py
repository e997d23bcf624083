"""Manifests: those that name a job, and what a job is made again from, the live object without what servers wrote.

And what a restart changes in it: where to resume, which nodes to avoid, memory, time limit. Pure.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable
from typing import Any

import yaml

from trainguard.core.action import Action, ActionKind, Fence
from trainguard.core.errors import ConfigError, RefusedError
from trainguard.core.job import Job, ResumeBy
from trainguard.schedulers.kubernetes import reading
from trainguard.schedulers.kubernetes.kinds import Kind, known_kind, pod_templates
from trainguard.schedulers.kubernetes.pods import disruption
from trainguard.schedulers.kubernetes.resources import (
    full_limits,
    memory_limit,
    memory_of,
    time_limit,
    time_limits,
    training_containers,
)
from trainguard.transports.kube import Object

KEPT_FENCES = 16
_KEPT_METADATA = ("name", "namespace", "labels", "annotations", "ownerReferences")
_SERVER_LABELS = (
    "controller-uid",
    "job-name",
    "batch.kubernetes.io/controller-uid",
    "batch.kubernetes.io/job-name",
    "pod-template-hash",
    "controller-revision-hash",
)
_SERVER_NOTES = (
    "kubectl.kubernetes.io/last-applied-configuration",
    "deployment.kubernetes.io/revision",
    reading.FENCES,
    reading.INTENT,
    reading.CANCELLED,
    reading.SIZE,
)
_SHELLS = ("sh", "bash", "ash", "dash", "zsh", "ksh")
_TOKEN_VOLUMES = ("kube-api-access-", "-token-")


def read_manifest(text: str, namespace: str = "", field: str = "manifest") -> tuple[Kind, Object]:
    """Read one manifest given as YAML or JSON. Raises ConfigError naming what is wrong with it."""
    try:
        documents = [one for one in yaml.safe_load_all(text) if one is not None]
    except yaml.YAMLError as error:
        raise ConfigError(field, f"is neither YAML nor JSON: {str(error).splitlines()[0]}") from error
    if len(documents) != 1:
        what = f"holds {len(documents)} documents" if documents else "is empty"
        raise ConfigError(field, f"{what}; one job is one document", "give the training's own document alone")
    manifest = documents[0]
    if not isinstance(manifest, dict) or not isinstance(manifest.get("metadata"), dict):
        raise ConfigError(field, "is no Kubernetes object: it has no metadata")
    kind = known_kind(str(manifest.get("kind") or ""))
    group = str(manifest.get("apiVersion") or "").rpartition("/")[0]
    if group != kind.group:
        raise ConfigError(field, f"kind {kind.name} is of group {kind.group or 'v1'}, not {group or 'v1'}")
    metadata = manifest["metadata"]
    if metadata.get("generateName") and not metadata.get("name"):
        raise ConfigError(
            field,
            "has generateName: each creation would be another job, so that a restart could not be told from a copy",
            "give it a name",
        )
    if not metadata.get("name"):
        raise ConfigError(field, "has no metadata.name")
    if not (metadata.get("namespace") or namespace):
        raise ConfigError(field, "names no namespace", "set metadata.namespace, or the block's namespace")
    metadata.setdefault("namespace", namespace)
    return kind, manifest


def removed_by_itself(obj: Object) -> bool:
    """Whether Kubernetes itself removes such an object once it has ended: else somebody did."""
    places = (reading.spec(obj), reading.spec(obj).get("runPolicy") or {})
    if any(place.get("ttlSecondsAfterFinished") is not None for place in places):
        return True
    return obj.get("kind") == "Pod" and bool(disruption(obj))


def cleaned(kind: Kind, obj: Object) -> Object:
    """Copy an object as its owner would have written it: without status and what servers add."""
    source = copy.deepcopy(obj)
    metadata = {key: source["metadata"][key] for key in _KEPT_METADATA if source["metadata"].get(key)}
    _strip(metadata)
    clean: Object = {"apiVersion": source.get("apiVersion"), "kind": kind.name, "metadata": metadata}
    clean |= {key: value for key, value in source.items() if key not in (*clean, "status")}
    if kind.name == "Job" and not (clean.get("spec") or {}).get("manualSelector"):
        clean["spec"].pop("selector", None)
        clean["spec"].pop("manualSelector", None)
    if kind.name == "Pod":
        _clean_pod(clean["spec"])
    else:
        for template in pod_templates(kind, clean):
            inner = template.get("metadata") or {}
            _strip(inner)
            inner.pop("creationTimestamp", None)
    return clean


def _strip(metadata: dict[str, Any]) -> None:
    for key, names in (("labels", _SERVER_LABELS), ("annotations", _SERVER_NOTES)):
        kept = {name: value for name, value in (metadata.get(key) or {}).items() if name not in names}
        if kept:
            metadata[key] = kept
        else:
            metadata.pop(key, None)


def _clean_pod(wanted: dict[str, Any]) -> None:
    """Take out what admission put in: node, token volume, default tolerations, computed priority."""
    for key in ("nodeName", "ephemeralContainers", "priority", "preemptionPolicy"):
        wanted.pop(key, None)
    injected = {
        volume["name"]
        for volume in wanted.get("volumes") or []
        if any(mark in volume.get("name", "") for mark in _TOKEN_VOLUMES)
    }
    wanted["volumes"] = [one for one in wanted.get("volumes") or [] if one["name"] not in injected]
    for container in (*(wanted.get("containers") or []), *(wanted.get("initContainers") or [])):
        mounts = container.get("volumeMounts") or []
        container["volumeMounts"] = [one for one in mounts if one.get("name") not in injected]
    wanted["tolerations"] = [
        one
        for one in wanted.get("tolerations") or []
        if one.get("key") not in ("node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable")
    ]


def marked(
    obj: Object, fence: Fence, action: Action, attempt: int | None = None, pods: str = "", at: float = 0.0
) -> dict[str, str]:
    """Give the annotations that an action leaves: its fence after the earlier ones, and what it was.

    `pods` are the uids of the pods that it deletes, comma-separated; `at` is when it began.
    """
    earlier = [token for token in reading.fences(obj) if token != fence.token]
    tokens = [*earlier, fence.token][-KEPT_FENCES:]
    intent = {
        "fence": fence.token,
        "action": action.model_dump(mode="json"),
        "pods": pods,
        "at": at,
    }
    notes = {reading.FENCES: ",".join(tokens), reading.INTENT: json.dumps(intent)}
    if attempt is not None:
        notes[reading.ATTEMPT] = str(attempt)
    return notes


def changed(kind: Kind, manifest: Object, action: Action, job: Job, pods: Iterable[Object] = ()) -> Object:
    """Apply what an action changes. Raises RefusedError where this kind has no place for it.

    The job's `pods` tell which of its roles was killed for memory.
    """
    manifest = copy.deepcopy(manifest)
    if action.checkpoint:
        _resume(kind, manifest, action.checkpoint, job)
    if action.kind is ActionKind.RESTART_EXCLUDING_NODE:
        _avoid(kind, manifest, action.nodes)
    if action.kind is ActionKind.RESTART_WITH_MORE_MEMORY:
        _memory(kind, manifest, action.memory_bytes, tuple(pods))
    if action.kind is ActionKind.EXTEND_TIME_LIMIT:
        _deadline(kind, manifest, action.time_limit)
    return manifest


def _resume(kind: Kind, manifest: Object, checkpoint: str, job: Job) -> None:
    how = job.checkpoints.resume if job.checkpoints is not None else None
    if how is None or how.by is ResumeBy.NOTHING:
        return
    if how.by is ResumeBy.SYMLINK:
        raise RefusedError(
            "a link in the job's volume can't be set from outside its pods; resume by environment"
        )
    # Kubernetes expands $(NAME) in arguments and variables; a path is taken as it stands
    value = checkpoint.replace("$(", "$$(")
    places = (
        [manifest["spec"].setdefault("trainer", {})]
        if kind.name == "TrainJob"
        else training_containers(kind, manifest)
    )
    if not places:
        raise RefusedError(f"no container of the {kind.name} was found to tell where to resume")
    for place in places:
        if how.by is ResumeBy.ENVIRONMENT:
            _set_env(place, how.name, value)
        elif kind.name == "RayJob":
            raise RefusedError("a RayJob's entrypoint is a shell line; resume by environment")
        else:
            _set_argument(place, how.name, value)


def _set_env(container: dict[str, Any], name: str, value: str) -> None:
    variables = [one for one in container.get("env") or [] if one.get("name") != name]
    container["env"] = [*variables, {"name": name, "value": value}]


def _set_argument(container: dict[str, Any], name: str, value: str) -> None:
    command = container.get("command") or []
    if command and command[0].rpartition("/")[2] in _SHELLS and "-c" in command:
        raise RefusedError("the container runs a shell script, which takes no option; resume by environment")
    key = "args" if container.get("args") or not command else "command"
    words, kept, skip = list(container.get(key) or []), list[str](), False
    for word in words:
        if skip:
            skip = False
        elif word == name:
            skip = True
        elif not word.startswith(f"{name}="):
            kept.append(word)
    container[key] = [*kept, name, value]


def _avoid(kind: Kind, manifest: Object, nodes: tuple[str, ...]) -> None:
    if not nodes:
        raise RefusedError("no node to avoid was named")
    if kind.name == "TrainJob":
        raise RefusedError("a TrainJob's node placement is its runtime's; cordon the node instead")
    # by field, not by the hostname label: the two may differ; one name a requirement is all the API takes
    avoid = [{"key": "metadata.name", "operator": "NotIn", "values": [node]} for node in sorted(set(nodes))]
    for template in pod_templates(kind, manifest):
        affinity = template.setdefault("spec", {}).setdefault("affinity", {}).setdefault("nodeAffinity", {})
        required = affinity.setdefault("requiredDuringSchedulingIgnoredDuringExecution", {})
        for term in required.setdefault("nodeSelectorTerms", [{}]):
            fields = term.setdefault("matchFields", [])
            term["matchFields"] = fields + [one for one in avoid if one not in fields]


def _memory(kind: Kind, manifest: Object, wanted: int | None, pods: Iterable[Object]) -> None:
    """Raise the limit of the role that was killed for memory, of all where that is not known. None shrinks."""
    if kind.name == "TrainJob":
        trainer = manifest["spec"].setdefault("trainer", {})
        places: list[Object] = [{"resources": trainer.setdefault("resourcesPerNode", {})}]
    else:
        places = training_containers(kind, manifest)
    full = full_limits(pods)
    places = [one for one in places if memory_of(one) in full] or places
    if not wanted and not any(memory_of(one) for one in places):
        raise RefusedError("it has no memory limit that could be raised: the node's own memory ran out")
    raised = False
    for place in places:
        now = memory_of(place)
        more = wanted or (now and now * 3 // 2)
        if more and more > (now or 0):
            raised = True
            resources = place.setdefault("resources", {})
            resources.setdefault("limits", {})["memory"] = str(more)
            asked = max(more, memory_of(place, "requests") or 0)
            resources.setdefault("requests", {})["memory"] = str(asked)
    if not raised:
        now = memory_limit(kind, manifest, pods)
        raise RefusedError(f"it has {now} bytes of memory already (policy.limits.memory_bytes)")


def _deadline(kind: Kind, manifest: Object, wanted: float | None) -> None:
    """Extend the limits that are shorter; what is not bounded stays so."""
    places = time_limits(kind, manifest)
    if not places:
        raise RefusedError("it has no time limit that could be extended")
    raised = False
    for key, place in places:
        longer = int(wanted or place[key] * 1.5)
        if longer > place[key]:
            place[key], raised = longer, True
    if not raised:
        raise RefusedError(
            f"it may run for {time_limit(kind, manifest):.0f} s already (policy.limits.time_limit)"
        )
