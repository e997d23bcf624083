"""Finding the jobs of a namespace, a label or a kind: each reported once, by its topmost owner."""

from __future__ import annotations

from dataclasses import dataclass

from trainguard.core.errors import AccessRefusedError, ConfigError, NotFoundError
from trainguard.schedulers.kubernetes import reading
from trainguard.schedulers.kubernetes.api import ClusterApi
from trainguard.schedulers.kubernetes.kinds import KINDS, JobName, Kind, known_kind
from trainguard.schedulers.kubernetes.nodes import MIRROR
from trainguard.schedulers.kubernetes.ownership import top_owner
from trainguard.transports.kube import Object

SYSTEM = ("kube-system", "kube-public", "kube-node-lease")


@dataclass(frozen=True)
class Selector:
    """What to look for."""

    namespace: str = ""
    kinds: tuple[Kind, ...] = tuple(KINDS.values())
    labels: str = ""


def parse_selector(text: str) -> Selector:
    """Read `namespace=ml kind=Job,PyTorchJob label=team=a`, in any order, or `*`. Raises ConfigError."""
    words = dict[str, str]()
    for word in text.split():
        if word == "*":
            continue
        key, equals, value = word.partition("=")
        if not equals or key not in ("namespace", "kind", "label") or not value:
            raise ConfigError("selector", f"{word!r} is none of namespace=…, kind=…, label=…, *")
        words[key] = value
    kinds = tuple(known_kind(one) for one in words["kind"].split(",")) if "kind" in words else Selector.kinds
    return Selector(words.get("namespace", ""), kinds, words.get("label", ""))


async def discover(api: ClusterApi, selector: Selector) -> list[JobName]:
    """List the jobs. A kind that this user may not list is left out, unless none may be listed."""
    listed, whole = await _listed(api, selector)
    parents = {reading.uid(obj): obj for found in listed.values() for obj in found}
    deployments = {_place(obj) for obj in listed.get("Deployment", ())}
    names = dict[str, JobName]()
    for kind in selector.kinds:
        for obj in listed.get(kind.name, ()):
            namespace = _place(obj)[0]
            top = None if _not_a_job(obj, namespace, selector) else top_owner(obj, parents)
            if top is None:
                continue
            name = JobName(namespace, KINDS[top[0]], top[1])
            # a ReplicaSet outlives its Deployment where that is deleted without what it made
            known = name.kind.name != "Deployment" or (name.namespace, name.name) in deployments
            if known or "Deployment" not in whole:
                names.setdefault(name.id, name)
    return list(names.values())


def _place(obj: Object) -> tuple[str, str]:
    return str(reading.meta(obj).get("namespace")), reading.name(obj)


async def _listed(api: ClusterApi, selector: Selector) -> tuple[dict[str, list[Object]], set[str]]:
    """List what is asked for and what lies between, by kind; and name the kinds that were listed whole."""
    found, whole, refused = dict[str, list[Object]](), set[str](), list[AccessRefusedError]()
    for kind in dict.fromkeys((*selector.kinds, *_between(selector.kinds))):
        labels = selector.labels if kind in selector.kinds else ""
        try:
            found[kind.name] = await api.list(kind, selector.namespace, labels)
        except NotFoundError:
            continue
        except AccessRefusedError as error:
            refused.append(error)
            continue
        if not labels:
            whole.add(kind.name)
    if refused and not any(kind.name in found for kind in selector.kinds):
        raise refused[0]
    return found, whole


def _between(kinds: tuple[Kind, ...]) -> tuple[Kind, ...]:
    """Kinds to read as well, for the way from a pod to its top may lead over them."""
    names = {kind.name for kind in kinds}
    between = ("Job", "JobSet", "RayJob", "Deployment") if "Pod" in names else ("Job", "JobSet")
    return tuple(KINDS[name] for name in between) if names & {"Pod", "Job"} else ()


def _not_a_job(obj: Object, namespace: str, selector: Selector) -> bool:
    if MIRROR in reading.notes(obj) or reading.deleting(obj):
        return True
    return namespace in SYSTEM and not selector.namespace
